"""Actors and pools in real processes: one cluster for all tests here."""

from __future__ import annotations

import concurrent.futures as cf
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psrpc
from psrpc.actors.cluster import Cluster
from psrpc.errors import ActorLostError, ConfigError, PlacementError, UsageError
from tests.processes import PATIENCE_S, wait_until


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    with psrpc.init(num_cpus=4, num_gpus=0) as cluster:
        yield cluster
        pids = [pid for node in cluster.status()["nodes"] for pid in node["runners"]]
    assert psrpc.actors.current.client is None
    wait_until(lambda: not any(alive(pid) for pid in pids), PATIENCE_S, lambda: f"left: {pids}")


def alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


class Counter:
    def __init__(self, value: int = 0, *, gate: str | None = None) -> None:
        self.value = value
        self.gate = gate

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError(f"at {self.value}")

    def await_file(self, path: str) -> int:
        wait_until(lambda: Path(path).exists(), PATIENCE_S, lambda: "no file")
        return self.value

    def hold(self, begun: str, gate: str) -> int:
        Path(begun).touch()
        return self.await_file(gate)

    def hold_at(self, other: Any, begun: str, gate: str) -> int:
        return int(other.hold.remote(begun, gate).result(PATIENCE_S))

    def double(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array *= 2
        return array

    def call(self, other: Any, amount: int) -> int:
        return int(other.add.remote(amount).result(PATIENCE_S))

    async def later(self, amount: int) -> int:
        return self.add(amount)

    def exit(self) -> None:
        os._exit(3)


Actor = psrpc.actor(Counter)


class Saving(Counter):
    def save_state(self) -> int:
        return self.value

    def load_state(self, state: int) -> None:
        self.value = state


def test_calls_are_carried_out_in_order_and_give_futures() -> None:
    actor = Actor.remote(5)
    futures = [actor.add.remote() for _ in range(5_000)]
    assert psrpc.get(futures, timeout=PATIENCE_S) == list(range(6, 5_006))
    assert actor.later.remote(amount=10).result(PATIENCE_S) == 5_015
    done = list(cf.as_completed([actor.add.remote(0) for _ in range(3)], PATIENCE_S))
    assert [future.result() for future in done] == [5_015] * 3
    ready, rest = psrpc.wait([actor.add.remote(), actor.add.remote()], num_returns=2)
    assert (len(ready), rest) == (2, [])


def test_an_error_is_raised_at_the_caller_with_the_remote_traceback() -> None:
    actor = Actor.remote(3)
    with pytest.raises(ValueError, match="at 3") as caught:
        actor.fail.remote().result(PATIENCE_S)
    assert "in fail" in str(caught.value.__cause__)
    assert actor.add.remote().result(PATIENCE_S) == 4  # it lives on
    with pytest.raises(UsageError, match="Counter has no method 'nothing'"):
        actor.nothing.remote().result(PATIENCE_S)
    broken = Actor.remote(1, 2, 3)
    with pytest.raises(TypeError, match="positional"):
        broken.add.remote().result(PATIENCE_S)
    with pytest.raises(TypeError, match="positional"):
        psrpc.ready(broken, PATIENCE_S)


def test_arrays_and_handles_travel_and_what_is_changed_later_does_not() -> None:
    actor, other = Actor.remote(), Actor.options(own_process=True).remote()
    array = np.ones(200_000)
    future = actor.double.remote(array)
    array[:] = 5
    assert np.array_equal(future.result(PATIENCE_S), np.full(200_000, 2.0))
    assert actor.call.remote(other, 7).result(PATIENCE_S) == 7
    assert actor.pid.remote().result(PATIENCE_S) != other.pid.remote().result(PATIENCE_S)


def test_classes_and_functions_of_no_module_travel_with_their_code() -> None:
    base = 10

    class Local:
        def add(self, value: int) -> int:
            return base + value

    assert psrpc.actor(Local).remote().add.remote(5).result(PATIENCE_S) == 15


def test_names_are_found_from_any_process_and_belong_to_one() -> None:
    named = Actor.options(name="tally").remote(1)
    assert psrpc.get_actor("tally").add.remote().result(PATIENCE_S) == 2
    with pytest.raises(UsageError, match="'tally' already"):
        Actor.options(name="tally").remote()
    with psrpc.Pool(size=1) as pool:
        found = pool.submit(lambda: psrpc.get_actor("tally").add.remote().result(PATIENCE_S))
        assert found.result(PATIENCE_S) == 3
    psrpc.kill(named)
    with pytest.raises(ActorLostError, match="killed"):
        named.add.remote().result(PATIENCE_S)
    with pytest.raises(UsageError, match="no actor named 'tally'"):
        psrpc.get_actor("tally")


def test_what_has_not_begun_can_be_cancelled_and_the_mailbox_has_an_end(tmp_path: Path) -> None:
    actor = Actor.options(max_pending=2).remote()
    psrpc.ready(actor, PATIENCE_S)
    gate = tmp_path / "gate"
    blocked, cancelled = actor.await_file.remote(str(gate)), actor.add.remote(100)
    assert cancelled.cancel()
    assert cancelled.cancelled()
    third = actor.add.remote(1)  # there is room again
    said = threading.Event()

    def call_too_many() -> int:
        future = actor.add.remote(1)
        said.set()
        return int(future.result(PATIENCE_S))

    with cf.ThreadPoolExecutor(1) as thread:
        fourth = thread.submit(call_too_many)
        assert not said.wait(0.2)  # held, whatever time it takes
        gate.touch()
        assert fourth.result(PATIENCE_S) == 2
    assert (blocked.result(PATIENCE_S), third.result(PATIENCE_S)) == (0, 1)


def test_a_killed_actor_begins_again_from_its_saved_state() -> None:
    kind = psrpc.actor(Saving, own_process=True, max_restarts=1)
    actor = kind.remote(10)
    assert actor.add.remote(5).result(PATIENCE_S) == 15
    first = actor.pid.remote().result(PATIENCE_S)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first), PATIENCE_S, lambda: "it lives")
    seen = []
    while not seen:
        try:  # one that is sent before the death is noticed is lost
            seen.append(actor.add.remote(1).result(PATIENCE_S))
        except ActorLostError:
            continue
    assert seen == [16]
    with pytest.raises(ActorLostError, match="may have been carried out"):
        actor.exit.remote().result(PATIENCE_S)
    with pytest.raises(ActorLostError, match="after 1 restarts"):
        actor.add.remote().result(PATIENCE_S)


