"""A process that our launcher started does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal

from psrpc import environment

_PR_SET_PDEATHSIG = 1


def die_with_launcher() -> None:
    """Let the kernel kill this process when its launcher dies, kill -9 included."""
    launcher = environment.launcher()
    if launcher is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before.
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGKILL)
