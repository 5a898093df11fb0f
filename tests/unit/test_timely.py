"""A store that does not answer: its callers are let go."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch.distributed as dist

from psrpc.environment import Place
from psrpc.errors import PeerLostError
from psrpc.rendezvous import Rendezvous
from psrpc.sealed import SealedStore
from psrpc.secret import Secret
from psrpc.timely import TimelyStore

PLACE = Place(1, 2, 1, 2, "127.0.0.1", 1, agent_keeps_store=True, job="job/0")


class Stopped:
    """A store that is stopped until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return self._wait

    def _wait(self, *arguments: object) -> None:
        self.asked += 1
        self.over.wait(30)


def test_one_that_answers_is_a_store() -> None:
    store = TimelyStore(dist.HashStore())
    assert not store.check(["a"])
    store.set("a", "b")
    assert store.check(["a"])
    assert store.get("a") == b"b"
    assert [store.add("n", 1), store.add("n", 2)] == [1, 3]
    store.close()
    store._thread.join(30)
    assert not store._thread.is_alive(), "it would keep the store's port"


def test_an_error_of_the_store_is_its_callers() -> None:
    class Gone(Stopped):
        def _wait(self, *arguments: object) -> None:
            raise dist.DistNetworkError("gone")

    store = TimelyStore(Gone())  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(dist.DistNetworkError, match="gone"):
            store.check(["a"])


def test_one_that_is_stopped_counts_as_gone() -> None:
    stopped = Stopped()
    rendezvous = Rendezvous(PLACE, 300.0)
    rendezvous._store = store = TimelyStore(stopped, answer_s=0.05)  # type: ignore[arg-type]
    rendezvous._sealed = SealedStore(store, Secret.random())
    with pytest.raises(PeerLostError, match="rank 1 lost the store at "):
        rendezvous.read(["server0"])
    with pytest.raises(PeerLostError, match="rank 1 lost the store"):
        rendezvous.number()
    rendezvous.say("left/1")
    rendezvous.await_or_give_up(["server0/gone"], 300.0)
    assert rendezvous.heard("server0/reason") is None
    assert not rendezvous.answers()
    assert stopped.asked == 1, "nobody waits for it again"
    stopped.over.set()
