"""The mean of the workers' buffers, while workers come and go."""

from __future__ import annotations

import torch

from psrpc.store.buffers import BufferMean


def sent(value: float, count: int) -> list[torch.Tensor]:
    return [torch.tensor([value]), torch.tensor(count)]


def values(mean: BufferMean) -> tuple[float, int]:
    value, count = mean.mean()
    return float(value), int(count)


def test_the_mean_is_weighted_by_steps() -> None:
    mean = BufferMean(sent(9.0, 0))
    assert values(mean) == (9.0, 0)
    mean.put(0, 1, sent(1.0, 3))
    mean.put(1, 3, sent(5.0, 7))
    assert values(mean) == (4.0, 7)


def test_a_worker_that_comes_back_is_weighted_once() -> None:
    mean = BufferMean(sent(9.0, 0))
    mean.put(0, 2, sent(1.0, 2))
    mean.put(1, 2, sent(3.0, 2))
    mean.drop(0)
    mean.put(2, 4, sent(6.0, 4))
    assert values(mean) == (5.0, 4)


def test_what_the_last_one_sent_is_kept_when_it_dies() -> None:
    mean = BufferMean(sent(9.0, 0))
    mean.put(0, 2, sent(1.0, 2))
    mean.drop(0)
    assert values(mean) == (1.0, 2)
    mean.put(1, 1, sent(4.0, 1))
    assert values(mean) == (4.0, 1)


def test_those_who_left_early_count_and_take_the_room_of_one() -> None:
    mean = BufferMean(sent(9.0, 0))
    for worker in range(50):
        mean.put(worker, 2, sent(float(worker), worker))
        mean.retire(worker)
        mean.retire(worker)
    assert len(mean._of_worker) == 1
    mean.put(50, 100, sent(0.5, 1))
    value, count = values(mean)
    assert abs(value - (24.5 + 0.5) / 2) < 1e-4
    assert count == 49
