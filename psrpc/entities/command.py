"""`psrpc entities`: what it reads, whom it asks, and what it writes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence

from psrpc import environment
from psrpc.entities import documents, pipeline
from psrpc.entities.llm import Endpoint, LlmProcessor
from psrpc.entities.words import Aggregate
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
) -> int:
    """Write a JSON line for each document as it is done, and the counts as the last one.

    Returns the exit code: 0, or 1 if a document failed.
    """
    aggregate = Aggregate()
    processor = None if model is None else LlmProcessor(model)
    if processor is None:
        tell("without a model: the built-in recogniser, a simple one")
    extract = pipeline.offline if processor is None else processor.extract
    for result in pipeline.run(documents.read(names), extract, workers):
        if aggregate.add(result):
            write(json.dumps(result.as_json(), ensure_ascii=False))
        else:
            tell(f"{result.document} came twice, and is counted once")
    counts = aggregate.as_json()
    if processor is not None:
        counts["usage"] = dataclasses.asdict(processor.usage)
        processor.close()
    write(json.dumps({"counts": counts}, ensure_ascii=False))
    for name, error in aggregate.failed.items():
        tell(f"{name} failed: {error}")
    return 1 if aggregate.failed else 0


def write_line(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
