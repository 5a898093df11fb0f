"""Files that are hashed while they are written, and are on the disk when they are finished."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import torch

from psrpc.checkpoints.parts import Entry, FileMark, Kind, Part
from psrpc.errors import CheckpointError
from psrpc.importing import cause
from psrpc.store.layout import dtype_name


class _HashedFile:
    """A file that is written from front to back. SHA-256 is done without the interpreter's lock."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        at = 0
        while at < len(view):
            at += self._file.write(view[at:]) or 0
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def finish(self) -> str:
        """Wait until the disk has it all; returns the hash."""
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PartWriter:
    """Writes one process's file of a checkpoint. Used by one thread; blocks on the disk.

    Raises CheckpointError for a file that cannot be written and for values that could not
    be read again without running code.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._entries: list[Entry] = []

    def __enter__(self) -> PartWriter:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _HashedFile(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(
        self,
        kind: Kind,
        name: str,
        value: Any,
        *,
        key: str = "",
        first_row: int = 0,
        spread: bool = False,
    ) -> None:
        """Write a tensor or a plain value."""
        offset = self._file.size_bytes
        dtype: str | None = None
        shape: tuple[int, ...] = ()
        with writing(self._path):
            if isinstance(value, torch.Tensor):
                dtype, shape = dtype_name(value.dtype), tuple(value.shape)
                torch.save(_alone(value), cast(IO[bytes], self._file))
            else:
                self._file.write(_plain(value, f"{name} {key}".strip()))
        length = self._file.size_bytes - offset
        self._entries.append(
            Entry(kind, name, offset, length, key, first_row, dtype, shape, spread)
        )

    def finish(self, facts: Mapping[str, Any]) -> Part:
        """Wait for the disk and say what was written."""
        with writing(self._path):
            sha256 = self._file.finish()
        mark = FileMark(self._path.name, self._file.size_bytes, sha256)
        return Part(mark, tuple(self._entries), dict(facts))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translates what the system says when a file cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be written: {cause(error)}") from error


def mark_of(path: Path) -> FileMark:
    """Read a file through. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileMark(path.name, file.tell(), digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file, and wait until the disk has it. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own: `torch.save` writes all that a view is a part of."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.nbytes == tensor.untyped_storage().nbytes() or not tensor.nbytes:
        return tensor
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _plain(value: Any, what: str) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{what!r} is a {type(value).__name__}, which a checkpoint cannot hold (numbers, "
            "text, tensors, and lists and dictionaries of them)"
        ) from error
    return buffer.getvalue()