def test_what_was_answered_is_in_the_state_of_an_actor_that_is_killed_at_once() -> None:
    """Though the state is large, and takes longer to the head than the answer to the caller."""

    class Large(Saving):
        def save_state(self) -> Any:
            return self.value, bytes(3_000_000)

        def load_state(self, state: Any) -> None:
            self.value, _ = state

    actor = psrpc.actor(Large, own_process=True, max_restarts=10, max_retries=10).remote()
    for value in range(0, 20, 2):
        pid = actor.pid.remote().result(PATIENCE_S)
        assert actor.add.remote().result(PATIENCE_S) == value + 1
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not alive(pid), PATIENCE_S, lambda: "it lives")  # type: ignore[misc]
        assert actor.add.remote().result(PATIENCE_S) == value + 2


def test_calls_are_made_again_as_often_as_is_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def note(times: int) -> int:
        with log.open("a") as file:
            file.write("x")
        if len(log.read_text()) < times:
            os._exit(1)
        return len(log.read_text())

    class Noting:
        def note(self, times: int) -> int:
            return note(times)

    kind = psrpc.actor(Noting, own_process=True, max_restarts=5, max_retries=2)
    assert kind.remote().note.remote(3).result(PATIENCE_S) == 3
    log.unlink()
    with pytest.raises(ActorLostError):
        kind.remote().note.remote(4).result(PATIENCE_S)
    assert log.read_text() == "xxx"


@pytest.mark.parametrize("own_process", [False, True])
def test_a_killed_actors_running_call_is_lost_at_once(tmp_path: Path, own_process: bool) -> None:
    kind = Actor.options(own_process=own_process, max_restarts=1, max_retries=1)
    actor, other = kind.remote(), Actor.options(own_process=True).remote()
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    psrpc.ready(other, PATIENCE_S)
    running = actor.hold.remote(str(begun), str(gate))
    wait_until(begun.exists, PATIENCE_S, lambda: "it has not begun")
    queued = [actor.add.remote() for _ in range(10)]
    psrpc.kill(actor)
    for future in [running, *queued]:
        with pytest.raises(ActorLostError, match="killed"):
            future.result(PATIENCE_S / 2)
    gate.touch()
    assert other.add.remote().result(PATIENCE_S) == 1


def test_who_else_calls_a_killed_actor_hears_of_it(tmp_path: Path) -> None:
    actor, other = Actor.remote(), Actor.options(own_process=True).remote()
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    running = other.hold_at.remote(actor, str(begun), str(gate))
    wait_until(begun.exists, PATIENCE_S, lambda: "it has not begun")
    psrpc.kill(actor)
    with pytest.raises(ActorLostError, match="no more"):
        running.result(PATIENCE_S / 2)
    gate.touch()


