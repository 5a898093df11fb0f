"""A store that does not answer: its callers are let go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from psrpc.environment import Place
from psrpc.errors import PeerLostError
from psrpc.rendezvous import Rendezvous
from psrpc.sealed import SealedStore
from psrpc.secret import Secret
from psrpc.timely import TimelyStore
from tests.stores import keep_store

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


def test_a_branch_has_keys_of_its_own_as_torch_names_them() -> None:
    plain = dist.HashStore()
    branch = TimelyStore(plain).branch("a")
    branch.set("k", "v")
    assert branch.check(["k"])
    assert branch.get("k") == branch.compare_set("k", "w", "x") == b"v"
    assert branch.compare_set("new", "", "x") == b"x"
    assert dist.PrefixStore("a", plain).get("new") == b"x"
    assert not TimelyStore(plain).branch("b").check(["k"])


def test_what_a_job_says_needs_no_connection_beside_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that looks up who connects answers nobody meanwhile."""
    store, made = keep_store(), []

    def count(*given: object, **options: object) -> object:
        made.append(given)
        return TCPStore(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("psrpc.rendezvous.TCPStore", count)
    place = Place(1, 3, 1, 3, "127.0.0.1", store.port, agent_keeps_store=True, job="job/0")
    with Rendezvous(place, 5.0) as rendezvous:
        rendezvous.sealed_branch("x").set("k", "v")
        assert rendezvous.sealed_branch("x").get("k") == b"v"
    assert len(made) == 1


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


def test_one_that_answers_again_is_a_store_again() -> None:
    """A link was cut, and has healed. What was given up meanwhile is not done any more."""
    stopped = Stopped()
    store = TimelyStore(stopped, answer_s=0.05)  # type: ignore[arg-type]
    waits = ThreadPoolExecutor()
    with pytest.raises(RuntimeError, match="has not answered for 0"):
        store.check(["a"])
    patient = waits.submit(store.branch("b").check, ["k"])
    with pytest.raises(RuntimeError, match="has not answered"):
        store.ask(lambda: stopped.set("given", "up"), 0.05)
    with pytest.raises(RuntimeError, match="has not answered"):
        store.set("at", "once")
    stopped.over.set()
    patient.result(30)
    store.check(["a"])
    assert stopped.asked == 3
    store.close()
    with pytest.raises(RuntimeError, match="is closed"):
        store.branch("b").check(["k"])
