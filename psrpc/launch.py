"""Starting a job's processes on this host, through torchrun's own Python entry."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from psrpc import environment
from psrpc.errors import AddressError, JobFailedError, PsrpcError, decode, encode

_STOP_S = 4


def launch(arguments: Sequence[str], processes: int, port: int) -> None:
    """Run `python -m psrpc ARGUMENTS` in `processes` processes and wait for them.

    Blocks. Raises the error that ended the job (the first process that wrote one
    down), JobFailedError for a process that was killed, AddressError for a taken
    port, and KeyboardInterrupt when the user interrupts; no process is left.
    """
    # Imported here, because this takes half a second that children need not spend.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_free(port)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="psrpc-") as folder:
        failure = Path(folder) / "failure.json"
        environment.for_children(
            **{
                environment.LAUNCHED_AT: repr(_process_began()),
                environment.FAILURE_FILE: str(failure),
                environment.LAUNCHER: str(os.getpid()),
            }
        )
        # Torch's C++ side logs lost connections as warnings; what matters of them is reported.
        environment.default_for_children(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"127.0.0.1:{port}",
            rdzv_configs={"is_host": True},
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        _stop_soon(config)
        try:
            elastic_launch(config, sys.executable)("-m", "psrpc", *arguments)
        except SignalException as signalled:
            raise KeyboardInterrupt from signalled
        except ChildFailedError as failed:
            raise _read(failure) or _from(failed) from None


def confess(error: PsrpcError) -> bool:
    """Write down, for the launcher, why this process fails; only the first of all counts.

    Returns False if no launcher of ours asked for it.
    """
    path = environment.failure_file()
    if path is None:
        return False
    text = json.dumps(encode(error))
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        pass
    return True


def _read(path: Path) -> PsrpcError | None:
    try:
        name, text = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return decode(name, text)


def _from(failed: Exception) -> PsrpcError:
    failures = getattr(failed, "failures", {})
    for rank, failure in sorted(failures.items(), key=lambda item: item[1].timestamp):
        code = failure.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return JobFailedError(f"process {rank} (pid {failure.pid}) {how}; the job was ended")
    return JobFailedError(str(failed).split("\n", 1)[0])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AddressError(
                f"port {port} of 127.0.0.1 cannot be had ({reason}): choose another --port, or "
                "leave it out for a free one"
            ) from error


def _stop_soon(config: object) -> None:
    """Kill processes that do not stop when told soon, where this torch lets one say when."""
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = _STOP_S


def _process_began() -> float:
    """When this process was started, in seconds since 1970."""
    with open("/proc/self/stat", encoding="ascii") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")
