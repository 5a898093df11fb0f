"""A thousand documents and kill -9 of a node, a taker and the aggregator: each counts once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import psrpc
from psrpc.actors.cluster import Cluster
from psrpc.actors.node import start_here
from psrpc.core.placement import Resources
from psrpc.entities import pipeline
from psrpc.entities.gathering import Gathering, Taker
from psrpc.entities.processor import Done, Processor
from psrpc.entities.rules import recognise
from psrpc.entities.words import Aggregate, Document, Result
from tests.processes import PATIENCE_S, wait_until

NAMES = ("Maria Keller", "Tom Baker", "Ada Byron", "Jane Miller")
PLACES = ("Munich", "Paris", "London")
DOCUMENTS = [
    Document(str(n), f"{NAMES[n % 4]} of Siemens lives in {PLACES[n % 3]}.") for n in range(1000)
]

Kill = Callable[[], None]


def expected() -> dict[str, Any]:
    aggregate = Aggregate()
    for document in DOCUMENTS:
        aggregate.add(Result(document.name, tuple(recognise(document.text))))
    return aggregate.as_json()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with psrpc.init(num_cpus=2, num_gpus=0) as cluster:
        yield cluster


@pytest.fixture
def second(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    node = start_here(cluster.address, "second", Resources(2.0, 0.0, 1 << 30), {})
    wait_until(lambda: "second" in ready(cluster), PATIENCE_S, lambda: "no second node")
    yield node
    node.kill()
    node.wait()


def ready(cluster: Cluster) -> list[str]:
    return [node["name"] for node in cluster.status()["nodes"] if node["ready"]]


def kill_one(cluster: Cluster, title: str) -> None:
    """Kill the process of some actor of this class, if need be when one is there again."""

    def killed() -> bool:
        for actor in cluster.status()["actors"]:
            if actor["title"] == title and actor["pid"]:
                with suppress(ProcessLookupError):  # it died, and that was not noticed yet
                    os.kill(actor["pid"], signal.SIGKILL)
                    return True
        return False

    wait_until(killed, PATIENCE_S, lambda: str(cluster.status()))


def read_while(lines: Iterator[str], kills: dict[int, Kill]) -> list[str]:
    found = []
    for line in lines:
        found.append(line)
        if len(found) in kills:
            kills.pop(len(found))()
    assert not kills
    return found


def test_through_a_tuple_space(cluster: Cluster, second: subprocess.Popen[bytes]) -> None:
    kills: dict[int, Kill] = {
        150: second.kill,
        400: lambda: kill_one(cluster, "Taker"),
        650: lambda: kill_one(cluster, "Aggregator"),
    }
    with Gathering(None, 3, own_process=True) as gathering:
        lines = read_while(gathering.run(DOCUMENTS), kills)
        aggregate, _ = gathering.counts()
    ids = [json.loads(line)["id"] for line in lines]
    assert sorted(ids, key=int) == [document.name for document in DOCUMENTS]
    assert aggregate.as_json() == expected()


class Deadly(Taker):
    def _read(self, name: str, text: str) -> Done:
        if text == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._read(name, text)


class Endangered(Gathering):
    taker = Deadly
    most_tries = 3


@pytest.mark.parametrize("own_process", [False, True])
def test_documents_that_kill_their_takers_are_reported(cluster: Cluster, own_process: bool) -> None:
    deadly = [Document(f"deadly {n}", "deadly") for n in range(2)]
    documents = [*DOCUMENTS[:20], *deadly, *DOCUMENTS[20:40]]
    with Endangered(None, 2, own_process=own_process) as gathering:
        lines = [json.loads(line) for line in gathering.run(documents)]
        aggregate, _ = gathering.counts()
    assert sorted(line["id"] for line in lines) == sorted(each.name for each in documents)
    errors = {line["id"]: line["error"] for line in lines if line.get("error")}
    assert errors == dict.fromkeys(
        (each.name for each in deadly), "ActorLostError: whoever read it died, 3 times"
    )
    assert len(aggregate.failed) == 2


class Untold(Taker):
    """The first that has found the end dies before it has said so."""

    def work(self) -> int:
        count = super().work()
        if self._space.try_take(("first",)) is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return count


class Ending(Gathering):
    taker = Untold

    def __exit__(self, kind: object, *rest: object) -> None:
        self._space.write(("first",))
        super().__exit__(kind, *rest)


@pytest.mark.parametrize("own_process", [False, True])
def test_a_taker_that_dies_at_the_very_end_keeps_nobody(
    cluster: Cluster, own_process: bool
) -> None:
    gathering = Ending(None, 2, own_process=own_process).__enter__()
    lines = list(gathering.run(DOCUMENTS[:10]))
    assert len(lines) == 10
    ends = threading.Thread(target=lambda: gathering.__exit__(None), daemon=True)
    ends.start()
    ends.join(PATIENCE_S)
    assert not ends.is_alive()


def test_by_a_pool(cluster: Cluster, second: subprocess.Popen[bytes]) -> None:
    aggregate = Aggregate()
    kills: dict[int, Kill] = {
        150: second.kill,
        400: lambda: kill_one(cluster, "Processor"),
        650: lambda: kill_one(cluster, "Processor"),
    }
    with psrpc.Pool(Processor, 3, max_retries=10) as pool:
        results = (done.result for done in pipeline.run(DOCUMENTS, pool, 3))
        read_while((r.as_line() for r in results if aggregate.add(r)), kills)
    assert aggregate.as_json() == expected()
    assert aggregate.duplicates == 0
