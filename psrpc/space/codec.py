"""Tuples and patterns as JSON, arrays and bytes beside it. Nothing is pickled.

Numbers, text, True, False, None and lists are themselves; what JSON has no word for is an
object of one name: `t` a tuple, `d` a dict's pairs, `b` bytes and their number, `a` a numpy
array and `T` a tensor (dtype, shape, number of bytes); of a pattern `*` anything, `is` a
type's name, `op` a comparison, `join` several of them. The owner of a tuple has no need to
know more of an array than that (`Block`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from psrpc.core.patterns import (
    ANY,
    TYPE_NAMES,
    TYPES,
    Any_,
    Compare,
    Field,
    Joined,
    OfType,
    Pattern,
    Test,
)
from psrpc.errors import ProtocolError, UsageError
from psrpc.space.frames import Blob
from psrpc.store.layout import torch_dtype

DEEPEST = 32  # lists within lists
_MOST_BITS = 4096
_PLAIN = frozenset({type(None), bool, float, str})
_COME = _PLAIN | {int}  # what is as it came
_NUMPY_KINDS = frozenset("?biufcmMSU")
_TYPES = {**TYPES, np.ndarray: "array", torch.Tensor: "tensor"}


class Block:
    """A numpy array (`kind` is "array") or a tensor, as the owner of a tuple keeps it."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Blobs:
    """The blobs of a frame, to be taken in their order; `taken` has those that were."""

    def __init__(self, memory: memoryview) -> None:
        self.taken: list[memoryview] = []
        self._memory = memory
        self._at = 0

    def take(self, size_bytes: int) -> memoryview:
        """The next blob, which has this many bytes. Raises ProtocolError if it has not."""
        if type(size_bytes) is not int or not 0 <= size_bytes <= len(self._memory) - self._at:
            raise ProtocolError(f"a blob of {size_bytes} bytes that did not come")
        begin, self._at = self._at, self._at + size_bytes
        blob = self._memory
        if size_bytes != len(self._memory):
            # A copy, so that no tuple keeps the memory of a frame's others; aligned, as it is new.
            blob = memoryview(bytearray(self._memory[begin : self._at]))
        self.taken.append(blob)
        return blob

    def end(self) -> None:
        """Raises ProtocolError if there are more."""
        if self._at != len(self._memory):
            raise ProtocolError(f"{len(self._memory) - self._at} bytes that belong to nothing")


def pack_fields(fields: Sequence[Any], blobs: list[Blob]) -> list[Any]:
    """A tuple as JSON's values; `blobs` grows by its blobs. Raises UsageError."""
    return [field if type(field) in _PLAIN else pack_value(field, blobs) for field in fields]


def pack_value(value: Any, blobs: list[Blob], depth: int = 0) -> Any:
    """A field as JSON's values. Raises UsageError, with the type, if it cannot be one."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        if value.bit_length() > _MOST_BITS:
            raise UsageError(f"a tuple's integers have {_MOST_BITS} bits at most")
        return value
    if depth > DEEPEST:
        raise UsageError(f"a tuple's field may have {DEEPEST} lists within each other at most")
    if kind is list or kind is tuple:
        items = [pack_value(item, blobs, depth + 1) for item in value]
        return items if kind is list else {"t": items}
    if kind is dict:
        return {"d": [[pack_value(x, blobs, depth + 1) for x in pair] for pair in value.items()]}
    if kind is bytes:
        blobs.append(value)
        return {"b": len(value)}
    if isinstance(value, np.ndarray):
        return {"a": _pack_array(value, blobs)}
    if isinstance(value, torch.Tensor):
        return {"T": _pack_tensor(value, blobs)}
    if isinstance(value, Any_ | OfType | Compare | Joined | Field | type):
        raise UsageError(f"{value!r} stands for a whole field of a pattern, and is no value")
    raise UsageError(
        f"a tuple's field cannot be a {kind.__module__}.{kind.__qualname__}: give None, a bool, "
        "int, float, str, bytes, list, tuple or dict of these, a numpy array or a tensor"
    )


def _pack_array(array: np.ndarray[Any, Any], blobs: list[Blob]) -> list[Any]:
    if array.dtype.kind not in _NUMPY_KINDS:
        raise UsageError(f"an array of {array.dtype} cannot be in a tuple: its values are objects")
    memory = np.array(array, order="C", copy=True)  # the caller may change theirs meanwhile
    blobs.append(memoryview(memory.reshape(-1).view(np.uint8).data))
    return [array.dtype.str, list(array.shape), memory.nbytes]


def _pack_tensor(tensor: torch.Tensor, blobs: list[Blob]) -> list[Any]:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UsageError(f"a tensor must be dense to be in a tuple, this one is {tensor.layout}")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    flat = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    blobs.append(memoryview(flat.view(torch.uint8).numpy().data))
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), flat.nbytes]


def pack_pattern(fields: Sequence[Any], blobs: list[Blob]) -> list[Any]:
    """A pattern as JSON's values. Raises UsageError."""
    return [field if type(field) in _PLAIN else _pack_match(field, blobs) for field in fields]


