"""How `psrpc scale` speaks to a job."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from psrpc import scaling
from psrpc.environment import Place
from psrpc.job import Elastic, Job
from psrpc.lobby import Lobby, publish_lobby
from psrpc.modes import Asynchronous
from psrpc.secret import Secret

DEAD_AFTER_S = 0.5


class Store:
    """What a `Rendezvous` is to a job that says what it is, and to who wants to change it."""

    address = "127.0.0.1:29500"
    secret = Secret(b"a secret of these tests")

    def __init__(self) -> None:
        self.announced: dict[str, str] = {}

    def announce(self, key: str, value: str) -> None:
        self.announced[key] = value

    def read(self, keys: list[str]) -> list[str]:
        return ["127.0.0.1 1"] * len(keys)

    def sealed_branch(self, name: str) -> Any:
        return self

    def check(self, keys: list[str]) -> bool:
        return False


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_command_says_that_it_lives_as_often_as_its_job_wants(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    store: Any = Store()
    elastic = Elastic(dead_after_s=DEAD_AFTER_S)
    job = Job(1, 1, Asynchronous(), elastic=elastic, replicas=replicas)
    publish_lobby(store, job, Place(0, 2, 0, 2, "127.0.0.1", 29500, False, "job"))
    (text,) = store.announced.values()
    lobby = Lobby(**json.loads(text))
    way = scaling._to_whoever if replicas else scaling._to_the_one
    nobody: Any = None
    heart, _ = way(store, 7, nobody, lobby)
    assert heart._beat_s < DEAD_AFTER_S / 2
