"""A process that a launcher of ours has started: it dies with that, and tells it why it fails.

`python -m psrpc.hosted SCRIPT ARGUMENT ...` (or `-m MODULE`) is a user's script as such a process.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from psrpc.environment import Place, place
from psrpc.errors import DeposedError, JobFailedError, PsrpcError
from psrpc.lifeline import die_with_launcher
from psrpc.notes import confess, failed_already, over_already
from psrpc.saying import call_this_process

MODULE = "psrpc.hosted"
_INTERRUPTED = 130
_NOT_THEIRS = (__file__, runpy.__file__, "<frozen runpy>")


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
        # Shown here, by the process in which it happened, and nowhere else.
        traceback.print_exception(type(error), error, _theirs(error.__traceback__))
        text = f"a process failed: {type(error).__name__}: {error} (traceback above)"
        confess(JobFailedError(text))
        sys.exit(1)


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without what runs the user's script, unless nothing is left of it then."""
    inner = trace
    while inner is not None and inner.tb_frame.f_code.co_filename in _NOT_THEIRS:
        inner = inner.tb_next
    return inner or trace


def main(words: Sequence[str]) -> NoReturn:
    """Run the user's script, or module, as `python WORDS` would."""
    here = place()
    assert here is not None, "a launcher starts this"
    module = words[0] == "-m"
    name, *arguments = words[1:] if module else words
    sys.argv = [name, *arguments]
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(name))
    try:
        with hosted(here):
            if module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
