"""A process that imports torch once, and forks whenever a test wants a command run: FD.

Importing torch costs seconds of a core. On the socket FD come requests, one JSON object each:
`{"words": [...], "variables": {...}, "folder": ..., "out": ..., "err": ...}` runs `words` (a Python
script or `-m MODULE`, and its arguments) in a fork, in a session of its own, and is answered by
its process id; `{"pid": ...}` is answered by that process's exit code, or null if it still
runs. The end of the socket is the end of this process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

# Everything that a command may need.
import torch.distributed.launcher.api
import torch.distributed.run

import psrpc.cli
import psrpc.launch
import psrpc.trainer

PRELOADED = (torch.distributed.launcher.api, torch.distributed.run, psrpc.trainer, psrpc.launch)
MESSAGE_BYTES = 1 << 16
# <linux/sched.h>, <sys/mount.h>
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18


def be(request: dict[str, Any]) -> None:
    """Turn into the command."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["folder"])
    if host := os.environ.get("PSRPC_TEST_HOST"):
        enter(host)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(request["words"])


def enter(host: str) -> None:
    """Move into a network namespace, by its name; or LAB/HOST: onto a host of netlab's.

    There a process has that host's name, /etc/hosts and /dev/shm as well, but stays in the process
    table of this machine.
    """
    lab, slash, name = host.partition("/")
    if not slash:
        _call("setns", _open(f"/run/netns/{host}"), _CLONE_NEWNET)
        return
    with open(f"/run/netlab/{lab}/lab.json") as file:
        pid = json.load(file)["hosts"][name]["pid"]
    for kind in ("net", "uts", "ipc"):
        _call("setns", _open(f"/proc/{pid}/ns/{kind}"), 0)
    hosts = os.environ.get("PSRPC_TEST_ETC_HOSTS", f"/run/netlab/{lab}/hosts")
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"shm", b"/dev/shm", b"tmpfs", 0, b"mode=1777")
    _call("mount", hosts.encode(), b"/etc/hosts", None, _MS_BIND, None)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments}")


def run(words: Sequence[str]) -> None:
    """Do what a new interpreter does with these arguments."""
    sys.path[0] = os.getcwd()
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.modules.pop(words[1], None)  # what it imports stays
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def code_of(pid: int) -> int | None:
    """How a fork ended; it is asked no more after that."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    """Answer requests."""
    gc.freeze()  # Forks need not look at, and so copy, what is here already.
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in every fork"
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        while message := requests.recv(MESSAGE_BYTES):
            request = json.loads(message)
            if "pid" in request:
                requests.send(json.dumps(code_of(request["pid"])).encode())
                continue
            pid = os.fork()
            if pid == 0:
                break
            requests.send(json.dumps(pid).encode())
        else:
            return
    be(request)


if __name__ == "__main__":
    main()