def test_placement_refuses_and_waits_visibly(cluster: Cluster) -> None:
    with pytest.raises(PlacementError, match="64 CPUs; the nearest is node, which has 4 CPUs"):
        Actor.options(num_cpus=64).remote().add.remote().result(PATIENCE_S)
    all_cpus = Actor.options(num_cpus=4).remote()
    psrpc.ready(all_cpus, PATIENCE_S)
    waits = Actor.options(num_cpus=1).remote()
    future = waits.add.remote()
    status = cluster.status()
    assert any("node is 1 CPUs short" in actor["waits"] for actor in status["actors"])
    psrpc.kill(all_cpus)
    assert future.result(PATIENCE_S) == 1
    with pytest.raises(ConfigError, match=r"num_cpus must be a number from 0, not -1"):
        Actor.options(num_cpus=-1)
    with pytest.raises(ConfigError, match="no option cpus; there are num_cpus"):
        Actor.options(cpus=1)


def test_an_actor_without_handles_ends_after_its_calls(cluster: Cluster) -> None:
    before = len(cluster.status()["actors"])
    assert Actor.remote(1).add.remote().result(PATIENCE_S) == 2
    wait_until(
        lambda: len(cluster.status()["actors"]) <= before, PATIENCE_S, lambda: "it is still there"
    )


def test_many_stuck_actors_stop_nobody() -> None:
    """More actors of one process wait for each other than it has threads at first."""
    last = Actor.remote()
    chain = last
    kind = psrpc.actor(Caller)
    for _ in range(30):
        chain = kind.remote(chain)
    assert chain.add.remote(5).result(PATIENCE_S) == 5


class Caller:
    def __init__(self, other: Any) -> None:
        self.other = other

    def add(self, amount: int) -> int:
        return int(self.other.add.remote(amount).result(PATIENCE_S))


def square(value: int) -> int:
    if value == 13:
        raise ValueError("thirteen")
    return value * value


def test_a_pool_is_an_executor() -> None:
    with psrpc.Pool(size=2) as pool:
        futures = [pool.submit(square, i) for i in range(500)]
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert [i for i, error in enumerate(errors) if error] == [13]
        assert futures[12].result() == 144
        assert list(pool.map(square, range(10), chunksize=3)) == [i * i for i in range(10)]
        unordered = pool.map(square, range(10), chunksize=2, ordered=False)
        assert sorted(unordered) == [i * i for i in range(10)]
        results = pool.map(square, range(20), chunksize=5)
        assert [next(results) for _ in range(13)] == [i * i for i in range(13)]
        with pytest.raises(ValueError, match="thirteen"):
            next(results)
    with pytest.raises(psrpc.errors.ClosedError):
        pool.submit(square, 1)


def test_a_pool_of_a_class_calls_its_methods_and_fails_with_its_constructor() -> None:
    with psrpc.Pool(Counter, size=2, args=(100,)) as pool:
        assert pool.submit("add", 1).result(PATIENCE_S) == 101
        assert pool.submit(Counter.pid).result(PATIENCE_S) != os.getpid()
        assert sum(pool.map("add", [0] * 10)) in range(1_000, 1_011)
    pool = psrpc.Pool(Counter, size=2, args=(1, 2))
    with pool, pytest.raises(TypeError, match="positional"):
        pool.submit("add").result(PATIENCE_S)


def test_a_dead_members_jobs_are_done_by_others_and_a_deadly_one_fails(tmp_path: Path) -> None:
    def job(number: int) -> int:
        mark = tmp_path / f"killed-{number}"
        if number % 10 == 7 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with psrpc.Pool(size=2, max_retries=1) as pool:
        assert list(pool.map(job, range(200))) == list(range(200))
        futures = [pool.submit(os._exit, 1), pool.submit(job, 1)]
        with pytest.raises(ActorLostError):
            futures[0].result(PATIENCE_S)
        assert futures[1].result(PATIENCE_S) == 1
    assert len(list(tmp_path.iterdir())) == 20


def test_a_pool_outlives_its_idle_members(cluster: Cluster) -> None:
    """Four die at once, twice, and each time new ones are made."""
    before: set[int] = {0}  # one that has not come yet

    def runners() -> set[int]:
        return {pid for node in cluster.status()["nodes"] for pid in node["runners"]} - before

    before |= runners()
    with psrpc.Pool(Counter, size=4, own_process=True) as pool:
        for _ in range(2):
            wait_until(lambda: len(runners()) == 4, PATIENCE_S, lambda: "there are fewer")
            assert sum(pool.map("add", [0] * 8)) == 0
            lives = sorted(runners())
            for pid in lives:
                os.kill(pid, signal.SIGKILL)
            for pid in lives:
                wait_until(lambda pid=pid: not alive(pid), PATIENCE_S, lambda: "it lives")  # type: ignore[misc]
            before |= set(lives)
        assert pool.submit("add", 1).result(PATIENCE_S) == 1


