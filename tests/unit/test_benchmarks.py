"""The benchmarks' own logic: turns, ratios, tables, pictures. No processes, no Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import plot, report
from benchmarks.comparisons import is_sync, usual
from benchmarks.contender import CPU, OTHERS, RATE, BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.job import Turn, rates
from benchmarks.harness import measure
from benchmarks.machine import Machine
from benchmarks.member import Go, Ran, Stage, Stop
from benchmarks.results import Comparison, Table, against, tabulate

MACHINE = Machine("a processor", 2, 24.0, "Linux 1", 0.5, (("torch", "2.15"),), "abc")


class Scripted:
    """A contender that writes down what is asked of it."""

    def __init__(self, name: str, log: list[str], *, breaks_in: str = "") -> None:
        self.name = name
        self.log = log
        self.breaks_in = breaks_in

    def start(self) -> None:
        self._do("start")

    def run(self, plan: Plan) -> Sample:
        self._do("run")
        return sample(plan.steps)

    def stop(self) -> None:
        self._do("stop")

    def _do(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what == self.breaks_in:
            raise BenchmarkError(self.name)


def sample(rate: float, cpu_ms: float = 1.0) -> Sample:
    return Sample({RATE.name: rate, CPU.name: cpu_ms})


def figures() -> Table:
    samples = {
        "limit": [sample(100), sample(400), sample(200)],
        "ours": [sample(90, 2.0), sample(100, 3.0), sample(60, 4.0)],
        "odd": [Sample({}), Sample({}), Sample({})],
    }
    ratio = against("of limit", "limit", ("limit", "ours", "odd"), percent=True)
    theirs = Comparison("× ours", {"limit": "ours"})
    return tabulate("a table", samples, (RATE, CPU), (ratio, theirs))


def test_contenders_take_turns_and_are_started_and_stopped_once() -> None:
    log: list[str] = []
    samples = measure([Scripted(name, log) for name in "ab"], 2, Plan(10))
    assert log == ["start a", "start b", *["run a", "run b"] * 2, "stop b", "stop a"]
    assert {name: len(series) for name, series in samples.items()} == {"a": 2, "b": 2}


def test_contenders_that_are_not_kept_live_for_one_turn() -> None:
    log: list[str] = []
    measure([Scripted(name, log) for name in "ab"], 2, Plan(10), keep=False)
    assert log == ["start a", "run a", "stop a", "start b", "run b", "stop b"] * 2


@pytest.mark.parametrize("phase", ["start", "run"])
def test_all_that_was_started_is_stopped_when_one_breaks(phase: str) -> None:
    log: list[str] = []
    contenders = [Scripted("a", log), Scripted("b", log, breaks_in=phase), Scripted("c", log)]
    with pytest.raises(BenchmarkError):
        measure(contenders, 2, Plan(10))
    started = [line.split()[1] for line in log if line.startswith("start")]
    assert [f"stop {name}" for name in reversed(started)] == log[-len(started) :]


@pytest.mark.parametrize("phase", ["start", "run"])
def test_one_that_is_not_kept_is_stopped_when_it_breaks(phase: str) -> None:
    log: list[str] = []
    with pytest.raises(BenchmarkError):
        measure([Scripted("a", log, breaks_in=phase)], 1, Plan(10), keep=False)
    assert log[-1] == "stop a"


def test_two_contenders_of_one_name_are_refused_before_anything_starts() -> None:
    log: list[str] = []
    with pytest.raises(BenchmarkError, match="same name"):
        measure([Scripted("a", log), Scripted("a", log)], 1, Plan(10))
    assert log == []


def test_a_turn_lasts_from_the_first_begin_to_the_last_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    parts = (Ran(30, 10.0, 12.0), Ran(30, 10.5, 13.0))
    whole = rates(Turn(parts, cpu_s=0.6, member_cpu_s=(0.6,), host_cpu_s=2.4)).figures
    assert whole[RATE.name] == pytest.approx(20.0)
    assert whole[CPU.name] == pytest.approx(10.0)
    # 1.8 s of the 6 s that two processors have in 3 s.
    assert whole[OTHERS.name] == pytest.approx(30.0)


def test_ratios_compare_within_a_round() -> None:
    limit, ours, odd = figures().rows
    own = limit.ratios["of limit"]
    assert (own.median, own.low, own.high) == (1.0, 1.0, 1.0)
    # 90/100, 100/400 and 60/200, where the ratio of the medians is 90/200.
    ratio = ours.ratios["of limit"]
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.3, 0.25, 0.9))
    rate = ours.figures[RATE.name]
    assert (rate.median, rate.low, rate.high) == pytest.approx((90, 60, 100))
    assert ours.figures[CPU.name].median == pytest.approx(3.0)
    assert odd.figures == odd.ratios == {}


def test_a_comparison_with_rivals_that_did_not_run_is_left_out() -> None:
    samples = {"ours": [sample(1)], "limit": [sample(2)]}
    absent = against("× Ray", "Ray sync", ("ours",))
    table = tabulate("t", samples, (RATE,), (absent, against("of limit", "limit", ("ours",))))
    assert [comparison.title for comparison in table.comparisons] == ["of limit"]
    ours, limit = table.rows
    assert ours.ratios["of limit"].median == pytest.approx(0.5)
    assert limit.ratios == {}


def test_rows_are_held_to_those_that_do_the_same() -> None:
    names = ["limit", "psrpc sync, shm", "psrpc bounded 4, rpc", "Ray sync", "DDP on Gloo"]
    limit, ray, ddp, tutorial = usual(names, "limit")
    assert limit.rivals == dict.fromkeys(names, "limit")
    assert ray.rivals == {
        "psrpc sync, shm": "Ray sync",
        "Ray sync": "Ray sync",
        "DDP on Gloo": "Ray sync",
        "psrpc bounded 4, rpc": "Ray async",
    }
    assert ddp.rivals == {"psrpc sync, shm": "DDP on Gloo"}
    assert tutorial.rivals == {
        "psrpc sync, shm": "RPC tutorial sync",
        "psrpc bounded 4, rpc": "RPC tutorial async",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("psrpc sync, shm, 2 servers", True),
        ("psrpc async, rpc", False),
        ("psrpc bounded 4, shm", False),
        ("RPC tutorial sync", True),
        ("DDP on Gloo", True),
    ],
)
def test_which_rows_are_synchronous(name: str, expected: bool) -> None:
    assert is_sync(name) is expected


def test_the_text_table_is_aligned() -> None:
    title, *lines = report.text(figures()).splitlines()
    assert title == "a table"
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[0] == "contender"
    assert lines[2].split() == ["ours", "90", "60–100", "30%", "(25%–90%)", "–", "3.00"]
    assert lines[3].split() == ["odd", *"–––––"]


def test_markdown_names_command_machine_and_versions() -> None:
    text = report.markdown([figures()], MACHINE, "python -m benchmarks convnet")
    assert text.startswith("`python -m benchmarks convnet`\n")
    for fact in ("a processor, 2 cores", "torch 2.15", "commit: abc", "**a table**"):
        assert fact in text
    assert "| ours | 90 | 60–100 | 30% (25%–90%) | – | 3.00 |" in text
    assert "| limit | 200 | 100–400 | 100% (100%–100%) | 3.33 (1.11–4.00) | 1.00 |" in text


def test_json_has_every_round() -> None:
    content = json.loads(report.as_json([figures()], MACHINE, "command"))
    assert content["machine"]["cpu"] == "a processor"
    (table,) = content["tables"]
    ours = table["rows"][1]
    assert ours["figures"][RATE.name]["values"] == pytest.approx([90, 100, 60])
    assert ours["ratios"]["of limit"]["values"] == pytest.approx([0.9, 0.25, 0.3])


def test_a_picture_has_a_part_a_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    empty = tabulate("nothing of it", {"a": [Sample({})]}, (Figure("other"),))
    file = tmp_path / "out.png"
    plot.save([figures(), empty, figures()], file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BenchmarkError, match=r"pip install '\.\[bench\]'"):
        plot.require()


class Orders:
    """The control socket of a worker: gives out orders, keeps what is said, notes when."""

    def __init__(self, orders: Sequence[object], log: list[str]) -> None:
        self.orders = list(orders)
        self.log = log
        self.said: list[object] = []

    def recv(self) -> object:
        order = self.orders.pop(0)
        self.log.append(f"wait for {type(order).__name__}")
        return order

    def send(self, message: object) -> None:
        self.said.append(message)
        self.log.append(f"say {type(message).__name__}")


def test_a_worker_rests_whenever_it_waits() -> None:
    log: list[str] = []

    @contextmanager
    def resting() -> Iterator[None]:
        log.append("rest")
        yield
        log.append("rise")

    control = Orders([Plan(steps=2, warmup=1), Go(), Stop()], log)
    Stage(control).play(lambda: log.append("step"), resting)  # type: ignore[arg-type]
    assert log == [
        *("say Here", "rest", "wait for Plan", "rise", "step", "say Warm"),
        *("rest", "wait for Go", "rise", "step", "step", "say Ran"),
        *("rest", "wait for Stop", "rise"),
    ]


def test_a_driver_counts_its_workers_steps_and_may_time_them() -> None:
    control = Orders([Plan(steps=2, warmup=1), Go(), Stop()], [])
    Stage(control).conduct(lambda count: [0.5] * count, width=4)  # type: ignore[arg-type]
    (ran,) = [message for message in control.said if isinstance(message, Ran)]
    assert (ran.steps, ran.times_s) == (8, (0.5, 0.5))
