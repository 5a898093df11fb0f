"""What a checkpoint's files hold, as small values that go between processes and into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Kind(Enum):
    """What an entry is a part of."""

    MODEL = "model"  # the model's state_dict: parameters (rows of them), buffers
    STATE = "state"  # the optimizer's state of a parameter, or of rows of one
    FILL = "fill"  # zeros in the place of state that some rows of a parameter do not have yet
    OPTIONS = "options"  # the optimizer's changed options on one server
    GROUPS = "groups"  # the optimizer's param_groups, for plain PyTorch
    OWN = "own"  # tensors of the writer's own, by a name of its own


@dataclass(frozen=True)
class Entry:
    """One value in a file: `length` bytes from `offset`, as `torch.save` wrote it.

    `name` is a parameter's or a name of the model's state_dict, `key` one of the
    optimizer's state. A tensor has a `dtype` and a `shape`; with `spread` it is the rows
    from `first_row` on of one with more rows. Otherwise it is kept once for the rows of
    the parameter's piece that begins at `first_row`.
    """

    kind: Kind
    name: str
    offset: int
    length: int
    key: str = ""
    first_row: int = 0
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    spread: bool = False


@dataclass(frozen=True)
class FileMark:
    """A file as it was written."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """What one process has written: its file, what is in it, and facts (a value for JSON)."""

    file: FileMark
    entries: tuple[Entry, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """This part as a value for JSON; entries without what is usual."""
        return {
            "file": asdict(self.file),
            "facts": dict(self.facts),
            "entries": [_small(entry) for entry in self.entries],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Part:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        entries = tuple(
            Entry(**{**e, "kind": Kind(e["kind"]), "shape": tuple(e.get("shape", ()))})
            for e in record["entries"]
        )
        return cls(FileMark(**record["file"]), entries, dict(record["facts"]))


_USUAL = {"key": "", "first_row": 0, "dtype": None, "shape": (), "spread": False}


def _small(entry: Entry) -> dict[str, Any]:
    values = {**asdict(entry), "kind": entry.kind.value}
    return {k: v for k, v in values.items() if k not in _USUAL or v != _USUAL[k]}
