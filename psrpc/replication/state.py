"""A server's whole state as one: decisions, weights, optimizer, requests that are still open."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from psrpc.coordinator import Coordinator, Untrained
from psrpc.planes.freight import as_bytes
from psrpc.server import Call, Desk, ParameterServer
from psrpc.store.image import PieceImage, ShardImage

Replicated = Coordinator | ParameterServer


def server_of(service: Replicated) -> ParameterServer:
    """The shard's server of either kind."""
    return service.server if isinstance(service, Coordinator) else service


def capture(service: Replicated) -> tuple[dict[str, Any], list[torch.Tensor], Callable[[], None]]:
    """A copy of the state, its tensors beside, and what is to be called when it was sent.

    Nothing may come to the service meanwhile.
    """
    server = server_of(service)
    image = server.store.image()
    tensors: list[torch.Tensor] = []

    def beside(value: object) -> tuple[int | None, object]:
        if not isinstance(value, torch.Tensor):
            return None, value
        tensors.append(value)
        return len(tensors) - 1, None

    state: dict[str, Any] = {
        "shard": pickle.dumps(server.core),
        "pieces": [
            (beside(piece.weights), {key: beside(value) for key, value in piece.state.items()})
            for piece in image.pieces
        ],
        "options": image.options,
        "desk": _open_calls(server.desk, beside),
    }
    if isinstance(service, Coordinator):
        state["coordinator"] = pickle.dumps(service.core)
        state["words"] = _open_calls(service.desk, beside)
        state["meter"] = service.meter.counts()
        frozen, initial, of_worker = service.untrained()
        state["untrained"] = (
            [beside(tensor) for tensor in frozen],
            [beside(tensor) for tensor in initial],
            {w: (n, [beside(tensor) for tensor in ts]) for w, (n, ts) in of_worker.items()},
        )
    return state, tensors, image.release


def restore(service: Replicated, state: dict[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    """Be as the one whose state was captured; nobody waits for the open requests here."""

    def back(place: tuple[int | None, object]) -> Any:
        return place[1] if place[0] is None else tensors[place[0]]

    server = server_of(service)
    server.core = pickle.loads(state["shard"])
    pieces = [
        PieceImage(back(weights), {key: back(value) for key, value in entries.items()})
        for weights, entries in state["pieces"]
    ]
    server.store.restore(ShardImage(tuple(pieces), state["options"]))
    _reopen(server.desk, state["desk"], back)
    if isinstance(service, Coordinator):
        frozen, initial, of_worker = state["untrained"]
        untrained: Untrained = (
            [back(place) for place in frozen],
            [back(place) for place in initial],
            {w: (n, [back(place) for place in places]) for w, (n, places) in of_worker.items()},
        )
        service.take_over(pickle.loads(state["coordinator"]), untrained)
        service.meter.recount(state["meter"])
        _reopen(service.desk, state["words"], back)


def digest(service: Replicated) -> str:
    """A short text that two equal states share, and hardly two different ones."""
    server = server_of(service)
    checksum = 0
    for tensor in _tensors(server):
        checksum = zlib.crc32(as_bytes(tensor.contiguous().reshape(-1)), checksum)
    decisions = zlib.crc32(repr(sorted(server.core.record().items())).encode())
    return f"{checksum:08x}-{decisions:08x}"


def _tensors(server: ParameterServer) -> Iterator[torch.Tensor]:
    yield from server.store.flats
    for state in server.store.optimizer_state():
        for _, value in sorted(state.items()):
            if isinstance(value, torch.Tensor):
                yield value


Beside = Callable[[object], tuple[int | None, object]]


def _open_calls(desk: Desk, beside: Beside) -> tuple[int, list[Any]]:
    calls = [
        (token, call.request, [beside(tensor.clone()) for tensor in call.tensors])
        for token, call in desk.calls()
    ]
    return desk.next_token, calls


def _reopen(
    desk: Desk, record: tuple[int, list[Any]], back: Callable[[tuple[int | None, object]], Any]
) -> None:
    next_token, calls = record
    desk.reopen(
        next_token,
        [(token, Call(request, [back(p) for p in places])) for token, request, places in calls],
    )
