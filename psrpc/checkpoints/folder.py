"""A folder of checkpoints, numbered in the order in which they were made."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from psrpc.checkpoints.files import writing
from psrpc.checkpoints.parts import Part
from psrpc.checkpoints.reading import Checkpoint, open_checkpoint
from psrpc.checkpoints.writing import JobRecord, complete
from psrpc.errors import CheckpointError
from psrpc.store.blueprint import Blueprint

_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".partial"

Fits = Callable[[Checkpoint], object]
PassedOver = tuple[tuple[Path, str], ...]  # folders, and why each is not good


def checkpoints_in(directory: Path) -> list[Path]:
    """The finished checkpoints, good or not, the newest first."""
    found = _numbered(directory, "")
    return [found[number] for number in sorted(found, reverse=True)]


def partial_folder(directory: Path, number: int) -> Path:
    """Where all processes write the checkpoint with this number."""
    return directory / f"checkpoint-{number:08d}{_PARTIAL}"


def newest(
    directory: Path, blueprint: Blueprint | None = None, above: int = 0, fits: Fits | None = None
) -> tuple[Checkpoint | None, PassedOver]:
    """The newest good checkpoint, if there is one, and the newer ones with what is wrong.

    With a blueprint, those of another model or optimizer are passed over too; only those with
    a number above `above` count, and those for which `fits` raises no CheckpointError. Reads whole
    checkpoints.
    """
    passed: list[tuple[Path, str]] = []
    found = _numbered(directory, "")
    for number in sorted((n for n in found if n > above), reverse=True):
        folder = found[number]
        try:
            checkpoint = open_checkpoint(folder)
            if blueprint is not None:
                checkpoint.check(blueprint)
            if fits is not None:
                fits(checkpoint)
        except CheckpointError as error:
            passed.append((folder, str(error)))
        else:
            return checkpoint, tuple(passed)
    return None, tuple(passed)


class Checkpoints:
    """The coordinator's hand on a folder of checkpoints, of which it keeps the newest `keep`.

    Used by one thread at a time. Methods block on the disk and raise CheckpointError.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory = directory
        self.keep = keep
        self._bad: set[Path] = set()
        self._last = 0

    def start(self, after: int = 0) -> None:
        """Make the folder if there is none, and clear away what a crash has left half-done.

        The next checkpoint has a number above `after`.
        """
        from psrpc.checkpoints import dcp  # noqa: F401, takes a second: not in the first checkpoint

        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in _numbered(self.directory, _PARTIAL).values():
                shutil.rmtree(leftover)
        self._last = max(after, *_numbered(self.directory, ""), 0)

    def newest_number(self) -> int:
        """The number of the newest checkpoint, good or not; 0 without one."""
        return max(_numbered(self.directory, ""), default=0)

    def newest_folder(self) -> Path | None:
        """The newest checkpoint, good or not."""
        found = _numbered(self.directory, "")
        return found[max(found)] if found else None

    def newest(
        self, blueprint: Blueprint, above: int = 0, fits: Fits | None = None
    ) -> tuple[Checkpoint | None, PassedOver]:
        """As the function `newest`; those passed over no longer count among those to keep."""
        checkpoint, passed = newest(self.directory, blueprint, above, fits)
        self._bad.update(folder for folder, _ in passed)
        return checkpoint, passed

    def begin(self) -> int:
        """The next checkpoint's number, under which servers write their parts.

        What a server has still written into one that was given up goes.
        """
        self.clear()
        self._last += 1
        with writing(partial_folder(self.directory, self._last)):
            partial_folder(self.directory, self._last).mkdir()
        return self._last

    def partial(self, number: int) -> Path:
        """Where the checkpoint with this number is written until it is finished."""
        return partial_folder(self.directory, number)

    def finish(self, number: int, parts: Sequence[Part], job: JobRecord) -> Path:
        """Complete a checkpoint of all servers' parts, in order, and drop the oldest ones."""
        partial = partial_folder(self.directory, number)
        final = partial.with_suffix("")
        complete(partial, final, number, parts, job)
        self._prune()
        return final

    def abandon(self, number: int) -> None:
        """Give up a checkpoint that was begun."""
        shutil.rmtree(partial_folder(self.directory, number), ignore_errors=True)

    def clear(self) -> None:
        """Remove what is left of those that were given up; none is being made.

        One with a later number is another coordinator's, which has taken this one's place.
        """
        for number, leftover in _numbered(self.directory, _PARTIAL).items():
            if number <= self._last:
                shutil.rmtree(leftover, ignore_errors=True)

    def _prune(self) -> None:
        good = [folder for folder in checkpoints_in(self.directory) if folder not in self._bad]
        for folder in good[max(self.keep, 1) :]:
            with writing(folder):
                # Under the name of a partial one it is nothing to resume from, half gone or not.
                leaving = folder.with_name(folder.name + _PARTIAL)
                folder.rename(leaving)
                shutil.rmtree(leaving)


def _numbered(directory: Path, suffix: str) -> dict[int, Path]:
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error
    names = {path: _NAME.fullmatch(path.name.removesuffix(suffix)) for path in paths}
    return {
        int(match[1]): path
        for path, match in names.items()
        if match and path.name.endswith(suffix) and path.is_dir()
    }
