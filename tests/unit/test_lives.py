"""The lives of a job without backups: who ends one, and who is refused in the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from psrpc.core.replication import Reign
from psrpc.errors import FencedError, JobFailedError
from psrpc.lives import LifeNode, _Fence
from psrpc.messages import Done, GetStats, Peek, Ping, Request
from psrpc.planes import base
from psrpc.planes.base import Landing
from psrpc.planes.loopback import LoopbackLink
from psrpc.replication.lives import Lives
from tests.unit.test_replication import Register_


def test_a_life_is_ended_once() -> None:
    lives = Lives(Register_())
    assert lives.now() == 1
    ended: list[int] = []
    threads = [threading.Thread(target=lambda: ended.append(lives.end(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [2] * 4
    assert lives.now() == 2


def test_what_servers_say_of_a_life() -> None:
    lives = Lives(Register_())
    assert lives.counted(1, 3) == 0
    lives.count(1, 0, 7)
    lives.count(1, 2, 9)
    lives.count(2, 1, 100)
    assert lives.counted(1, 3) == 9
    assert lives.folder(1) is None
    lives.choose(1, "")
    assert lives.folder(1) == "", "from the beginning"
    lives.remember("before", 4)
    assert (lives.recall("before"), lives.recall("redone/1")) == (4, 0)


class Anybody:
    """A service that answers everything."""

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        """See `Service`."""
        answer((Done(1), []))


@pytest.mark.parametrize("request_of", [Peek, GetStats])
def test_who_had_left_before_takes_no_older_weights_for_the_last(request_of: type[Peek]) -> None:
    link = LoopbackLink(_Fence(Anybody(), 1000))
    with pytest.raises(FencedError, match="went back to a checkpoint"):
        link.call(request_of(999)).wait(0)
    assert link.call(request_of(1000)).wait(0)[0] == Done(1)
    assert link.call(Ping(3)).wait(0)[0] == Done(1)


# What a server makes of its life.


def node(**more: Any) -> Any:
    """As much of a server as the decision looks at."""
    return SimpleNamespace(index=0, _lives=Lives(Register_()), **more)


def test_one_that_comes_again_in_a_life_that_it_has_served_in_ends_that_life() -> None:
    reign: list[Reign | None] = [None]
    server = node(_authorities=[SimpleNamespace(look=lambda: reign[0])])
    assert LifeNode._present(server) == 1, "it has served in none"
    reign[0] = Reign(1, 5)
    assert LifeNode._present(server) == 2
    assert LifeNode._present(server) == 2, "that one was of the life before"


def test_a_job_goes_back_to_its_own_checkpoints_or_to_where_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def newest_after(number: int) -> None:
        asked.append(number)

    monkeypatch.setattr("psrpc.lives.open_checkpoint", lambda path: SimpleNamespace(folder=path))
    server = node(life=2, checkpointer=SimpleNamespace(newest_after=newest_after))
    server._lives.remember("before", 7)
    server._lives.choose(1, "")
    with pytest.raises(JobFailedError, match="before the job's first checkpoint"):
        LifeNode._choose(server)
    assert asked == [7], "what was in the folder before is of another job"
    server._lives.choose(1, "of another job")
    assert LifeNode._choose(server).folder == Path("of another job")


def test_a_later_life_counts_from_where_the_first_began(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int | None] = []
    monkeypatch.setattr("psrpc.lives.restore_server", lambda *given: told.append(given[-1]))
    stats = SimpleNamespace(samples_before=30, updates_applied=0)
    server = node(
        life=1,
        _first=0,
        checkpointer=object(),
        coordinator=SimpleNamespace(restore=lambda *given: None, core=SimpleNamespace()),
        job=SimpleNamespace(servers=1),
        server=SimpleNamespace(stats=lambda: stats, adopt=lambda view: None),
        store=None,
        blueprint=None,
        _await=lambda look, who: "they are",
    )
    manifest = SimpleNamespace(parts=[], job=SimpleNamespace(facts={}))
    found = SimpleNamespace(folder=Path("some"), manifest=manifest, rest=dict)
    server._choose = lambda: found
    server._restore_coordinator = lambda *given: LifeNode._restore_coordinator(server, *given)
    server._tell_redone = lambda coordinator: None
    server.coordinator.core.go_back = lambda first: None
    assert LifeNode._restore(server)
    server.life = 2
    assert LifeNode._restore(server)
    assert told == [None, 30]


def test_what_is_done_again_adds_up_over_all_lives() -> None:
    stats = SimpleNamespace(updates_applied=40)
    counted = SimpleNamespace(stats=lambda: stats)
    server = node(life=3, job=SimpleNamespace(servers=2), server=counted)
    server._lives.count(2, 0, 55)
    server._lives.count(2, 1, 50)
    server._lives.remember("redone/2", 10)
    coordinator: Any = SimpleNamespace()
    LifeNode._tell_redone(server, coordinator)
    assert coordinator.updates_redone == 10 + 15
    assert server._lives.recall("redone/3") == 25
