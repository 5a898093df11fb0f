"""A tuple space over its sockets: one owner or several, in this process and in others."""

from __future__ import annotations

import gc
import math
import pickle
import random
import socket
import struct
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

import psrpc
from psrpc.errors import (
    AddressError,
    ClosedError,
    LeaseLostError,
    PeerLostError,
    ProtocolError,
    SpaceFullError,
    SpaceTimeoutError,
    UsageError,
)
from psrpc.space import ANY, FIELD, Change, Space, SpaceServer
from tests.processes import PATIENCE_S, Bench, wait_until
from tests.spaces import owner as owner
from tests.spaces import result
from tests.spaces import space as space


def test_values_come_out_as_they_went_in(space: Space) -> None:
    values = (None, True, 3, -(2**90), 0.1, math.inf, "ü\ud800", b"\x00x", (1, [2, (3,)]), [], {})
    values += ({"k": (1, b"2"), 3: None},)
    space.write(("plain", *values))
    assert repr(space.take(("plain", *[ANY] * len(values)))[1:]) == repr(values)
    arrays = [
        np.arange(6.0).reshape(2, 3).T,
        np.zeros((0, 4), np.int16),
        np.array("2026", "M8[s]"),
        np.array([b"ab"]),
    ]
    for array in arrays:
        space.write(("array", array))
        (_, again) = space.take(("array", np.ndarray))
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert (again == array).all()
    tensors = [
        torch.randn(3, 2).t(),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor(True),
        torch.empty(0, 3),
        torch.randn(300, 400),
    ]
    for tensor in tensors:
        space.write(("tensor", 1, tensor, b"z" * 99))
        again = space.take(("tensor", 1, torch.Tensor, bytes))[2]
        assert again.dtype == tensor.dtype
        assert torch.equal(again, tensor)
        again.zero_()  # its memory is its owner's


def test_what_is_sent_is_a_copy(space: Space) -> None:
    array = np.zeros(200_000)
    written = space.write_async(("array", array))
    array += 1
    result(written)
    assert not space.take(("array", ANY))[1].any()


@pytest.mark.parametrize(
    "bad",
    [(object(),), (np.float32(1),), (np.array([None]),), ([ANY],), (1 << 5000,), "text", (3 + 1j,)],
)
def test_what_cannot_be_in_a_tuple_is_refused(space: Space, bad: Any) -> None:
    with pytest.raises(UsageError):
        space.write(bad)
    with pytest.raises(UsageError):
        space.read(bad)
    assert space.about()["tuples"] == 0


def test_usual_slips_are_said(owner: SpaceServer, space: Space) -> None:
    slips: list[Any] = [
        lambda: space.read(("x", 0 < FIELD < 3)),
        lambda: space.read(("x", FIELD > 0 and FIELD < 3)),
        lambda: space.read(("x", not (FIELD > 0) & (FIELD < 3))),
    ]
    for slip in slips:
        with pytest.raises(UsageError, match=r"joined by & \| ~"):
            slip()
    for addresses in (owner, [owner], 3):
        with pytest.raises(UsageError, match="owners' addresses as text"):
            Space(addresses)  # type: ignore[arg-type]


def test_waiting_ends_with_a_tuple_or_with_its_time(space: Space) -> None:
    with pytest.raises(SpaceTimeoutError, match=r"within 0\.01 s"):
        space.take(("job", int), 0.01)
    assert space.try_take(("job", int)) is None
    futures = [space.take_async(("job", FIELD > 0)) for _ in range(3)]
    late = space.read_async(("none",), 0.01)
    for number in range(5):
        space.write(("job", number))
    assert [result(future) for future in futures] == [("job", n) for n in (1, 2, 3)]
    with pytest.raises(TimeoutError):
        result(late)
    assert space.read_all(("job", ANY)) == [("job", 0), ("job", 4)]
    assert space.read_all(("job", ANY), most=1) == [("job", 0)]
    assert space.count(("job", 0)) == 1


def test_a_cancelled_future_takes_nothing(space: Space) -> None:
    for _ in range(50):  # so that some are cancelled while their answer is on its way
        future = space.take_async(("job",))
        written = space.write_async(("job",))
        taken = not future.cancel()
        result(written)
        if taken:
            result(future)
        else:
            space.take(("job",), PATIENCE_S)
    about = space.about()
    assert (about["tuples"], about["waiting"]) == (0, 0)


