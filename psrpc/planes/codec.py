"""Values as bytes, and back: plain ones, listed records, tensors. Nothing else, and no code.

This takes the place of pickle wherever bytes come from another process. A record is a dataclass, a
named tuple or an enumeration that `know` was told of; it is made again by its own constructor.
What is decoded may come from anybody: it costs no more memory than a small multiple of its size.
"""

from __future__ import annotations

import dataclasses
import inspect
import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch

from psrpc import counts, messages, moves, orders
from psrpc.errors import ProtocolError
from psrpc.planes.freight import as_bytes

_DEEPEST = 32
_LENGTH = struct.Struct("<I")
_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_WHOLE = 1 << 63

# How a field's annotation, where it is as plain as that, is checked.
_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bytes": (bytes,),
    "bool": (bool,),
}
Fields = tuple[tuple[str, tuple[type, ...]], ...]

_records: dict[str, tuple[type, Fields]] = {}
_names: dict[type, bytes] = {}


def know(*kinds: type) -> None:
    """Let values of these types be sent. Their names must differ from all others'."""
    for kind in kinds:
        if _records.setdefault(kind.__name__, (kind, _fields_of(kind)))[0] is not kind:
            raise ValueError(f"there is another {kind.__name__}")
        _names[kind] = kind.__name__.encode()


def _fields_of(kind: type) -> Fields:
    if issubclass(kind, Enum):
        return ()
    if dataclasses.is_dataclass(kind):
        names = [(field.name, field.type) for field in dataclasses.fields(kind)]
    else:
        names = list(inspect.get_annotations(kind).items())
    return tuple((name, _PLAIN.get(str(note), (object,))) for name, note in names)


def records_of(module: Any) -> list[type]:
    """The dataclasses, named tuples and enumerations that a module defines."""
    found = [kind for kind in vars(module).values() if isinstance(kind, type)]
    return [kind for kind in found if kind.__module__ == module.__name__ and _is_record(kind)]


def _is_record(kind: type) -> bool:
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return named or dataclasses.is_dataclass(kind) or issubclass(kind, Enum)


for _module in (counts, messages, moves, orders):
    know(*records_of(_module))


def encode(value: object, beside: list[torch.Tensor] | None = None) -> bytes:
    """A value as bytes; its tensors are put into `beside`, or, without that, are among the bytes.

    Raises ProtocolError if it holds something that is not to be sent.
    """
    out: list[bytes] = []
    _put(value, out, beside)
    return b"".join(out)


def decode(data: bytes, beside: Sequence[torch.Tensor] = ()) -> Any:
    """The value that `encode` made bytes of. Raises ProtocolError for any other bytes."""
    reader = _Reader(data, beside)
    try:
        value = reader.value(0)
    except (struct.error, ValueError, TypeError, LookupError, OverflowError, RuntimeError) as error:
        raise ProtocolError(f"a garbled message ({type(error).__name__}: {error})") from None
    if reader.at != len(data):
        raise ProtocolError(f"a garbled message ({len(data) - reader.at} bytes too many)")
    return value


def _put(value: object, out: list[bytes], beside: list[torch.Tensor] | None) -> None:
    kind = type(value)
    if kind in _names:
        _put_record(value, kind, out, beside)
    elif value is None or kind is bool:
        out.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int):
        small = -_WHOLE <= value < _WHOLE
        out.append(b"i" + _INT.pack(value) if small else b"I" + _sized(str(int(value)).encode()))
    elif isinstance(value, float):
        out.append(b"d" + _FLOAT.pack(value))
    elif isinstance(value, str):
        out.append(b"s" + _sized(value.encode("utf-8", "surrogatepass")))
    elif isinstance(value, bytes):
        out.append(b"b" + _sized(value))
    elif isinstance(value, tuple | list):
        out.append((b"(" if isinstance(value, tuple) else b"[") + _LENGTH.pack(len(value)))
        for each in value:
            _put(each, out, beside)
    elif isinstance(value, dict):
        out.append(b"{" + _LENGTH.pack(len(value)))
        for pair in value.items():
            for each in pair:
                _put(each, out, beside)
    elif isinstance(value, torch.Tensor):
        _put_tensor(value, out, beside)
    elif isinstance(value, torch.dtype):
        out.append(b"y" + _sized(str(value).removeprefix("torch.").encode()))
    elif hasattr(value, "dtype") and hasattr(value, "item"):  # a number of numpy's
        _put(value.item(), out, beside)
    else:
        raise ProtocolError(
            f"a {kind.__module__}.{kind.__qualname__} cannot be sent: only numbers, strings, "
            "tensors, and tuples, lists and dicts of these can"
        )


