"""Fetching checksummed archives from whichever mirror answers.

torchvision's own download has no time limit, prints progress bars, and unpacks
in place, so that an interrupted one is later mistaken for the data.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_ANSWER_S = 8.0
_READ_S = 30.0


def unpacked_name(archive: str) -> str:
    """Return the name of the file that `archive`, "name.gz", holds."""
    return archive.removesuffix(".gz")


def download(archives: Iterable[tuple[str, str]], mirrors: Sequence[str], folder: Path) -> None:
    """Put the contents of gzip `archives`, pairs of (name, md5), into `folder`.

    An archive that lies in `folder` already is used instead of fetched.
    Everything is fetched before anything is written, and each file appears at
    once and whole, so that processes may do this at the same time. Blocks; fails
    within 8 s if none of `mirrors` (addresses that end in a slash) answers.
    Raises OSError, with a text of one line.
    """
    contents: dict[str, bytes] = {}
    mirror: str | None = None
    for archive, md5 in archives:
        packed = _local(folder / archive, md5)
        if packed is None:
            mirror = mirror or _first_to_answer(mirrors, archive)
            packed = _fetch(mirror + archive, md5)
        contents[unpacked_name(archive)] = gzip.decompress(packed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _write(folder / name, content)


def _local(archive: Path, md5: str) -> bytes | None:
    try:
        packed = archive.read_bytes()
    except OSError:
        return None
    return packed if _md5(packed) == md5 else None


def _first_to_answer(mirrors: Sequence[str], archive: str) -> str:
    # Asked in threads that may be left behind, because neither a name that does
    # not resolve nor a host with many silent addresses keeps to a socket's timeout.
    answers: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    for mirror in mirrors:
        threading.Thread(target=_ask, args=(mirror, archive, answers), daemon=True).start()
    deadline = monotonic() + _ANSWER_S
    reasons = set()
    for _ in mirrors:
        try:
            mirror, reason = answers.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            reasons.add(f"no answer within {_ANSWER_S:g} s")
            break
        if reason is None:
            return mirror
        reasons.add(reason)
    raise OSError("no mirror can be reached: " + "; ".join(sorted(reasons)))


def _ask(mirror: str, archive: str, answers: SimpleQueue[tuple[str, str | None]]) -> None:
    try:
        with _open(mirror + archive, _ANSWER_S):
            answers.put((mirror, None))
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", error)
        answers.put((mirror, getattr(reason, "strerror", None) or str(reason)))


def _fetch(url: str, md5: str) -> bytes:
    try:
        with _open(url, _READ_S) as response:
            packed: bytes = response.read()
    except HTTPException as error:
        raise OSError(f"{url} broke off: {error!r}") from error
    if _md5(packed) != md5:
        raise OSError(f"{url} has another checksum than it should have")
    return packed


def _open(url: str, timeout_s: float) -> Any:
    # Some mirrors refuse urllib's own name.
    return urlopen(Request(url, headers={"User-Agent": "psrpc"}), timeout=timeout_s)


def _md5(content: bytes) -> str:
    # `usedforsecurity`, because Pythons in FIPS mode refuse MD5 otherwise.
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
