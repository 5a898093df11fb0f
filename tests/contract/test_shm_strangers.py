"""What comes to a server's socket from others than its workers must not stop the workers."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from psrpc.errors import SecretError
from psrpc.messages import Done, Ping, Request
from psrpc.planes import wire
from psrpc.planes.agent import Agent
from psrpc.planes.base import Answer, Landing
from psrpc.planes.doorman import Doorman
from psrpc.planes.rpc import Address, RpcLink
from psrpc.planes.shm import ShmLink
from psrpc.store.layout import Segment, ShardLayout

NOBODY = 65534


class Echo:
    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: Answer,
        land: Landing | None = None,
    ) -> None:
        answer((Done(7), []))


def visitor(doorman: Doorman) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(f"\0{doorman.address}")
    assert sock.recv(16) == b"slot"
    return sock


@pytest.mark.parametrize("message", [b"garbage", pickle.dumps("no ring"), pickle.dumps(None)])
def test_a_garbled_message_ends_its_connection_alone(message: bytes) -> None:
    doorman = Doorman(Echo(), ShardLayout((Segment(0, "float32", 3),), ()))
    doorman.start()
    worker, stranger = visitor(doorman), visitor(doorman)
    try:
        stranger.send(message)
        assert stranger.recv(64) == b""
        worker.send(wire.pack(wire.Ring(Ping(0))))
        assert wire.unpack_reply(worker.recv(4096)) == Done(7)
    finally:
        worker.close()
        stranger.close()
        doorman.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_socket_of_another_user_is_not_believed() -> None:
    name = f"psrpc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
        os.seteuid(NOBODY)
        try:
            theirs.bind(f"\0{name}")
            theirs.listen()
        finally:
            os.seteuid(0)
        link = ShmLink(RpcLink(cast(Agent, None), Address("server0", 0, "")), name)
        with pytest.raises(SecretError, match=r"another user .* the place of server0"):
            link.connect()
