"""A process that a launcher of ours has started: it dies with that, and tells it why it fails.

`python -m psrpc.hosted SCRIPT ARGUMENT ...` (or `-m MODULE`) is a user's script as such a process.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import TracebackType
from typing import NoReturn

from psrpc.environment import Place, place
from psrpc.errors import DeposedError, JobFailedError, PsrpcError, UsageError
from psrpc.interrupts import INTERRUPTED, TERMINATED
from psrpc.lifeline import die_with_launcher
from psrpc.notes import confess, confess_news, failed_already, over_already
from psrpc.saying import call_this_process

MODULE = "psrpc.hosted"
_NOT_THEIRS = (__file__, runpy.__file__, "<frozen runpy>")
_CALLED: set[int] = set()  # processes, of which this may be a fork


@contextmanager
def hosted(place: Place) -> Iterator[None]:
    """Be such a process while this block runs; it ends the process where it does not end well.

    Raises a PsrpcError if there is no launcher of ours, who would say it.
    """
    die_with_launcher()
    call_this_process(f"psrpc rank {place.rank}")
    if failed_already() or over_already():
        sys.exit(0 if over_already() else 1)
    try:
        yield
    except DeposedError as error:
        # Not a failure of the job: as a new process it may be of use again.
        print(f"psrpc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PsrpcError as error:
        if not confess(error):
            raise
        sys.exit(error.exit_code)
    except Exception as error:
        reason = JobFailedError(f"a process failed: {type(error).__name__}: {error} (see above)")
        if confess_news(reason):
            # Shown here, by the process in which it happened, and nowhere else.
            theirs = _theirs(error.__traceback__)
            traceback.print_exception(type(error), error, theirs, chain=theirs is not None)
        sys.exit(1)


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without what runs the user's script; None for a script that does not begin."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _NOT_THEIRS:
        trace = trace.tb_next
    return trace


def note_run() -> None:
    """`psrpc.run` is called in this process."""
    _CALLED.add(os.getpid())


@contextmanager
def _of_script() -> Iterator[None]:
    """What a script's own end means to the job."""
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code
        if code and code not in (INTERRUPTED, TERMINATED):
            confess(JobFailedError(f"the script ended itself: sys.exit({code!r})"))
        raise
    if os.getpid() not in _CALLED:
        raise UsageError("the script came to its end without calling psrpc.run")


def why_not(words: Sequence[str]) -> str:
    """Why these words begin with no script, nor with `-m` and a module; empty if they do."""
    if words[0] == "-m" and len(words) > 1:
        top = words[1].partition(".")[0]
        there = PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None
        return "" if there else f"there is no module {top}, here or installed"
    return "" if os.path.isfile(words[0]) else f"there is no script {words[0]}"


def main(words: Sequence[str]) -> NoReturn:
    """Run the user's script, or module, as `python WORDS` would."""
    here = place()
    assert here is not None, "a launcher starts this"
    module = words[0] == "-m"
    name, *arguments = words[1:] if module else words
    sys.argv = [name, *arguments]
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(name))
    try:
        with hosted(here), _of_script():
            if module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


if __name__ == "__main__":
    # Not this module, for the script makes another `__main__`.
    importlib.import_module(MODULE).main(sys.argv[1:])
