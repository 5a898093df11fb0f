"""How tuples are dealt out to the owners of a space: by their first field."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from psrpc.core.patterns import ANY, Compare, Field, Joined
from psrpc.errors import UsageError

_SEQUENCES = (tuple, list)


def owners_of(fields: Sequence[Any], count: int) -> list[int]:
    """Those of `count` owners that may have such tuples. Raises UsageError for no sequence."""
    if type(fields) not in _SEQUENCES and (
        isinstance(fields, str | bytes) or not isinstance(fields, Sequence)
    ):
        raise UsageError(f"a tuple or pattern is a sequence of fields, not {fields!r:.100}")
    if count == 1 or not fields:
        return [0]
    first = fields[0]
    if first is ANY or isinstance(first, type | Compare | Joined | Field):
        return list(range(count))
    return [_owner_of(first, count)]


def _owner_of(first: Any, count: int) -> int:
    """The owner of tuples that begin with this: the same in every process, unlike `hash`."""
    kind = type(first)
    if kind not in (type(None), bool, int, float, str, bytes):
        return 0
    plain = first + 0.0 if kind is float else first  # -0.0 is 0.0
    return zlib.crc32(f"{kind.__name__}:{plain!r:.4000}".encode(errors="replace")) % count
