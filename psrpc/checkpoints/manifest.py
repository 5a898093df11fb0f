"""`psrpc.json`: what is in a checkpoint, whose it is, and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psrpc.checkpoints.outline import Names
from psrpc.checkpoints.parts import FileMark, Part
from psrpc.errors import CheckpointError
from psrpc.importing import cause

MANIFEST = "psrpc.json"
METADATA = ".metadata"
FORMAT = "psrpc checkpoint"
VERSION = 1

Signature = tuple[tuple[str, tuple[int, ...], str], ...]


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's table of contents.

    `model` is the blueprint's signature, `names` are its state_dict's (see `names_of`),
    `parts` the servers' in order; `job` is what concerns all of it, `metadata` torch's own.
    """

    number: int
    psrpc: str
    torch: str
    optimizer: str
    settings: Mapping[str, str]
    model: Signature
    names: Names
    parts: tuple[Part, ...]
    job: Part
    metadata: FileMark

    @property
    def files(self) -> tuple[FileMark, ...]:
        """All files but the manifest itself."""
        return (self.metadata, self.job.file, *(part.file for part in self.parts))


def dump(manifest: Manifest) -> bytes:
    """The manifest's file."""
    content = {
        "number": manifest.number,
        "psrpc": manifest.psrpc,
        "torch": manifest.torch,
        "optimizer": manifest.optimizer,
        "settings": dict(manifest.settings),
        "model": manifest.model,
        "names": manifest.names,
        "parts": [part.to_json() for part in manifest.parts],
        "job": manifest.job.to_json(),
        "metadata": asdict(manifest.metadata),
    }
    whole = {"format": FORMAT, "version": VERSION, "sha256": _hash(content), "content": content}
    return (json.dumps(whole, indent=1) + "\n").encode()


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError for whatever is wrong with it."""
    whole = _whole(folder)
    content = whole.get("content")
    if not isinstance(content, dict) or whole.get("sha256") != _hash(content):
        raise CheckpointError(
            f"{folder}/{MANIFEST} was changed after it was written (its checksum differs); "
            "use another checkpoint"
        )
    try:
        return _manifest(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}/{MANIFEST} cannot be understood: {cause(error)}; use another checkpoint"
        ) from error


def _whole(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        whole = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(_why_none(folder)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is truncated or damaged: {cause(error)}; use another checkpoint"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a checkpoint of psrpc: {MANIFEST} is another's")
    version = whole.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{folder} has version {version} of the format and this psrpc reads up to {VERSION}: "
            "install the psrpc that wrote it, or a newer one"
        )
    return whole


def _why_none(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if (folder / METADATA).exists():
        return f"{folder} is a checkpoint of PyTorch but not of psrpc: it has no {MANIFEST}"
    return f"{folder} is not a checkpoint of psrpc: it has no {MANIFEST}"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(content: dict[str, Any]) -> Manifest:
    return Manifest(
        number=content["number"],
        psrpc=content["psrpc"],
        torch=content["torch"],
        optimizer=content["optimizer"],
        settings=content["settings"],
        model=tuple((name, tuple(shape), dtype) for name, shape, dtype in content["model"]),
        names=tuple((name, kept) for name, kept in content["names"]),
        parts=tuple(Part.from_json(part) for part in content["parts"]),
        job=Part.from_json(content["job"]),
        metadata=FileMark(**content["metadata"]),
    )
