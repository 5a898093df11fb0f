"""Simulated jobs whose servers change and die end, or hold every promise; faults are found out."""

from __future__ import annotations

from collections import Counter

import pytest

from psrpc.core.decisions import Answer
from psrpc.core.resharding import Resharding
from psrpc.moves import FindServers, Servers
from psrpc.testing.calls import Caller
from psrpc.testing.losing import lose_servers, main
from psrpc.testing.moving import Phase
from psrpc.testing.schedule import MODES
from psrpc.testing.simulator import SimulationError

SEEDS = 60


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_job_ends_with_a_server_that_keeps_rows_and_goes_on_without_any_other(
    mode: str, churn: bool
) -> None:
    jobs = [lose_servers(mode, seed, churn=churn)[0] for seed in range(SEEDS)]
    kept = Counter(keeps for job in jobs for _, keeps in job.lost)
    assert kept[True] > kept[False] > 0
    goes_on = [job for job in jobs if job.lost and not (job.failed or job.servers[0].dead)]
    assert len(goes_on) > 1


def test_servers_die_at_every_point_of_a_change() -> None:
    died = Counter(phase for seed in range(120) for phase, _ in lose_servers("async", seed)[0].lost)
    assert died.keys() == set(Phase)


def fails() -> str:
    """What some seed shows to be wrong."""
    for seed in range(600):
        try:
            lose_servers("async", seed)
        except SimulationError as error:
            return str(error)
    return ""


def test_a_worker_that_is_told_too_early_where_the_servers_are_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(self: Resharding, request: FindServers, token: int) -> Answer:
        return Answer(token, Servers(self.layout, self.seats), "whatever may come")

    monkeypatch.setattr(Resharding, "_find", find)
    assert "gives up, and all servers live" in fails()


def test_one_that_waits_for_all_others_before_it_sees_a_loss_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Caller, "_lose", lambda caller: None)
    monkeypatch.setattr("psrpc.testing.losing.Losing._give_up_cut", lambda job, number: None)
    assert "the job does not end" in fails()


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "sync", "--seed", "3", "--churn", "--trace"]) == 0
    assert "server 0 <- " in capsys.readouterr().out
