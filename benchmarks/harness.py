"""Taking turns: every round runs all contenders once, so that noise meets them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from benchmarks.contender import BenchmarkError, Contender, Plan, Sample

Tell = Callable[[str], None]


def measure(
    contenders: Sequence[Contender], rounds: int, plan: Plan, tell: Tell = lambda line: None
) -> dict[str, list[Sample]]:
    """Return each contender's samples, one a round: A B C, A B C, ...

    All are started first and stay alive, so that starting counts for nothing and
    caches are warm. Whatever happens, all that was started is stopped.
    """
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    if len(samples) < len(contenders):
        raise BenchmarkError("two contenders have the same name")
    with ExitStack() as started:
        for contender in contenders:
            started.callback(contender.stop)
            contender.start()
            tell(f"started {contender.name}")
        for number in range(1, rounds + 1):
            for contender in contenders:
                sample = contender.run(plan)
                samples[contender.name].append(sample)
                tell(f"round {number} of {rounds}: {contender.name} {sample.rate:,.1f}/s")
    return samples
