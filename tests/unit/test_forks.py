"""A forked child lets go of its parent's connections, and of nothing else."""

from __future__ import annotations

import itertools
import os
import socket
import sys

import pytest

from psrpc.forks import keep_from_children, keep_sockets_from_children


def open_in_a_child(sockets: list[socket.socket]) -> list[bool]:
    """Which of these a child that is forked now still has."""
    reader, writer = os.pipe()
    descriptors = [each.fileno() for each in sockets]
    child = os.fork()
    if child == 0:
        os.write(writer, bytes(os.path.exists(f"/proc/self/fd/{fd}") for fd in descriptors))
        os._exit(0)
    os.waitpid(child, 0)
    had = os.read(reader, len(descriptors))
    os.close(reader)
    os.close(writer)
    return [bool(each) for each in had]


def test_a_child_has_what_was_not_kept_from_it() -> None:
    ours, theirs = socket.socketpair()
    keep_from_children(ours)
    with ours, theirs:
        assert open_in_a_child([ours, theirs]) == [False, True]
        assert open_in_a_child([ours, theirs]) == [False, True], "in every one"
        theirs.send(b"x")
        assert ours.recv(1) == b"x", "the parent goes on with it"


def test_what_cannot_be_closed_keeps_no_other_from_being(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck:
        def close(self) -> None:
            raise OSError("it cannot be closed")

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # which the child would call
    pairs = [socket.socketpair() for _ in range(8)]
    stuck = [Stuck() for _ in range(8)]
    for (ours, _), each in zip(pairs, stuck, strict=True):
        keep_from_children(each)
        keep_from_children(ours)
    assert open_in_a_child([ours for ours, _ in pairs]) == [False] * 8
    for each in itertools.chain.from_iterable(pairs):
        each.close()


def test_sockets_that_something_opened_by_itself() -> None:
    before = socket.socket()
    (first, second), sockets = keep_sockets_from_children(socket.socketpair)
    after = socket.socket()
    with before, first, second, after:
        everything = [before, first, second, after]
        assert open_in_a_child(everything) == [True, False, False, True]
        descriptor = first.fileno()
        first.close()
        again = socket.socket()
        assert again.fileno() == descriptor, "the same number, another socket"
        with again:
            assert open_in_a_child([again, second]) == [True, False]
        del sockets
        assert open_in_a_child([second]) == [True]


def test_a_connection_ends_with_its_owner_though_its_child_lives() -> None:
    ours, theirs = socket.socketpair()
    keep_from_children(ours)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent ends it
        os._exit(0)
    ours.close()
    theirs.settimeout(10)
    assert theirs.recv(1) == b""
    theirs.close()
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)
