"""Taking turns: every round runs all contenders once, so that noise meets them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from benchmarks.contender import BenchmarkError, Contender, Plan, Sample

Tell = Callable[[str], None]


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    plan: Plan,
    tell: Tell = lambda line: None,
    *,
    keep: bool = True,
) -> dict[str, list[Sample]]:
    """Return each contender's samples, one a round: A B C, A B C, ...

    With `keep` all are started first and stay alive, so that starting counts for
    nothing and caches are warm. Without, each is started for its turn alone and
    stopped after it: for what would not fit the memory side by side, or is to be
    measured new. Whatever happens, all that was started is stopped.
    """
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    if len(samples) < len(contenders):
        raise BenchmarkError("two contenders have the same name")
    with ExitStack() as started:
        if keep:
            for contender in contenders:
                _start(contender, started)
                tell(f"started {contender.name}")
        for number in range(1, rounds + 1):
            for contender in contenders:
                sample = contender.run(plan) if keep else _alone(contender, plan)
                samples[contender.name].append(sample)
                tell(f"round {number} of {rounds}: {contender.name} {_first(sample)}")
    return samples


def _start(contender: Contender, started: ExitStack) -> None:
    started.callback(contender.stop)
    contender.start()


def _alone(contender: Contender, plan: Plan) -> Sample:
    with ExitStack() as started:
        _start(contender, started)
        return contender.run(plan)


def _first(sample: Sample) -> str:
    name, value = next(iter(sample.figures.items()))
    return f"{value:,.4g} {name}"