def test_a_pool_whose_members_cannot_be_made_fails(tmp_path: Path) -> None:
    class Deadly:
        def __init__(self) -> None:
            (tmp_path / str(os.getpid())).touch()
            os._exit(3)

    with psrpc.Pool(Deadly, size=2) as pool:
        wait_until(lambda: pool._error is not None, PATIENCE_S, lambda: "it tries on")
        with pytest.raises(ActorLostError, match="exit code 3"):
            pool.submit("add")
    assert 4 <= len(list(tmp_path.iterdir())) <= 10


def test_jobs_that_died_with_another_of_their_process_are_done_again(tmp_path: Path) -> None:
    """Though none may have been alone at a death."""

    def hold(number: int) -> int:
        (tmp_path / f"{number}-{os.getpid()}").touch()
        wait_until((tmp_path / "gate").exists, PATIENCE_S, lambda: "no gate")
        return number

    def begun() -> list[tuple[str, ...]]:
        return [tuple(path.name.split("-")) for path in tmp_path.iterdir()]

    with psrpc.Pool(size=8, own_process=False, max_retries=0) as pool:
        futures = [pool.submit(hold, number) for number in range(8)]
        wait_until(lambda: len(begun()) == 8, PATIENCE_S, lambda: str(begun()))
        pids = [int(pid) for _, pid in begun()]
        (pid,) = [pid for pid in set(pids) if pids.count(pid) > 1][:1]  # of at most four
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(begun()) > 8, PATIENCE_S, lambda: str(begun()))
        (tmp_path / "gate").touch()
        assert psrpc.get(futures, timeout=PATIENCE_S) == list(range(8))


def test_a_pool_ends_whose_jobs_were_given_up_before_it_was_there(tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while not gate.exists() and time.monotonic() < deadline:
                time.sleep(0.01)

        def add(self, amount: int) -> int:
            return amount

    for members in (1, 3):
        gate = tmp_path / str(members)
        with psrpc.Pool(Slow, size=members, own_process=False) as pool:
            assert pool.submit("add", 1).cancel()
            threading.Timer(0.2, gate.touch).start()  # it is waited for by then, or sooner


def test_a_pool_grows_while_jobs_wait_and_nobody_waits_behind_a_long_one(tmp_path: Path) -> None:
    gates = [tmp_path / str(i) for i in range(4)]

    def wait(path: str) -> int:
        Path(f"{path}-begun").touch()
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        return 1

    with psrpc.Pool(size=(1, 4)) as pool:
        assert pool.size == 1
        held = [pool.submit(wait, str(gate)) for gate in gates]
        begun = lambda: len(list(tmp_path.glob("*-begun")))  # noqa: E731
        wait_until(lambda: begun() == 4, PATIENCE_S, lambda: f"{begun()} have begun")
        assert pool.size == 4
        for gate in gates:
            gate.touch()
        assert [future.result(PATIENCE_S) for future in held] == [1, 1, 1, 1]


def test_usual_slips_are_said() -> None:
    counter = psrpc.actor(Counter).remote()
    slips: list[tuple[Any, str]] = [
        (lambda: counter.add(1), r"add\.remote\(\.\.\.\)"),
        (lambda: psrpc.get([counter.add.remote(), 5]), "takes futures.* not 5"),
        (lambda: psrpc.get(5), "takes futures.* not 5"),
        (lambda: psrpc.kill("counter"), "an actor's handle"),
        (lambda: psrpc.ready("counter"), "an actor's handle"),
    ]
    for slip, said in slips:
        with pytest.raises(UsageError, match=said):
            slip()


def test_jobs_of_a_decorated_class_are_named_by_its_methods() -> None:
    kind = psrpc.actor(Counter)
    with psrpc.Pool(kind, size=1, own_process=False) as pool:
        assert pool.submit(kind.add, 2).result(PATIENCE_S) == 2
    named = pytest.raises(UsageError, match="does functions, not 'add'")
    with psrpc.Pool(size=1, own_process=False) as pool, named:
        pool.submit("add", 2).result(PATIENCE_S)
    with pytest.raises(AttributeError):
        _ = kind.nothing