def _pack_match(field: Any, blobs: list[Blob]) -> Any:
    if field is ANY:
        return {"*": 0}
    if type(field) is int:
        return pack_value(field, blobs)
    if isinstance(field, type):
        if field not in _TYPES:
            known = ", ".join(kind.__name__ for kind in _TYPES)
            raise UsageError(f"a pattern knows no type {field.__name__}, but {known}")
        return {"is": _TYPES[field]}
    if isinstance(field, Compare | Joined):
        try:
            Pattern([field])
        except ValueError as error:
            raise UsageError(str(error)) from None
        return _pack_test(field, blobs)
    if isinstance(field, np.ndarray | torch.Tensor):
        raise UsageError(f"a pattern cannot have an array in it: give {type(field).__name__}")
    return pack_value(field, blobs)


def _pack_test(test: Test, blobs: list[Blob]) -> Any:
    if isinstance(test, Compare):
        return {"op": [test.name, pack_value(test.value, blobs)]}
    return {"join": [test.name, [_pack_test(part, blobs) for part in test.parts]]}


Wire = Any
Make = Callable[[str, Any, memoryview], Any]


def make_block(kind: str, _: Any, __: memoryview) -> Any:
    """An array as its owner keeps it."""
    return Block(kind)


def make_array(kind: str, about: Any, memory: memoryview) -> Any:
    """The array or tensor itself, in that memory."""
    name, shape, _ = about
    if kind == "array":
        if not len(memory):
            return np.empty(shape, np.dtype(name))
        return np.frombuffer(memory, np.uint8).view(np.dtype(name)).reshape(shape)
    dtype = torch_dtype(name)
    if not len(memory):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)


def unpack_fields(wire: Wire, blobs: Blobs, make: Make) -> tuple[Any, ...]:
    """The tuple that `pack_fields` packed. Raises ProtocolError if it packed none."""
    if type(wire) is not list:
        raise ProtocolError("a tuple that is no list")
    return tuple(
        [field if type(field) in _COME else _unpack(field, blobs, make, 0) for field in wire]
    )


def _unpack(wire: Wire, blobs: Blobs, make: Make, depth: int) -> Any:
    kind = type(wire)
    if kind in _COME:
        return wire
    if depth > DEEPEST:
        raise ProtocolError("a field with too many lists within each other")
    if kind is list:
        return [_unpack(each, blobs, make, depth + 1) for each in wire]
    match wire:
        case {"t": list(items), **others} if not others:
            return tuple([_unpack(each, blobs, make, depth + 1) for each in items])
        case {"d": list(pairs), **others} if not others:
            return _unpack_dict(pairs, blobs, make, depth)
        case {"b": size, **others} if not others:
            return bytes(blobs.take(size))
        case {"a": [str(), list(), _] as about, **others} if not others:
            return make("array", about, blobs.take(about[2]))
        case {"T": [str(), list(), _] as about, **others} if not others:
            return make("tensor", about, blobs.take(about[2]))
    raise ProtocolError("a field that is none")


def _unpack_dict(pairs: list[Any], blobs: Blobs, make: Make, depth: int) -> dict[Any, Any]:
    found = {}
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2:
            raise ProtocolError("a dict that is none")
        key, value = (_unpack(each, blobs, make, depth + 1) for each in pair)
        try:
            found[key] = value
        except TypeError:
            raise ProtocolError("a dict whose key cannot be one") from None
    return found


def unpack_pattern(wire: Wire, blobs: Blobs) -> Pattern:
    """The pattern that `pack_pattern` packed. Raises ProtocolError if it packed none."""
    if type(wire) is not list:
        raise ProtocolError("a pattern that is no list")
    try:
        return Pattern(
            [field if type(field) in _COME else _unpack_match(field, blobs) for field in wire]
        )
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def _unpack_match(wire: Wire, blobs: Blobs) -> Any:
    if type(wire) is not dict:
        return _unpack(wire, blobs, make_block, 0)
    if type(kind := wire.get("is")) is str and kind in TYPE_NAMES:
        return OfType(kind)
    match wire:
        case {"*": _}:
            return ANY
        case {"op": _} | {"join": _}:
            return _unpack_test(wire, blobs, 0)
    return _unpack(wire, blobs, make_block, 0)


def _unpack_test(wire: Wire, blobs: Blobs, depth: int) -> Test:
    match wire:
        case {"op": [str(name), value]}:
            return Compare(name, _unpack(value, blobs, make_block, 0))
        case {"join": [str(name), list(parts)]} if depth < DEEPEST:
            return Joined(name, tuple(_unpack_test(part, blobs, depth + 1) for part in parts))
    raise ProtocolError("a comparison that is none")


def seconds(value: float | None) -> float | None:
    """A length of time as it is sent: None is without end. Raises UsageError for none at all."""
    try:
        if value is None or value == math.inf:
            return None
        if value >= 0:
            return float(value)
    except (TypeError, ValueError):
        pass
    raise UsageError(f"a length of time must be 0 seconds or more, not {value!r}")