def test_leases(space: Space) -> None:
    space.write_all(("job", n) for n in range(4))
    with space.take(("job", ANY), lease_s=math.inf) as job:
        assert job == ("job", 0)
        assert pickle.loads(pickle.dumps(job)) == ("job", 0)
    with pytest.raises(LeaseLostError):
        job.confirm()
    with pytest.raises(ZeroDivisionError), space.take(("job", ANY), lease_s=math.inf):
        raise ZeroDivisionError
    assert space.read(("job", ANY)) == ("job", 1)
    short = space.take(("job", ANY), lease_s=0.01)
    assert space.take(("job", 1), PATIENCE_S) == ("job", 1)
    with pytest.raises(LeaseLostError, match="had ended"):
        short.renew(9)
    space.write(("gone",), ttl=0.01)
    with space.watch(("gone",)) as watch:
        while space.try_read(("gone",)):
            watch.next(PATIENCE_S)
    with Space(space._addresses) as other:
        other.take(("job", 2), lease_s=math.inf)
    assert space.take(("job", ANY), PATIENCE_S)[1] in (2, 3)


def test_watchers_and_spaces_of_other_names(owner: SpaceServer, space: Space) -> None:
    with Space(owner.address, "other") as other, space.watch(("job", int)) as watch:
        other.write(("job", 1))
        space.write(("job", "x"))
        space.write(("job", 2))
        space.take(("job", 2))
        seen = [watch.next(PATIENCE_S) for _ in range(2)]
        assert seen == [(Change.WRITTEN, ("job", 2)), (Change.TAKEN, ("job", 2))]
        with pytest.raises(SpaceTimeoutError):
            watch.next(0)
    with pytest.raises(ClosedError):
        watch.next()


def test_several_owners(owner: SpaceServer) -> None:
    with SpaceServer() as second, SpaceServer() as third:
        addresses = [owner.address, second.address, third.address]
        with Space(addresses) as space, pickle.loads(pickle.dumps(space)) as other:
            space.write_all((name, 1) for name in "abcdefgh")
            held = []
            for address in addresses:
                with Space(address) as one:
                    held.append(one.count((str, int)))
            assert sum(held) == 8
            assert sorted(held)[1] > 0  # dealt out
            assert other.count((str, int)) == len(other.read_all((ANY, ANY))) == 8
            taken = [other.take((ANY, int))[0] for _ in range(8)]
            assert sorted(taken) == list("abcdefgh")
            with pytest.raises(SpaceTimeoutError):
                other.take((ANY, int), 0.01)
            takers = [
                threading.Thread(target=lambda: taken.append(other.take((ANY,))[0]))
                for _ in range(4)
            ]
            for taker in takers:
                taker.start()
            space.write_all((name,) for name in "ijkl")
            for taker in takers:
                taker.join(PATIENCE_S)
            assert sorted(taken[8:]) == list("ijkl")
            assert space.about()["tuples"] == 0
            wait_until(lambda: space.about()["waiting"] == 0, PATIENCE_S, lambda: "still asked")


def test_futures_of_several_owners(owner: SpaceServer) -> None:
    with SpaceServer() as second, Space([owner.address, second.address]) as space:
        late = space.read_async((ANY, int), 0.01)
        with pytest.raises(SpaceTimeoutError, match=r"within 0\.01 s"):
            result(late)
        reader = space.read_async((ANY, int))
        takers = [space.take_async((ANY, FIELD > 0)) for _ in range(6)]
        space.write_all((name, place) for place, name in enumerate("abcdefg"))
        assert sorted(map(result, takers)) == [(n, p) for p, n in enumerate("abcdefg") if p]
        assert result(reader)[0] in "abcdefg"
        assert space.read_all((ANY, ANY)) == [("a", 0)]
        leased = result(space.take_async((ANY, 0), lease_s=math.inf))
        leased.give_back()
        for _ in range(20):  # so that some are cancelled while their answers are on the way
            future = space.take_async((ANY, int))
            if not future.cancel():
                space.write(result(future))
        wait_until(lambda: space.count((ANY, int)) == 1, PATIENCE_S, lambda: "it is lost")
        wait_until(lambda: space.about()["waiting"] == 0, PATIENCE_S, lambda: "still asked")
        future = space.take_async((ANY, "never"))
        second.close()
        with pytest.raises(PeerLostError):
            result(future)


