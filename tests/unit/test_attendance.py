"""What is told of workers that come and are lost while a job runs."""

from __future__ import annotations

import pytest

from psrpc.attendance import watched
from psrpc.job import PROTOCOL
from psrpc.messages import Register
from psrpc.modes import Asynchronous
from psrpc.planes.loopback import LoopbackLink
from tests.unit.test_replication import PATIENCE_S, Stage, begin


def comes(stage: Stage, process: int, serial: int = 0) -> None:
    signature, settings = stage.blueprint.signature, stage.job.settings
    word = Register(process, PROTOCOL, signature, settings, serial=serial)
    LoopbackLink(stage.coordinator).call(word).wait(PATIENCE_S)


def test_who_comes_later_and_who_is_lost_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(Asynchronous())
    lose = watched(stage.coordinator, stage.coordinator.lose)
    begin(stage.coordinator, stage)
    assert capsys.readouterr().err == "", "the job begins with these"
    comes(stage, 7)
    comes(stage, 7)  # the same word again
    assert capsys.readouterr().err == "psrpc: worker 2 has come\n"
    lose(7, "it is silent")
    lose(7, "it is silent")
    assert capsys.readouterr().err == (
        "psrpc: worker 2 is lost (it is silent): nobody waits for it\n"
    )
    comes(stage, 7, serial=1)
    assert capsys.readouterr().err == "psrpc: worker 2 has come\n"


def test_one_that_only_follows_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(Asynchronous())
    begin(stage.coordinator, stage)
    comes(stage, 7)
    assert capsys.readouterr().err == ""
