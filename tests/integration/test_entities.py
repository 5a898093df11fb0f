"""The entity pipeline, with the built-in recogniser and with an endpoint that has its bad days."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import psrpc
from psrpc.actors.cluster import Cluster
from psrpc.entities import documents, pipeline, score
from psrpc.entities.gathering import Gathering
from psrpc.entities.llm import Endpoint, LlmProcessor
from psrpc.entities.patience import Backoff, RateLimit
from psrpc.entities.processor import Done, Processor
from psrpc.entities.rules import recognise
from psrpc.entities.words import Aggregate, Document, Entity, Kind, Result
from psrpc.errors import UsageError
from psrpc.examples import gathered, returned
from tests.processes import PATIENCE_S, PSRPC, Bench

TEXT = "Maria Keller of Siemens lives in Munich."
FOUND = [
    {"kind": "person", "text": "Maria Keller"},
    {"kind": "organization", "text": "Siemens"},
    {"kind": "location", "text": "Munich"},
]
GOOD = json.dumps({"entities": FOUND})

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Endpoint_(ThreadingHTTPServer):
    """Speaks the protocol of chat completions; `answers` are what it does, call by call."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.bodies: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Endpoint_
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(
                body | {"path": self.path, "key": self.headers["Authorization"]}
            )
            answer = self.server.answers.pop(0) if self.server.answers else says(GOOD)
        answer(self, len(self.server.bodies))

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def says(content: Any) -> Answer:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
    return lambda handler, _: handler.reply(200, json.dumps(body).encode())


def fails(status: int, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": "not today", "type": "x"}}).encode()
    return lambda handler, _: handler.reply(status, body, **headers)


def raw(body: bytes) -> Answer:
    return lambda handler, _: handler.reply(200, body)


def slow(handler: Any, _: int) -> None:
    handler.server.released.wait(PATIENCE_S)
    handler.close_connection = True


def cut(handler: Any, _: int) -> None:
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"id":')
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Endpoint_]:
    server = Endpoint_()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join(PATIENCE_S)
    server.server_close()


class Asked:
    """A processor of the endpoint, whose waits are noted and not waited for."""

    def __init__(self, server: Endpoint_, **options: Any) -> None:
        self.waits: list[float] = []
        base = f"http://127.0.0.1:{server.server_address[1]}/v1"
        settings = {"timeout_s": PATIENCE_S, "retries": 2, "price_in": 2.0, "price_out": 10.0}
        endpoint = Endpoint("m", "secret-key", base, **{**settings, **options})
        self.now_s = 0.0
        self.processor = LlmProcessor(endpoint, sleep=self.sleep, clock=self)

    def now(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        self.now_s += wait_s

    def extract(self, text: str = TEXT) -> Result:
        try:
            return self.processor.extract(Document("d", text))
        finally:
            self.processor.close()


def test_what_a_model_finds(server: Endpoint_) -> None:
    asked = Asked(server)
    assert asked.extract().as_json() == {"id": "d", "entities": FOUND}
    (body,) = server.bodies
    assert (body["path"], body["key"]) == ("/v1/chat/completions", "Bearer secret-key")
    assert body["messages"][1] == {"role": "user", "content": TEXT}
    assert body["response_format"] == {"type": "json_object"}
    usage = asked.processor.usage
    assert (usage.calls, usage.retries, usage.tokens_in, usage.tokens_out) == (1, 0, 100, 10)
    assert usage.cost == pytest.approx(0.0003)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (fails(429, Retry_After="7"), "HTTP 429"),
        (fails(500), "HTTP 500"),
        (fails(503), "HTTP 503"),
        (raw(b'{"choices": ['), ""),
        (raw(b"[]"), ""),
        (says("sorry"), "no JSON"),
        (says(None), "no JSON"),
        (says('{"names": []}'), "no list of entities"),
        (says('{"entities": [{"kind": "animal", "text": "Rex"}]}'), "no entity"),
        (cut, ""),
    ],
)
def test_a_failure_that_may_pass_is_tried_again(
    server: Endpoint_, answer: Answer, said: str
) -> None:
    server.answers = [answer, answer]
    asked = Asked(server)
    assert asked.extract().as_json() == {"id": "d", "entities": FOUND}
    assert len(asked.waits) == asked.processor.usage.retries == 2
    if said == "HTTP 429":
        assert asked.waits == [7.0, 7.0]
    server.answers = [answer] * 3
    failed = Asked(server).extract()
    assert failed.error is not None
    assert said in failed.error
    assert failed.error.endswith("tried 3 times")
    assert "\n" not in failed.error
    assert len(server.bodies) == 6


