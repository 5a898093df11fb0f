"""Processes that wait for what will not come: they are told so at once."""

from __future__ import annotations

from tests.faults.test_churn import begin
from tests.faults.test_failures import ours
from tests.processes import PSRPC, SOON_S, Bench
from tests.stores import keep_store


def test_a_worker_that_joins_when_the_job_has_ended(bench: Bench) -> None:
    store = keep_store()
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    ranks = begin(bench, "async", epochs=1, workers=1, **launcher)
    assert [each.code for each in ranks.finish()] == [0, 0]
    late = bench.joiner(ranks).finish()
    assert (late.code, ours(late)) == (
        0,
        ["psrpc: the job has ended: the servers had closed when this worker came"],
    )
    del store
    late = bench.joiner(ranks).finish()
    assert (late.code, ours(late)) == (
        0,
        ["psrpc: the job has ended: nobody keeps its store any more"],
    )


def test_a_server_that_cannot_begin_tells_all_others(bench: Bench) -> None:
    options = ["--servers", "2", "--checkpoint-dir", "folder", "--resume", "folder/step-1"]
    ended = bench.ranks(*PSRPC, "train", *options, count=4).finish()
    lines = {tuple(ours(each)) for each in ended}
    assert [each.code for each in ended] == [1] * 4
    ((line,),) = lines
    assert line.startswith("Error: ")
    assert "folder/step-1" in line
    assert max(each.took_s for each in ended) < 2 * SOON_S, "the start's time limit is 300 s"
