"""What every data plane does alike: in process, over torch RPC, in shared memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from psrpc.errors import (
    ConfigError,
    FencedError,
    GradientError,
    JobFailedError,
    ModelMismatchError,
)
from psrpc.job import PROTOCOL, Job
from psrpc.messages import (
    Bye,
    Fail,
    GetBuffers,
    Ping,
    Pull,
    Push,
    Register,
    Request,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
)
from psrpc.modes import Synchronous
from tests.contract.fleet import Fleet, Plan, until
from tests.contract.hand import WAIT_S, Hand, initial, stepped


def test_gradients_go_and_weights_land_in_place(launch: Callable[[Plan], Fleet]) -> None:
    hand = Hand(fleet := launch(Plan(Job(1))))
    hand.begin()
    (weights,) = hand.flats.weights
    place = weights.data_ptr()
    assert torch.equal(weights, initial(fleet)[0])
    for clock in range(3):
        hand.flats.gradients[0].fill_(clock + 1.0)
        pending = hand.link.exchange(hand.push(clock), send=True, land=True)
        assert stepped(pending).version == clock + 1
        assert pending.done()
    torch.testing.assert_close(weights, initial(fleet)[0] - 6.0)
    assert hand.flats.weights[0].data_ptr() == place


@pytest.mark.parametrize("at_once", [True, False])
def test_weights_land_only_where_they_are_asked_for(
    launch: Callable[[Plan], Fleet], at_once: bool
) -> None:
    hand = Hand(launch(Plan(Job(1))))
    hand.begin()
    before = hand.flats.weights[0].clone()
    hand.flats.gradients[0].fill_(1.0)
    push = hand.push(pull=False)
    stepped(hand.link.exchange(push, send=True, land=False, at_once=at_once))
    assert torch.equal(hand.flats.weights[0], before)
    stepped(hand.link.exchange(Pull(0, 1), send=False, land=True, at_once=at_once))
    torch.testing.assert_close(hand.flats.weights[0], before - 1.0)


def test_weights_that_are_not_wanted_at_once_land_within_wait(
    launch: Callable[[Plan], Fleet],
) -> None:
    hand = Hand(launch(Plan(Job(1))))
    hand.begin()
    before = hand.flats.weights[0].clone()
    hand.flats.gradients[0].fill_(1.0)
    pending = hand.link.exchange(hand.push(), send=True, land=True, at_once=False)
    until(lambda: hand.stats().shard.updates_applied == 1)
    assert torch.equal(hand.flats.weights[0], before)
    assert pending.arrive(WAIT_S)[0] == Stepped(1)
    assert torch.equal(hand.flats.weights[0], before)
    stepped(pending)
    torch.testing.assert_close(hand.flats.weights[0], before - 1.0)
    hand.flats.weights[0].zero_()
    stepped(pending)
    assert not hand.flats.weights[0].any(), "they land once"


def test_a_worker_may_use_its_gradient_buffers_again_after_the_answer(
    launch: Callable[[Plan], Fleet],
) -> None:
    hand = Hand(fleet := launch(Plan(Job(1))))
    hand.begin()
    hand.flats.gradients[0].fill_(1.0)
    stepped(hand.link.exchange(hand.push(0), send=True, land=True))
    hand.flats.gradients[0].fill_(100.0)  # never sent
    void = hand.push(1, void=True)
    stepped(hand.link.exchange(void, send=False, land=True))
    torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - 1.0)


def test_options_go_along_with_a_push(launch: Callable[[Plan], Fleet]) -> None:
    """Numbers, and tensors of one number, which stay tensors."""
    hand = Hand(fleet := launch(Plan(Job(1))))
    hand.begin()
    for clock, lr in enumerate((0.5, torch.tensor(0.25))):
        hand.flats.gradients[0].fill_(1.0)
        push = hand.push(clock, overrides=((0, "lr", lr),))
        stepped(hand.link.exchange(push, send=True, land=True))
    torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - 0.75)


def test_a_round_of_workers_is_averaged(launch: Callable[[Plan], Fleet]) -> None:
    fleet = launch(Plan(Job(2, mode=Synchronous())))
    hands = [Hand(fleet, worker) for worker in range(2)]
    for hand in hands:
        hand.begin(workers=2)
        hand.flats.gradients[0].fill_(1.0 + 2 * hand.worker)
    pending = [hand.link.exchange(hand.push(), send=True, land=True) for hand in hands]
    assert [stepped(each).version for each in pending] == [1, 1]
    for hand in hands:
        torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - 2.0)


def test_several_shards_and_large_tensors_arrive_intact(launch: Callable[[Plan], Fleet]) -> None:
    """20 MB over three servers, cut by rows: every element of a random gradient counts."""
    fleet = launch(Plan(Job(1, 3), rows=5000, columns=1000))
    hand = Hand(fleet)
    hand.begin()
    before = initial(fleet)
    generator = torch.Generator().manual_seed(7)
    sent = []
    for buffers in hand.buffers:
        for flat in buffers.gradients:
            flat.copy_(torch.randn(flat.shape, generator=generator))
            sent.append(flat.clone())
    pending = [link.exchange(hand.push(), send=True, land=True) for link in hand.links]
    assert [stepped(each).version for each in pending] == [1, 1, 1]
    landed = [flat for buffers in hand.buffers for flat in buffers.weights]
    assert sum(flat.numel() for flat in landed) == 5_005_000
    for weights, first, gradient in zip(landed, before, sent, strict=True):
        assert torch.equal(weights, first - gradient)


def test_a_shard_of_nothing_is_served_as_well(launch: Callable[[Plan], Fleet]) -> None:
    fleet = launch(Plan(Job(1, 3), rows=1, columns=4))
    assert any(not layout.segments for layout in fleet.plan.layouts())
    hand = Hand(fleet)
    hand.begin()
    for link in hand.links:
        assert stepped(link.exchange(hand.push(), send=True, land=True)).version == 1


REFUSED: dict[type[Exception], Request] = {
    ModelMismatchError: Register(0, PROTOCOL, (("weight", (9, 9), "float32"),)),
    ConfigError: Register(0, PROTOCOL, (), (("mode", "other"), ("seed", "x"))),
    FencedError: Push(0, 0, UpdateKey(Stream(StreamKind.WORKER, 0, 0), 0), 1, void=True),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_raised_as_what_they_are(
    launch: Callable[[Plan], Fleet], kind: type[Exception]
) -> None:
    hand = Hand(launch(Plan(Job(1))))
    with pytest.raises(kind) as caught:
        hand.link.call(REFUSED[kind]).wait(WAIT_S)
    assert type(caught.value) is kind
    if isinstance(caught.value, ConfigError):
        assert len(caught.value.problems) == 2
    if kind is FencedError:
        with pytest.raises(FencedError, match="not among the stepping workers"):
            hand.link.exchange(REFUSED[kind], send=False, land=True).wait(WAIT_S)
    hand.link.call(Ping(0)).wait(WAIT_S)


def test_a_wrong_gradient_is_refused_and_not_applied(launch: Callable[[Plan], Fleet]) -> None:
    hand = Hand(launch(Plan(Job(1))))
    hand.begin()
    with pytest.raises(GradientError, match="worker 0 sent a gradient"):
        hand.link.call(hand.push(), [torch.zeros(2)]).wait(WAIT_S)
    assert hand.stats().shard.updates_applied == 0
    hand.flats.gradients[0].fill_(1.0)
    assert stepped(hand.link.exchange(hand.push(), send=True, land=True)).version == 1


def test_what_ends_the_job_reaches_held_and_later_calls(launch: Callable[[Plan], Fleet]) -> None:
    fleet = launch(Plan(Job(2, mode=Synchronous())))
    hand, other = Hand(fleet), Hand(fleet, 1)
    hand.begin(workers=2)
    held = hand.link.exchange(hand.push(), send=True, land=True)
    other.link.call(Fail(1, ("ValueError", "no luck"))).wait(WAIT_S)
    with pytest.raises(JobFailedError, match="worker 1 failed: ValueError: no luck"):
        held.wait(WAIT_S)
    with pytest.raises(JobFailedError, match="no luck"):
        hand.link.exchange(Pull(0, 0), send=False, land=True).wait(WAIT_S)
    with pytest.raises(JobFailedError, match="no luck"):
        hand.link.call(GetBuffers(0)).wait(WAIT_S)
    hand.link.call(Bye(0)).wait(WAIT_S)


def test_a_closed_link_still_says_farewell(launch: Callable[[Plan], Fleet]) -> None:
    hand = Hand(launch(Plan(Job(1))))
    hand.begin()
    hand.link.close()
    hand.link.call(Bye(0)).wait(WAIT_S)
