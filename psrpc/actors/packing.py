"""Arguments, results and errors as bytes, at the moment at which they are handed over.

What cannot change later (numbers, text, bytes) travels as it is, in the pickle of a whole batch.
Everything else is packed at once, so that whoever sends it may change it afterwards. What the
user's script defines itself is sent by value, with its code: the other process has not run it.
"""

from __future__ import annotations

import importlib
import io
import pickle
import traceback
from types import ModuleType
from typing import Any

from psrpc.errors import PsrpcError, RemoteError, UsageError

FIXED = frozenset({int, float, bool, complex, type(None)})
PLAIN = FIXED | {str, bytes}
_BESIDE_BYTES = 1 << 16  # buffers from this size on travel beside the pickle, and are not copied
_LONGEST_PLAIN = 1 << 12

Packed = tuple[bytes, list[bytearray]]


def is_plain(value: object) -> bool:
    """Whether a value may travel as it is."""
    kind = type(value)
    return kind in PLAIN and (
        (kind is not bytes and kind is not str) or len(value) < _LONGEST_PLAIN  # type: ignore[arg-type]
    )


def pack(value: object) -> Packed:
    """A copy of `value` for another process. Raises UsageError if it cannot be sent."""
    beside: list[bytearray] = []

    def aside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _BESIDE_BYTES:
            return True
        beside.append(bytearray(view))
        return False

    file = io.BytesIO()
    try:
        pickler().Pickler(file, 5, buffer_callback=aside).dump(value)
    except PsrpcError:
        raise
    except Exception as error:
        raise UsageError(
            f"a {type(value).__name__} cannot be sent to another process "
            f"({type(error).__name__}: {error})"
        ) from error
    return file.getvalue(), beside


def unpack(packed: Packed) -> Any:
    """What `pack` made a copy of."""
    return pickle.loads(packed[0], buffers=packed[1])


def pack_error(error: BaseException) -> Packed:
    """An error with its traceback; one that cannot be sent becomes a RemoteError that tells it."""
    text = "".join(traceback.format_exception(error))
    name, said = type(error).__name__, str(error)
    try:
        packed = pack((error, text))
        unpack(packed)  # many an exception can be pickled, but not built again
    except Exception:
        return pack((RemoteError(f"{name}: {said}"), text))
    return packed


class _RemoteTraceback(Exception):
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


def unpack_error(packed: Packed) -> BaseException:
    """The error of another process, with its traceback there as its cause."""
    try:
        error, text = unpack(packed)
    except Exception as failure:
        return RemoteError(f"an error came that cannot be read here: {failure}")
    error.__cause__ = _RemoteTraceback(text)
    assert isinstance(error, BaseException)
    return error


def pack_definition(thing: Any) -> bytes:
    """A class or function: by its name if it can be imported elsewhere, else with its code."""
    return pack(thing)[0]


def pickler() -> ModuleType:
    """The library that packs code. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError as error:
        raise UsageError(
            "actors need cloudpickle, which is not installed: pip install cloudpickle"
        ) from error