def test_a_failure_that_stays_is_not_tried_again(server: Endpoint_) -> None:
    server.answers = [fails(401)]
    failed = Asked(server).extract()
    assert failed.error is not None
    assert failed.error.startswith("HTTP 401: ")
    assert "secret-key" not in failed.error
    assert len(server.bodies) == 1


def test_an_endpoint_that_is_slow_or_gone(server: Endpoint_) -> None:
    server.answers = [slow]
    late = Asked(server, timeout_s=0.1, retries=0).extract()
    assert late.error == "no answer within 0.1 s; tried 1 times"
    endpoint = Endpoint("m", "k", "http://127.0.0.1:9/v1", retries=0)
    gone = LlmProcessor(endpoint).extract(Document("d", TEXT))
    assert gone.error is not None
    assert "tried 1 times" in gone.error


def test_names_that_are_not_in_the_document_are_left_out(server: Endpoint_) -> None:
    asked = Asked(server)
    assert asked.extract("Only Munich.").entities == (Entity(Kind.LOCATION, "Munich"),)
    assert asked.processor.usage.made_up == 2


def test_patience() -> None:
    backoff = Backoff(1.0, 8.0)
    assert [backoff.wait_s(n, 0.0) for n in (0, 1, 2, 3, 4, 999)] == [1, 2, 4, 8, 8, 8]
    assert backoff.wait_s(1, 0.5) == 1.5
    assert backoff.wait_s(0, 0.0, 5.0) == 5
    assert backoff.wait_s(0, 0.0, 1e9) == 60
    limit = RateLimit(60)
    assert [limit.book(now) for now in (0, 0, 0.5, 9)] == [0, 1, 1.5, 0]
    limit.hold(9, 5)
    limit.hold(9, 2)
    assert [limit.book(now) for now in (9, 15, 15)] == [5, 0, 1]
    assert [RateLimit(None).book(0) for _ in range(3)] == [0, 0, 0]


def test_a_rate_limit_spreads_calls(server: Endpoint_) -> None:
    asked = Asked(server, per_minute=0.001)
    for _ in range(3):
        asked.processor.extract(Document("d", TEXT))
    asked.processor.close()
    assert [round(wait / 60_000) for wait in asked.waits] == [1, 1]


def test_the_built_in_recogniser_is_as_good_as_the_readme_says() -> None:
    scores = score.score(recognise)
    assert all(each.there >= 30 for each in scores.values())
    for text, expected in score.labelled():
        assert all(entity.text in text for entity in expected)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for kind, each in scores.items():
        assert f"| {kind} | {each.precision:.2f} | {each.recall:.2f} |" in readme


@pytest.mark.parametrize("text", ["", ".", "A", "O'Neil's", "van", "É", "x\x00Y " * 500, "Mr. "])
def test_odd_texts_are_no_problem(text: str) -> None:
    for entity in recognise(text):
        assert entity.text in text


