"""The benchmarks' own logic: turns, ratios, tables. No processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import report
from benchmarks.contender import BenchmarkError, Plan, Sample
from benchmarks.contenders.job import joined
from benchmarks.harness import measure
from benchmarks.machine import Machine
from benchmarks.member import Go, Ran, Stage, Stop
from benchmarks.results import Table, tabulate

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
    return Sample(steps=100, seconds=100 / rate, cpu_s=cpu_ms / 10)


def figures() -> Table:
    samples = {
        "limit": [sample(100), sample(400), sample(200)],
        "ours": [sample(90, 2.0), sample(100, 3.0), sample(60, 4.0)],
    }
    return tabulate("a table", samples, "limit")


def test_contenders_take_turns_and_are_started_and_stopped_once() -> None:
    log: list[str] = []
    samples = measure([Scripted(name, log) for name in "ab"], 2, Plan(10))
    assert log == ["start a", "start b", *["run a", "run b"] * 2, "stop b", "stop a"]
    assert {name: len(series) for name, series in samples.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("phase", ["start", "run"])
def test_all_that_was_started_is_stopped_when_one_breaks(phase: str) -> None:
    log: list[str] = []
    contenders = [Scripted("a", log), Scripted("b", log, breaks_in=phase), Scripted("c", log)]
    with pytest.raises(BenchmarkError):
        measure(contenders, 2, Plan(10))
    started = [line.split()[1] for line in log if line.startswith("start")]
    assert [f"stop {name}" for name in reversed(started)] == log[-len(started) :]


def test_two_contenders_of_one_name_are_refused_before_anything_starts() -> None:
    log: list[str] = []
    with pytest.raises(BenchmarkError, match="same name"):
        measure([Scripted("a", log), Scripted("a", log)], 1, Plan(10))
    assert log == []


def test_a_round_lasts_from_the_first_begin_to_the_last_end() -> None:
    whole = joined([Ran(30, 10.0, 12.0), Ran(30, 10.5, 13.0)], cpu_s=0.6)
    assert (whole.steps, whole.seconds, whole.rate) == (60, 3.0, 20.0)
    assert whole.cpu_ms == pytest.approx(10.0)


def test_ratios_compare_within_a_round() -> None:
    limit, ours = figures().rows
    assert (limit.ratio, limit.ratio_low, limit.ratio_high) == (1.0, 1.0, 1.0)
    # 90/100, 100/400 and 60/200, where the ratio of the medians is 90/200.
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == pytest.approx((0.3, 0.25, 0.9))
    assert (ours.median, ours.low, ours.high) == pytest.approx((90, 60, 100))
    assert ours.cpu_ms == pytest.approx(3.0)


def test_the_text_table_is_aligned() -> None:
    title, *lines = report.text(figures()).splitlines()
    assert title == "a table"
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[0] == "contender"
    assert lines[2].split() == ["ours", "90", "60–100", "30%", "25%–90%", "3.00"]


def test_markdown_names_command_machine_and_versions() -> None:
    text = report.markdown([figures()], MACHINE, "python -m benchmarks convnet")
    assert text.startswith("`python -m benchmarks convnet`\n")
    for fact in ("a processor, 2 cores", "torch 2.15", "commit: abc", "**a table**"):
        assert fact in text
    assert "| ours | 90 | 60–100 | 30% | 25%–90% | 3.00 |" in text


def test_json_has_every_round() -> None:
    content = json.loads(report.as_json([figures()], MACHINE, "command"))
    assert content["machine"]["cpu"] == "a processor"
    (table,) = content["tables"]
    assert table["rows"][1]["rates"] == pytest.approx([90, 100, 60])


class Orders:
    """The control socket of a worker: gives out orders, keeps what is said, notes when."""

    def __init__(self, orders: list[object], log: list[str]) -> None:
        self.orders = orders
        self.log = log

    def recv(self) -> object:
        order = self.orders.pop(0)
        self.log.append(f"wait for {type(order).__name__}")
        return order

    def send(self, message: object) -> None:
        self.log.append(f"say {type(message).__name__}")


def test_a_worker_rests_whenever_it_waits() -> None:
    log: list[str] = []

    @contextmanager
    def resting() -> Iterator[None]:
        log.append("rest")
        yield
        log.append("rise")

    orders = [Plan(steps=2, warmup=1), Go(), Stop()]
    control = Orders(list(orders), log)
    Stage(control).play(lambda: log.append("step"), resting)  # type: ignore[arg-type]
    assert log == [
        *("say Here", "rest", "wait for Plan", "rise", "step", "say Warm"),
        *("rest", "wait for Go", "rise", "step", "step", "say Ran"),
        *("rest", "wait for Stop", "rise"),
    ]