def _put_record(
    value: Any, kind: type, out: list[bytes], beside: list[torch.Tensor] | None
) -> None:
    out.append(b"R" + _sized(_names[kind]))
    if isinstance(value, Enum):
        out.append(_sized(value.name.encode()))
        return
    for name, _ in _records[kind.__name__][1]:
        _put(getattr(value, name), out, beside)


def _put_tensor(value: torch.Tensor, out: list[bytes], beside: list[torch.Tensor] | None) -> None:
    if beside is not None:
        out.append(b"@" + _LENGTH.pack(len(beside)))
        beside.append(value)
        return
    flat = value.detach().cpu().contiguous().reshape(-1)
    out.append(b"t")
    _put(value.dtype, out, None)
    _put(tuple(value.shape), out, None)
    out.append(_sized(bytes(as_bytes(flat)) if flat.numel() else b""))


def _sized(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


class _Reader:
    """Reads values one after the other. Raises what its parts raise."""

    def __init__(self, data: bytes, beside: Sequence[torch.Tensor]) -> None:
        self.at = 0
        self._data = data
        self._beside = beside

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("too deep")
        read = _READERS[self._take(1)]
        return read(self, depth + 1)

    def _take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        if len(taken) != size:
            raise ValueError("cut short")
        self.at += size
        return taken

    def _length(self) -> int:
        length = int(_LENGTH.unpack(self._take(_LENGTH.size))[0])
        if length > len(self._data) - self.at:  # everything takes a byte at least
            raise ValueError(f"a length of {length}")
        return length

    def sized(self) -> bytes:
        return self._take(self._length())

    def whole(self, depth: int) -> int:
        return int(_INT.unpack(self._take(_INT.size))[0])

    def large(self, depth: int) -> int:
        return int(self.sized())

    def real(self, depth: int) -> float:
        return float(_FLOAT.unpack(self._take(_FLOAT.size))[0])

    def text(self, depth: int) -> str:
        return self.sized().decode("utf-8", "surrogatepass")

    def several(self, depth: int) -> list[Any]:
        return [self.value(depth) for _ in range(self._length())]

    def pairs(self, depth: int) -> dict[Any, Any]:
        return {self.value(depth): self.value(depth) for _ in range(self._length())}

    def record(self, depth: int) -> Any:
        kind, fields = _records[self.sized().decode()]
        if issubclass(kind, Enum):
            return kind[self.sized().decode()]
        values = []
        for name, kinds in fields:
            value = self.value(depth)
            if not isinstance(value, kinds) or (isinstance(value, bool) and int in kinds):
                raise TypeError(f"{kind.__name__}.{name} is a {type(value).__name__}")
            values.append(value)
        return kind(*values)

    def dtype(self, depth: int) -> torch.dtype:
        found = getattr(torch, self.sized().decode(), None)
        if not isinstance(found, torch.dtype):
            raise ValueError("no dtype")
        return found

    def tensor(self, depth: int) -> torch.Tensor:
        dtype, shape, data = self.value(depth), self.value(depth), self.sized()
        if not isinstance(dtype, torch.dtype):
            raise ValueError("no dtype")
        flat = torch.empty(len(data) // dtype.itemsize, dtype=dtype)
        if flat.nbytes != len(data):
            raise ValueError("half an element")
        if data:
            as_bytes(flat)[:] = data
        return flat.reshape(shape)

    def beside(self, depth: int) -> torch.Tensor:
        index: int = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        return self._beside[index]


_READERS: dict[bytes, Callable[[_Reader, int], Any]] = {
    b"N": lambda reader, depth: None,
    b"T": lambda reader, depth: True,
    b"F": lambda reader, depth: False,
    b"i": _Reader.whole,
    b"I": _Reader.large,
    b"d": _Reader.real,
    b"s": _Reader.text,
    b"b": lambda reader, depth: reader.sized(),
    b"(": lambda reader, depth: tuple(reader.several(depth)),
    b"[": _Reader.several,
    b"{": _Reader.pairs,
    b"R": _Reader.record,
    b"t": _Reader.tensor,
    b"@": _Reader.beside,
    b"y": _Reader.dtype,
}
