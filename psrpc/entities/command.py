"""`psrpc entities`: what it reads, whom it asks, and what it writes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from psrpc import environment
from psrpc.actors.cluster import init
from psrpc.entities import documents, pipeline
from psrpc.entities.llm import Endpoint, Usage
from psrpc.entities.words import Aggregate, Document
from psrpc.errors import UsageError


def endpoint(
    model: str | None, offline: bool, limits: tuple[float, int, float | None]
) -> Endpoint | None:
    """The model to ask, from the options and the environment; None: the built-in recogniser.

    `limits` are a call's seconds, the tries after the first, and the calls a minute.
    """
    key, base_url = environment.model_endpoint()
    if offline and model is not None:
        raise UsageError("give --model or --offline, not both")
    if offline or (key is None and model is None):
        return None
    if key is None and base_url is None:
        raise UsageError("--model needs a key in OPENAI_API_KEY; without one leave --model out")
    if model is None:
        raise UsageError("OPENAI_API_KEY is set: give --model NAME, or --offline")
    timeout_s, retries, per_minute = limits
    return Endpoint(model, key or "none", base_url, timeout_s, retries, per_minute)


def run(
    names: Sequence[str],
    model: Endpoint | None,
    workers: int,
    write: Callable[[str], None],
    tell: Callable[[str], None],
    *,
    gather: bool = False,
) -> int:
    """Write a JSON line for each document as it is done, and the counts as the last one.

    With `gather` documents and results go through a tuple space, to an actor that counts them.
    Returns the exit code: 0, or 1 if a document failed.
    """
    documents.check(names)
    each = _once(documents.read(names), tell)
    with init(imports=[*(["openai"] if model else []), *(["torch"] if gather else [])]):
        way = _gathered if gather else _returned
        aggregate, usage = way(each, model, workers, write)
    counts = aggregate.as_json()
    counts["recogniser"] = "built-in rules" if model is None else model.model
    if model is not None:
        counts["usage"] = dataclasses.asdict(usage)
    write(json.dumps({"counts": counts}, ensure_ascii=False))
    for name, error in aggregate.failed.items():
        tell(f"{name} failed: {error}")
    return 1 if aggregate.failed else 0


def _returned(
    each: Iterable[Document], model: Endpoint | None, workers: int, write: Callable[[str], None]
) -> tuple[Aggregate, Usage]:
    aggregate, usage = Aggregate(), Usage()
    with pipeline.processors(model, workers) as pool:
        for done in pipeline.run(each, pool, workers):
            usage.add(done.usage)
            aggregate.add(done.result)
            write(done.result.as_line())
    return aggregate, usage


def _gathered(
    each: Iterable[Document], model: Endpoint | None, workers: int, write: Callable[[str], None]
) -> tuple[Aggregate, Usage]:
    from psrpc.entities.gathering import Gathering  # which needs torch, and so a second

    with Gathering(model, workers) as gathering:
        for line in gathering.run(each):
            write(line)
        return gathering.counts()


def _once(each: Iterable[Document], tell: Callable[[str], None]) -> Iterator[Document]:
    """Without those whose name has come before."""
    names: set[str] = set()
    for document in each:
        if document.name in names:
            tell(f"{document.name} came twice, and is counted once")
        else:
            names.add(document.name)
            yield document


def write_line(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
