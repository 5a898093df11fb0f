"""Starting a job's processes on this host, through torchrun's own Python entry."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from psrpc import environment
from psrpc.errors import AddressError, ConfigError, JobFailedError, PeerLostError, PsrpcError
from psrpc.interrupts import INTERRUPTED, TERMINATED
from psrpc.notes import Notes
from psrpc.saying import say
from psrpc.settings import TrainSettings, unwritable

_STOP_S = 3
_MONITOR_S = 0.1
# How a process ends that SIGINT or SIGTERM ended; it is not to come back.
_ASKED_TO_LEAVE = (INTERRUPTED, TERMINATED, -signal.SIGINT, -signal.SIGTERM)
# Not SIGINT: a child that is told of it while it imports shows a traceback.
_PASSED_ON = "SIGTERM,SIGHUP,SIGQUIT"


def obstacles(settings: TrainSettings, processes: int) -> list[PsrpcError]:
    """All that would end a job of so many processes when it begins, as far as this host can see."""
    from psrpc import datasets, models
    from psrpc.job import Backend
    from psrpc.planes import groups
    from psrpc.planes.agent import check_torch

    errors: list[PsrpcError] = []
    looks: tuple[Callable[[], None], ...] = (
        check_torch,
        lambda: groups.check(Backend(settings.backend or "gloo"), processes),
        lambda: models.check(settings.model),
        lambda: datasets.prepare(settings.dataset, data_root=settings.data_root),
    )
    for look in looks:
        try:
            look()
        except PsrpcError as error:
            errors.append(error)
    if problems := unwritable(settings):
        errors.append(ConfigError(problems))
    return errors


def launch(arguments: Sequence[str], names: Sequence[str], port: int) -> None:
    """Run `python -m psrpc ARGUMENTS` in a process for each of `names` and wait for them.

    `names` are what errors call the ranks. Blocks. Raises the error that ended the job
    (the first process that wrote one down), JobFailedError for a process that was
    killed, AddressError for a taken port, and KeyboardInterrupt when the user
    interrupts; no process is left.
    """
    # Imported here, because this takes half a second that children need not spend.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _check_free(port)
    _silence("torch.distributed.elastic", "torch.distributed.launcher")
    with closing(Notes()) as notes:
        environment.for_children(**child_variables(notes))
        config = _config(len(names), port)
        try:
            elastic_launch(config, sys.executable)("-m", "psrpc", *arguments)
        except SignalException as signalled:
            raise KeyboardInterrupt from signalled
        except ChildFailedError as failed:
            raise _cause(notes.failure(), failed.failures, names) from None


@contextmanager
def with_a_way_back(settings: TrainSettings) -> Iterator[None]:
    """Say, when the user interrupts what is done within, from which checkpoint it may go on."""
    try:
        yield
    except KeyboardInterrupt:
        if settings.checkpoint_dir is not None:
            # Imported here, because it takes time that the start need not spend.
            from psrpc.checkpoints.folder import Checkpoints

            if newest := Checkpoints(Path(settings.checkpoint_dir)).newest_folder():
                say(f"{newest} is the newest checkpoint: go on from it with --resume auto")
        raise


def child_variables(notes: Notes) -> dict[str, str]:
    """What a process must find in its environment; it writes in `notes` why it fails."""
    variables = {
        **notes.variables(),
        environment.LAUNCHED_AT: repr(_process_began()),
        environment.LAUNCHER: str(os.getpid()),
    }
    return variables | environment.torch_defaults()


def run_agent(
    command: Sequence[str],
    restarts: int,
    *,
    patience_s: float = _STOP_S,
    again: Callable[[], bool] = lambda: True,
) -> int:
    """Run `python COMMAND` in one process, again when it dies. Blocks; returns an exit code.

    One that SIGINT or SIGTERM ended was asked to go, and does not come back; nor does any if
    `again` says so. SIGTERM to this process is passed on, and followed by SIGKILL after
    `patience_s`.

    Of psrpc's own commands each process is a fork of this one, which has imported all they need:
    one that died is back at once, where a new interpreter spends over a second of a core. A
    user's script gets a new one, for it may count on what happens before torch is imported.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _silence("torch.distributed.elastic", "torch.distributed.launcher")
    environment.for_children(**{environment.LAUNCHER: str(os.getpid())})
    program: Any = sys.executable
    done = 0
    if list(command[:2]) == ["-m", "psrpc"]:
        from psrpc import interpreter

        interpreter.prepare()
        program, done = interpreter.become, interpreter.DONE
    try:
        with _Terminations() as terminations:
            for left in reversed(range(restarts + 1)):
                config = _config(1, 0, patience_s)
                if program is not sys.executable:
                    config.start_method = "fork"
                try:
                    terminations.matter()
                    elastic_launch(config, program)(*command)
                except ChildFailedError as failed:
                    code = int(next(iter(failed.failures.values())).exitcode)
                    if code == done:
                        break
                    if not left or code in _ASKED_TO_LEAVE or not again():
                        return code if code > 0 else 128 - code
                else:
                    break
                finally:
                    terminations.listen()
    except SignalException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice
        return TERMINATED
    return 0


