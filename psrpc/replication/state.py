"""A server's whole state as one: decisions, weights, optimizer, requests that are still open."""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch

from psrpc.coordinator import Coordinator, Untrained
from psrpc.desk import Call, Desk
from psrpc.errors import ProtocolError
from psrpc.planes.freight import as_bytes
from psrpc.replication.entries import Rows
from psrpc.server import ParameterServer
from psrpc.store.image import PieceImage, ShardImage
from psrpc.store.shard import ShardStore
from psrpc.store.state import Option

Replicated = Coordinator | ParameterServer


def server_of(service: Replicated) -> ParameterServer:
    """The shard's server of either kind."""
    return service.server if isinstance(service, Coordinator) else service


def capture(service: Replicated) -> tuple[dict[str, Any], list[torch.Tensor], Callable[[], None]]:
    """A copy of the state, its tensors beside, and what is to be called when it was sent.

    Nothing may come to the service meanwhile.
    """
    server, ahead = server_of(service), server_of(service).next
    server.catch_up()
    tensors: list[torch.Tensor] = []
    beside = _beside(tensors)
    image = server.store.image()
    coming = None if ahead is None else ahead[2].image()
    state: dict[str, Any] = {
        "shard": pickle.dumps(server.core),
        "layout": (server.layout, server.servers, server.left, server.fresh),
        "store": _packed(image, beside),
        "next": None if ahead is None or coming is None else (*ahead[:2], _packed(coming, beside)),
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

    def release() -> None:
        image.release()
        if coming is not None:
            coming.release()

    return state, tensors, release


def restore(service: Replicated, state: dict[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    """Be as the one whose state was captured; nobody waits for the open requests here."""
    back = _back(tensors)
    server = server_of(service)
    layout, servers, left, fresh = state["layout"]
    store = server.store if servers == server.servers else server.new_store(servers)
    store.restore(_unpacked(state["store"], back))
    server.begin_as(layout, servers, decisions(state["shard"]), store)
    server.left, server.fresh, server.next = left, fresh, None
    if state["next"] is not None:
        layout, servers, packed = state["next"]
        store = server.new_store(servers)
        store.restore(_unpacked(packed, back))
        server.prepare(layout, servers, store)
    _reopen(server.desk, state["desk"], back)
    if isinstance(service, Coordinator):
        frozen, initial, of_worker = state["untrained"]
        untrained: Untrained = (
            [back(place) for place in frozen],
            [back(place) for place in initial],
            {w: (n, [back(place) for place in places]) for w, (n, places) in of_worker.items()},
        )
        service.take_over(decisions(state["coordinator"]), untrained)
        service.meter.recount(state["meter"])
        _reopen(service.desk, state["words"], back)


def rows_of(
    layout: int, servers: int, store: ShardStore, core: bytes
) -> tuple[Rows, list[torch.Tensor]]:
    """A shard that was made for a new layout, as an entry; see `take_rows`."""
    tensors: list[torch.Tensor] = []
    beside = _beside(tensors)
    return Rows(layout, servers, _packed(store.image(), beside), core), tensors


def take_rows(service: Replicated, rows: Rows, tensors: Sequence[torch.Tensor]) -> None:
    """Have the rows for a new layout, if one is still under way; a new server begins in it."""
    back = _back(tensors)
    server = server_of(service)
    if not server.fresh and server.core.moving != rows.layout:
        return  # it was given up
    store = server.new_store(rows.servers)
    store.restore(_unpacked(rows.shard, back))
    if server.fresh:
        server.begin_in(rows.layout, rows.servers, decisions(rows.decisions), store)
    else:
        server.prepare(rows.layout, rows.servers, store)


class _Decisions(pickle.Unpickler):
    """Makes again what decides, of types of the core, of what it speaks of, and plain ones.

    Its bytes come from the shard's primary, which has proved that it is of the job.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_OF_DECISIONS) or (module, name) in _PLAIN:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise ProtocolError(f"{module}.{name} is no part of a server's state")


_OF_DECISIONS = ("psrpc.core.", "psrpc.counts", "psrpc.errors", "psrpc.messages", "psrpc.modes",
                 "psrpc.moves", "psrpc.orders")  # fmt: skip
_PLAIN = {
    *(("builtins", name) for name in ("dict", "frozenset", "int", "list", "set", "tuple")),
    *(("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    ("itertools", "count"),
}


def decisions(data: bytes) -> Any:
    """What decided elsewhere, of its bytes. Raises ProtocolError for what cannot be that."""
    return _Decisions(io.BytesIO(data)).load()


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
Back = Callable[[tuple[int | None, object]], Any]


def _beside(tensors: list[torch.Tensor]) -> Beside:
    """What puts tensors into a list, and says where they are there."""

    def beside(value: object) -> tuple[int | None, object]:
        if not isinstance(value, torch.Tensor):
            return None, value
        tensors.append(value)
        return len(tensors) - 1, None

    return beside


def _back(tensors: Sequence[torch.Tensor]) -> Back:
    """What takes them out of it again."""
    return lambda place: place[1] if place[0] is None else tensors[place[0]]


def _packed(image: ShardImage, beside: Beside) -> tuple[Any, ...]:
    pieces = [
        (beside(piece.weights), {key: beside(value) for key, value in piece.state.items()})
        for piece in image.pieces
    ]
    return pieces, [astuple(option) for option in image.options]


def _unpacked(packed: tuple[Any, ...], back: Back) -> ShardImage:
    pieces, options = packed
    made = (
        PieceImage(back(weights), {key: back(value) for key, value in entries.items()})
        for weights, entries in pieces
    )
    return ShardImage(tuple(made), tuple(Option(*option) for option in options))


def _open_calls(desk: Desk, beside: Beside) -> tuple[int, list[Any]]:
    calls = [
        (token, call.request, [beside(tensor.clone()) for tensor in call.tensors])
        for token, call in desk.calls()
    ]
    return desk.next_token, calls


def _reopen(desk: Desk, record: tuple[int, list[Any]], back: Back) -> None:
    next_token, calls = record
    desk.reopen(
        next_token,
        [(token, Call(request, [back(p) for p in places])) for token, request, places in calls],
    )
