"""Messages on their way: batches, large buffers beside them, values that may change later."""

from __future__ import annotations

import pickle
import socket
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from psrpc.actors.mail import Inbox, Mail, Post, frame
from psrpc.actors.packing import is_plain, pack, pack_error, unpack, unpack_error
from psrpc.errors import RemoteError, UsageError


def read_all(data: bytes, at_a_time: int) -> list[Any]:
    """Feed bytes to an inbox in pieces."""
    ours, theirs = socket.socketpair()
    inbox, found = Inbox(), []
    with ours, theirs:
        for begin in range(0, len(data), at_a_time):
            theirs.sendall(data[begin : begin + at_a_time])
            found += inbox.read(ours)
        theirs.close()
        with pytest.raises(EOFError):
            inbox.read(ours)
    return [message for batch in found for message in batch]


@pytest.mark.parametrize("at_a_time", [1, 7, 100_000])
def test_batches_survive_being_cut_anywhere(at_a_time: int) -> None:
    sent = [(i, i * 2, "method", (i, "text"), {}) for i in range(50)]
    data = b"".join(bytes(part) for part in frame(sent[:20]) + frame(sent[20:]))
    assert read_all(data, at_a_time) == sent


def test_large_arrays_travel_beside_and_can_be_written_to() -> None:
    array = np.arange(300_000.0)
    packed = pack(((array,), {}))
    array[:] = 0  # after it was handed over
    data = b"".join(bytes(p) for p in frame([(1, 2, "m", packed, None), (2, 2, "n", (3,), {})]))
    first, second = read_all(data, 50_000)
    (args, kwargs) = unpack(first[3])
    assert np.array_equal(args[0], np.arange(300_000.0))
    assert kwargs == {}
    args[0][0] = 7
    assert second == (2, 2, "n", (3,), {})


def test_what_can_change_is_copied_when_it_is_handed_over() -> None:
    items = [1, 2]
    assert not is_plain(items)
    packed = pack(items)
    items.append(3)
    assert unpack(packed) == [1, 2]
    assert all(is_plain(value) for value in (1, 1.5, "text", b"", None, True))
    assert not is_plain("x" * 10_000)  # so that a batch stays small


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(UsageError, match=r"lock.*cannot be sent"):
        pack(threading.Lock())


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def caught(error: Exception) -> BaseException:
    try:
        raise error
    except Exception as raised:
        return unpack_error(pack_error(raised))


def test_an_error_comes_with_its_traceback() -> None:
    error = caught(KeyError("x"))
    assert type(error) is KeyError
    assert "in caught" in str(error.__cause__)


def test_an_error_that_cannot_be_built_again_is_told() -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(Odd(1, 2)))
    error = caught(Odd(1, 2))
    assert type(error) is RemoteError
    assert str(error) == "Odd: 1 and 2"
    assert "in caught" in str(error.__cause__)


def test_a_stranger_is_shown_the_door() -> None:
    got: list[Any] = []
    over = threading.Event()
    mail = Mail(lambda post, batch: got.append(batch), lambda post: over.set())
    address = mail.listen("127.0.0.1", "a" * 32)
    mail.start()
    try:
        host, port = address.partition("@")[2].split(":")
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(b"b" * 32 + b"".join(frame([1, 2])))
            assert over.wait(10)
            with suppress(ConnectionResetError):  # what it sent was not even read
                assert stranger.recv(1) == b""
    finally:
        mail.close()
    assert got == []


def test_many_threads_messages_arrive_in_each_ones_order() -> None:
    got: list[tuple[int, int]] = []
    done = threading.Event()

    def take(post: Post, batch: list[Any]) -> None:
        got.extend(batch)
        if len(got) == 4_000:
            done.set()

    there = Mail(take, lambda post: None)
    address = there.listen("127.0.0.1", "a" * 32)
    here = Mail(lambda post, batch: None, lambda post: None)
    there.start()
    here.start()
    try:
        post = here.connect(address)

        def send(thread: int) -> None:
            for number in range(1_000):
                post.send((thread, number), at_once=number % 3 == 0)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done.wait(30)
    finally:
        here.close()
        there.close()
    for i in range(4):
        assert [number for thread, number in got if thread == i] == list(range(1_000))
