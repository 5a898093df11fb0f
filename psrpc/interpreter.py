"""Being `python COMMAND` in a fork of a process that has imported torch: ready at once."""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
from typing import NoReturn

import numpy as np

# Imported before the forks, so that none of them has to: all that `psrpc train` needs.
from psrpc import trainer

__all__ = ["DONE", "become", "prepare", "trainer"]

# How a fork ends that would exit with 0. One that returned would wait for a word of torch's agent
# before it ends, and an agent that is told to end says none.
DONE = 99


def prepare() -> None:
    """Be about to fork: what is in memory now stays shared, for the collector leaves it alone."""
    gc.collect()
    gc.freeze()


def become(*words: str) -> NoReturn:
    """Do what a new interpreter does with `-m MODULE ARGUMENT ...`, in this fork.

    Raises SystemExit, with `DONE` where that would exit with 0. What is not caught is shown, as
    ever, by `sys.excepthook`.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    np.random.seed()  # Python's own generator does so by itself, torch's is seeded by the job.
    sys.path[0] = os.getcwd()
    sys.argv = list(words[1:])
    sys.modules.pop(words[1], None)  # not what it imports
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code:
            raise
    sys.exit(DONE)