class _Terminations:
    """SIGTERM: it raises in torch's launch, which leaves its handler, and not between two."""

    def __init__(self) -> None:
        self._came = self._matters = False

    def __enter__(self) -> _Terminations:
        _hold_back_at_forks()
        self._before = self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def listen(self) -> Any:
        """Only note it from now on; returns the handler that there was."""
        self._matters = False
        return signal.signal(signal.SIGTERM, self._hear)

    def matter(self) -> None:
        """Raise SignalException when it comes, or has come already."""
        self._matters = True
        if self._came:
            self._hear(signal.SIGTERM, None)

    def _hear(self, number: int, frame: object) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        self._came = True
        if self._matters:
            raise SignalException("SIGTERM", signal.SIGTERM)


@functools.cache
def _hold_back_at_forks() -> None:
    """Let SIGTERM be handled after `os.fork`, in which what a handler raises is only printed."""
    handlers: list[Any] = []
    came: list[int] = []

    def listen(handler: Any) -> Any:
        return signal.signal(signal.SIGTERM, handler)

    def hear(number: int, frame: object) -> None:
        came.append(number)

    def hold() -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            handlers.append(listen(hear))
        except Exception:  # it came just now
            came.append(signal.SIGTERM)
            handlers.append(listen(hear))

    def let_go() -> None:
        while handlers:
            listen(handlers.pop())
        if came:
            came.clear()
            threading.Timer(_MONITOR_S, os.kill, (os.getpid(), signal.SIGTERM)).start()

    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=let_go)


def _config(processes: int, port: int, patience_s: float = _STOP_S) -> Any:
    """What `torchrun --standalone` would give to the elastic launch, but for its rendezvous."""
    from torch.distributed.launcher.api import LaunchConfig

    from psrpc import onehost

    onehost.register()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend=onehost.BACKEND,
        rdzv_endpoint=f"127.0.0.1:{port}",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=_MONITOR_S,
        logs_specs=_no_logs(),
    )
    _stop_soon(config, patience_s)
    return config


def _no_logs() -> Any:
    """Let processes write where we do; a folder would be left by a launcher that is killed."""
    from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

    class NoLogs(LogsSpecs):
        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            """Where each process writes."""
            for variables in envs.values():
                variables["TORCHELASTIC_ERROR_FILE"] = ""
            ours = dict.fromkeys(envs, "")
            return LogsDest(ours, ours, error_files=dict.fromkeys(envs, os.devnull))

        @property
        def root_log_dir(self) -> str:
            """Nowhere."""
            return os.devnull

    return NoLogs()


def _cause(
    confessed: PsrpcError | None, failures: Mapping[int, Any], names: Sequence[str]
) -> PsrpcError:
    """Why the job ended; that a peer is lost says less than what the peer died of."""
    ended = [(names[rank], each.exitcode) for rank, each in failures.items()]
    # Torch itself ends the rest with SIGTERM, those that are stopped some time later with
    # SIGKILL, and gives these last.
    first = min(each.timestamp for each in failures.values())
    by_us = {names[rank] for rank, each in failures.items() if each.timestamp >= first + _STOP_S}
    killed = [
        (name, code)
        for name, code in ended
        if code < 0 and code != -signal.SIGTERM and name not in by_us
    ]
    if confessed is not None and not (killed and isinstance(confessed, PeerLostError)):
        return confessed
    name, code = (killed or ended)[0]
    return JobFailedError(f"{name} {_how(code)}, so the job was ended")


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL; did the host run out of memory?)"
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


def _silence(*packages: str) -> None:
    """Keep torch's launcher from logging: what ends a job is told once, by the error."""
    for name in list(logging.Logger.manager.loggerDict):
        # Each of them has a level of its own. Disabled ones take no lock either, amid which the
        # error that torch raises when SIGTERM comes would be lost.
        if name.startswith(packages):
            logging.getLogger(name).disabled = True


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


def _stop_soon(config: object, patience_s: float) -> None:
    """Stop processes by SIGTERM, soon by SIGKILL, where this torch lets one say so."""
    for name, value in (("shutdown_timeout", patience_s), ("signals_to_handle", _PASSED_ON)):
        if hasattr(config, name):
            setattr(config, name, value)


def _process_began() -> float:
    """When this process was started, in seconds since 1970."""
    with open("/proc/self/stat", encoding="ascii") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")
