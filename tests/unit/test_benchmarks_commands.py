"""Each benchmark's command, and the arithmetic that is its own. No processes, no Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import marks, namespaces, options
from benchmarks.cli import cli
from benchmarks.commands import checkpoint, hosts, rivals, startup
from benchmarks.commands.large import moved_mb
from benchmarks.contender import Plan
from benchmarks.contenders import images
from benchmarks.contenders.calls import P50, P99, SERVER_CPU, WORKER_CPU, latencies, percentile
from benchmarks.contenders.job import Turn
from benchmarks.contenders.ours import MODES
from benchmarks.machine import describe
from benchmarks.marks import Mark
from benchmarks.member import Ran
from benchmarks.variants import VARIANTS, Variant, chosen, name_of
from benchmarks.workload import Cheap
from psrpc.job import Job, PlaneChoice


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_benchmark_has_help_and_the_shared_options(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    for option in ("--rounds", "--json", "--markdown", "--plot"):
        assert option in result.output


def test_all_benchmarks_are_there() -> None:
    names = {"convnet", "loader", "large", "startup", "memory", "latency", "checkpoint", "hosts"}
    names |= {"actors", "chaos", "churn", "cycles", "reshard", "replicas", "refill"}
    assert set(cli.commands) == names


def test_hosts_is_one_side_at_a_time() -> None:
    result = CliRunner().invoke(cli, ["hosts", "--serve", "here", "--connect", "there"])
    assert result.exit_code == 2
    assert "--serve and --connect" in result.output


def test_a_second_namespace_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for words in (["hosts"], ["hosts", "--transfer"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 1
        assert "--connect ADDRESS" in result.output


def test_workers_are_dealt_out_to_hosts_in_turn() -> None:
    assert [namespaces.deal(3, hosts) for hosts in (1, 2, 3)] == [[0, 0, 0], [0, 1, 0], [0, 1, 2]]


def test_hosts_compares_what_goes_the_same_way() -> None:
    iperf, plain = hosts.comparisons()
    assert iperf.rivals["psrpc pull, rpc"] == "iperf3, to here"
    assert iperf.rivals["psrpc push, one RPC"] == "iperf3, from here"
    assert plain.rivals["psrpc push_pull, rpc"] == "plain socket, to here"
    assert plain.rivals["iperf3, from here"] == "plain socket, from here"


@pytest.mark.parametrize("value", ["0", "two", "1,,2", ""])
def test_wrong_counts_are_refused(value: str) -> None:
    result = CliRunner().invoke(cli, ["convnet", "--workers", value])
    assert result.exit_code == 2
    assert "whole numbers from 1" in result.output


def test_a_folder_without_mnist_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["convnet", "--data-root", str(tmp_path)])
    assert result.exit_code == 2
    assert "has no MNIST/raw" in result.output


def test_without_ray_its_rows_are_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = options.Run(1, tmp_path, describe(()), [])
    assert rivals.ray_rows(run, Cheap(1), 2, True) == []
    assert capsys.readouterr().err.count("\n") == 1
    assert rivals.ray_rows(run, Cheap(1), 2, False) == []
    assert capsys.readouterr().err == ""


def test_a_variant_runs_in_the_modes_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "one", Variant("one", modes=("sync",)))
    names = [name_of(variant.name, mode, 2) for variant, mode in chosen(["one", "shm"], ["sync"])]
    assert names == ["psrpc sync, one, 2 servers", "psrpc sync, shm, 2 servers"]
    assert chosen(["one"], ["async", "bounded"]) == []


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_a_variant_is_a_job_in_each_of_its_modes(variant: Variant) -> None:
    arguments = dict(variant.arguments)
    plane = PlaneChoice(arguments.pop("plane"))
    for mode in variant.modes:
        assert Job(2, 1, MODES[mode], plane=plane, **arguments).problems() == []


@pytest.mark.parametrize(
    ("name", "workers", "expected"),
    [("psrpc sync, shm", 2, 200), ("DDP on Gloo", 2, 100), ("DDP on Gloo", 4, 150)],
)
def test_the_bytes_that_a_step_must_move(name: str, workers: int, expected: float) -> None:
    assert moved_mb(name, 100_000_000, workers) == pytest.approx(expected)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert percentile(tuple(float(n) for n in range(100, 0, -1)), share) == expected
    assert percentile((7.0,), share) == 7.0


def test_a_calls_figures_are_those_of_both_sides() -> None:
    part = Ran(4, 0.0, 1.0, (0.001, 0.002, 0.003, 0.004))
    figures = latencies(Turn((part,), 0.0, (0.02, 0.01), 0.0)).figures
    assert figures == pytest.approx(
        {P50.name: 2.0, P99.name: 4.0, SERVER_CPU.name: 5.0, WORKER_CPU.name: 2.5}
    )


def test_startups_parts_are_those_of_the_worker_that_begins_first() -> None:
    way = {1: (2.0, 4.0, 6.0, 6.5), 2: (1.5, 3.0, 5.0, 5.25)}
    names = (marks.BEGAN, marks.BUILT, marks.FIRST, marks.SECOND)
    made = [
        *(Mark(name, 9, 1.0) for name in names[:2]),  # a server has no steps
        *(Mark(name, pid, way[pid][i]) for i, name in enumerate(names) for pid in (2, 1)),
    ]
    figures = startup.parts(1.0, made, 8.0).figures
    assert list(figures.values()) == [4.25, 7.0, 4.0, 0.5, 1.5, 2.0, 0.25, 2.75]
    assert sum(list(figures.values())[3:]) == figures["s to exit"]


def test_marks_are_read_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "marks"
    assert marks.read(file) == []
    monkeypatch.setenv(marks.FILE, str(file))
    marks.make("one", 1.5)
    marks.make("two")
    one, two = marks.read(file)
    assert (one.name, one.at_s, two.name) == ("one", 1.5, "two")
    assert marks.began_s() < two.at_s <= marks.now_s()


@pytest.mark.parametrize("name", checkpoint.OPTIMIZERS)
def test_a_checkpoint_is_stalled_for_written_and_read(name: str, tmp_path: Path) -> None:
    contender = images.Images(Cheap(1_000), name, tmp_path)
    threads = torch.get_num_threads()
    try:
        contender.start()
        figures = contender.run(Plan(2, 0)).figures
    finally:
        contender.stop()
        torch.set_num_threads(threads)
    assert list(figures) == [figure.name for figure in images.FIGURES]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("autograd", [False, True])
def test_cheap_gradients_are_a_thousandth_each_time(autograd: bool) -> None:
    work = Cheap(1_000_003)
    model = work.model()
    gradients = work.gradients(model, 0, 1, autograd=autograd)
    for _ in range(2):
        gradients()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, torch.full_like(parameter, 1e-3))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_000_003
    assert work.size_bytes == 4 * 1_000_003