def test_many_threads_share_a_connection(space: Space) -> None:
    found: list[int] = []

    def take() -> None:
        found.extend(space.take(("job", int), PATIENCE_S)[1] for _ in range(100))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    space.write_all(("job", number) for number in range(400))
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(found) == list(range(400))


def test_large_and_many_at_once(space: Space) -> None:
    futures = [space.write_async(("big", n, np.full(300_000, n))) for n in range(30)]
    for future in futures:
        result(future)
    assert [int(fields[2][-1]) for fields in space.read_all(("big", ANY, ANY))] == list(range(30))


def test_an_owner_has_a_limit() -> None:
    with SpaceServer(limit_bytes=10_000) as owner, Space(owner.address) as space:
        with pytest.raises(SpaceFullError, match="10000 bytes"):
            space.write(("x", np.zeros(10_000, np.uint8)))
        space.write(("x", np.zeros(9_000, np.uint8)))
        with pytest.raises(SpaceFullError):
            space.write(("x", "y" * 2_000))
        space.take(("x", ANY))
        space.write(("x", "y" * 2_000))


def test_a_lost_owner_is_an_error_and_its_heir_is_found() -> None:
    owner = SpaceServer().start()
    secret, _, place = owner.address.rpartition("@")
    space = Space(owner.address)
    waiting = space.take_async(("job",))
    watch = space.watch(("job",))
    owner.close()
    for wait in (lambda: result(waiting), lambda: watch.next(PATIENCE_S)):
        with pytest.raises(PeerLostError, match="lost"):
            wait()
    with pytest.raises(AddressError, match="no tuple space at"):
        space.count(("job",))
    with SpaceServer(port=int(place.split(":")[1]), secret=secret):
        assert space.count(("job",)) == 0
        space.close()
    with pytest.raises(ClosedError):
        space.count(("job",))


def test_an_owner_that_nobody_asks_may_be_lost_unnoticed() -> None:
    owner = SpaceServer().start()
    secret, _, place = owner.address.rpartition("@")
    with Space(owner.address) as space:
        space.write(("x",))  # this thread reads its answer, and then nobody does
        connection = space._connection(0)
        owner.close()
        wait_until(lambda: not connection.usable, PATIENCE_S, lambda: "its end was not seen")
        with SpaceServer(port=int(place.split(":")[1]), secret=secret):
            assert space.count(("x",)) == 0


