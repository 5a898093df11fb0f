"""The lives of a job without backups: who ends one, and who is refused in the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from psrpc.errors import FencedError
from psrpc.lives import _Fence
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