def test_each_document_counts_once() -> None:
    aggregate = Aggregate()
    result = Result("d", (Entity(Kind.PERSON, "Ada"), Entity(Kind.PERSON, "Ada")))
    assert [aggregate.add(Result.of_json(result.as_json())) for _ in range(3)] == [1, 0, 0]
    assert not aggregate.add(Result("d", error="late"))
    assert aggregate.add(Result("e", error="no"))
    counts = aggregate.as_json()
    assert (counts["documents"], counts["failed"], aggregate.duplicates) == (2, 1, 3)
    assert counts["entities"] == {"person": 2, "organization": 0, "location": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with psrpc.init(num_cpus=2, num_gpus=0, imports=["torch", "wave", "no_such_module"]) as cluster:
        yield cluster


class Seen:
    def has(self, name: str) -> bool:
        return name in sys.modules


def test_a_node_imports_what_it_is_told(cluster: Cluster) -> None:
    actor = psrpc.actor(Seen).remote()
    assert psrpc.get([actor.has.remote("wave"), actor.has.remote("tabnanny")]) == [True, False]


class Failing(Processor):
    def extract(self, name: str, text: str) -> Done:
        if name == "3":
            raise ZeroDivisionError("by three")
        return super().extract(name, text)


def failing(workers: int) -> psrpc.Pool:
    return psrpc.Pool(Failing, workers, own_process=False)


def test_a_document_that_fails_is_reported(cluster: Cluster) -> None:
    many = [Document(str(number), TEXT) for number in range(50)]
    with failing(4) as pool:
        results = {d.result.document: d.result for d in pipeline.run(many, pool, 4)}
    assert len(results) == 50
    assert results.pop("3").error == "ZeroDivisionError: by three"
    assert {result.entities for result in results.values()} == {tuple(recognise(TEXT))}


def test_documents_are_read_no_faster_than_they_are_done(cluster: Cluster) -> None:
    read: list[int] = []

    def many() -> Iterator[Document]:
        for number in range(100):
            read.append(number)
            yield Document(str(number), "")

    with failing(2) as pool:
        results = pipeline.run(many(), pool, 2)
        next(results)
        assert len(read) <= 6
        assert len(list(results)) == 99
    read.clear()
    with Gathering(None, 2) as gathering:
        lines = gathering.run(many())
        next(lines)
        assert len(read) <= 12
        assert len(list(lines)) == 99
        assert len(gathering.counts()[0]) == 100


def test_processors_share_a_rate_limit(cluster: Cluster, server: Endpoint_) -> None:
    base = f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.answers = [fails(429, Retry_After="0.5")]
    endpoint = Endpoint("m", "k", base, PATIENCE_S, 2, 1200.0)
    began_s = time.monotonic()
    with pipeline.processors(endpoint, 4) as pool:
        many = [Document(str(number), TEXT) for number in range(12)]
        done = list(pipeline.run(many, pool, 4))
    assert [each.result.error for each in done] == [None] * 12
    assert sum(each.usage.calls for each in done) == len(server.bodies) == 13
    assert sum(each.usage.retries for each in done) == 1
    # Twelve calls after the first, 0.05 s apart for all members together; one of them is held up.
    assert time.monotonic() - began_s > 0.5 + 11 * 0.05 - 0.2


@pytest.mark.parametrize("example", [returned, gathered])
def test_the_examples(cluster: Cluster, example: Any) -> None:
    expected = Aggregate()
    for place, (text, _) in enumerate(score.labelled()):
        expected.add(Result(str(place), tuple(recognise(text))))
    assert example.main([]).as_json() == expected.as_json()


def test_the_command(bench: Bench, server: Endpoint_) -> None:
    bench.write("a.txt", TEXT)
    lines = [{"id": "x", "text": "Nobody was there."}, {"id": "x", "text": TEXT}, {"text": TEXT}]
    bench.write("b.jsonl", "\n".join(map(json.dumps, lines)))
    ended = bench.run(*PSRPC, "entities", "a.txt", "b.jsonl", "--workers", "1")
    assert ended.code == 0, ended.err
    *results, counts = map(json.loads, ended.out.splitlines())
    assert [line["id"] for line in results] == ["a.txt", "x", "b.jsonl:3"]
    assert counts["counts"]["documents"] == 3
    assert counts["counts"]["frequent"]["location"] == {"Munich": 2}
    assert "x came twice" in ended.err
    assert counts["counts"]["recogniser"] == "built-in rules"
    ended = bench.run(*PSRPC, "entities", "a.txt", "b.jsonl", "--gather")
    assert ended.code == 0, ended.err
    *lines, again = map(json.loads, ended.out.splitlines())
    assert sorted(map(str, lines)) == sorted(map(str, results))
    assert again == counts
    ended = bench.run(*PSRPC, "entities", "a.txt", "/nope.txt")
    assert (ended.code, ended.out) == (2, "")
    assert ended.lines == ["Error: cannot read /nope.txt: No such file or directory"]

    base = f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.answers = [fails(400)]
    words = ("entities", "a.txt", "b.jsonl", "--model", "m", "--workers", "1")
    ended = bench.run(*PSRPC, *words, OPENAI_API_KEY="k", OPENAI_BASE_URL=base)
    assert ended.code == 1
    *results, counts = map(json.loads, ended.out.splitlines())
    assert results[0]["error"].startswith("HTTP 400")
    assert counts["counts"]["usage"]["tokens_in"] == 200  # x once
    assert "a.txt failed: HTTP 400" in ended.err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "cannot read"),
        ("bad.jsonl", "{", "line 1 is no JSON"),
        ("bad.jsonl", '\n{"id": 1}', 'line 2 has no "text"'),
        ("bad.txt", b"\xff\xfe\xff", "not text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, name: str, text: str | bytes | None, said: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said):
        list(documents.read([str(path)]))