def test_an_interrupt_while_answers_are_told_leaves_nobody_waiting(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.write(("x",))
    connection = space._connection(0)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(connection, "_hear", interrupt)
        with pytest.raises(KeyboardInterrupt):
            space.write(("y",))
    assert not connection.usable
    assert space.count(("x",)) == 1


INTERRUPTED = """
import os, signal, sys, threading, time
import psrpc

space = psrpc.Space(sys.argv[1])
space.write(("begun",))
connection = space._connection(0)
taken = []

def take():
    while connection._reader != threading.main_thread().ident:
        time.sleep(0.001)
    taken.append(space.take(("other", int), 60))

def interrupt():
    while len(connection._pending) < 2:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

threads = [threading.Thread(target=each) for each in (take, interrupt)]
for thread in threads:
    thread.start()
try:
    space.take(("never", int))
except KeyboardInterrupt:
    print("interrupted")
assert connection.usable and space._connection(0) is connection
space.write(("never", 1))
assert space.count(("never", int)) == 1  # nobody waits for it any more
space.write(("other", 2))
threads[0].join()
print(taken)
"""


def test_ctrl_c_ends_a_wait_and_nothing_else(owner: SpaceServer, bench: Bench) -> None:
    bench.write("interrupted.py", INTERRUPTED)
    ended = bench.run("interrupted.py", owner.address)
    assert (ended.code, ended.out, ended.err) == (0, "interrupted\n[('other', 2)]\n", "")


def test_strangers_and_garbage_do_not_disturb(owner: SpaceServer, space: Space) -> None:
    place = owner.address.rpartition("@")[2]
    with pytest.raises(ProtocolError, match="wrong secret"):
        Space(f"guess@{place}").count(())
    host, port = place.split(":")
    chance = random.Random(7)
    for text in (b"GET / HTTP/1.1\r\n\r\n", struct.pack("<IQ", 9, 1 << 60), chance.randbytes(999)):
        with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
            sock.sendall(text)
            while sock.recv(100):
                pass
    for bad in ("nowhere", "x@localhost", "x@localhost:99999"):
        with pytest.raises(UsageError, match="secret@host:port"):
            Space(bad)
    space.write(("still", "here"))
    assert space.take((ANY, ANY)) == ("still", "here")


REQUESTS: list[Any] = [
    [],
    {},
    [[]],
    [[1, 0, "s", 3, None, False]],
    [[1, 0, "s", [{"a": ["<f8", [3], 99]}], None, False]],
    [[1, 0, "s", [{"d": [[[], 1]]}], None, False]],
    [[1, 0, "s", ["x"], -1, False]],
    [[1, 1, "s", [{"op": ["eval", "1"]}], 0]],
    [[1, 1, "s", [{"join": ["and", []]}], 0]],
    [[1, 9, "s", ["x"], [77]]],
    [[1, 99, "s"]],
    [[1, 3, "s", ["x"], "many"]],
    [[1, 0, "s", ["x"], 10**400, False]],
]


@pytest.mark.parametrize("requests", REQUESTS)
def test_a_client_that_talks_nonsense_is_shown_out(space: Space, requests: Any) -> None:
    connection = space._connection(0)
    with connection._lock:
        connection._sending = True
    connection._send(requests if isinstance(requests, list) else [requests], [])
    if requests == []:
        assert space.count(("x",)) == 0
        return
    connection._thread.join(PATIENCE_S)
    assert not connection._thread.is_alive()
    assert space.count(("x",)) == 0


def test_a_callback_that_would_wait_for_itself_is_told(space: Space) -> None:
    told: Future[Any] = Future()

    def back(_: Future[Any]) -> None:
        try:
            space.count(("x",))
        except UsageError as error:
            told.set_result(str(error))

    space.take_async(("y",)).add_done_callback(back)
    space.write(("y",))
    assert "callback" in result(told)


TAKER = """
import math, sys
import psrpc

space = psrpc.Space(sys.argv[1])
while True:
    job = space.take(("job", int), lease_s=math.inf)
    space.write(("result", job[1]))
    job.confirm()
"""


def test_killed_takers_lose_nothing(owner: SpaceServer, space: Space, bench: Bench) -> None:
    bench.write("taker.py", TAKER)
    space.write_all(("job", number) for number in range(1000))
    takers = [bench.start("taker.py", owner.address) for _ in range(3)]
    results: list[int] = []
    for share in (100, 300, 500, 1000):
        while len(set(results)) < share:
            results.append(space.take(("result", int), PATIENCE_S)[1])
        if share < 1000:
            takers.pop(0).kill()
            takers.append(bench.start("taker.py", owner.address))
    assert sorted(set(results)) == list(range(1000))
    assert len(results) <= 1003  # a taker that dies between its result and its word on the job
    wait_until(lambda: space.about()["leased"] == 0, PATIENCE_S, lambda: "still leased")
    assert space.count(("job", int)) == 0


def test_an_owner_that_was_closed_has_no_address() -> None:
    with SpaceServer() as server:
        assert server.address
    with pytest.raises(ClosedError):
        _ = server.address


def test_nothing_is_left(owner: SpaceServer) -> None:
    before = set(threading.enumerate())

    def left() -> list[threading.Thread]:
        new = set(threading.enumerate()) - before
        return [thread for thread in new if thread.name.startswith("psrpc-space")]

    for _ in range(3):
        with Space(owner.address) as space:
            space.write(("x",))
            space.take(("x",))
            assert left()
    gc.collect()
    wait_until(lambda: not left(), PATIENCE_S, lambda: f"left: {left()}")
    assert psrpc.Space is Space
