"""Every error psrpc raises, in one tree.

::

    PsrpcError
    ├── UsageError                the caller asked for something that cannot be (exit code 2)
    │   └── ConfigError           settings; carries all problems at once
    ├── ModelError                a model cannot be built, or is not what psrpc can train
    │   └── ModelMismatchError    worker and server hold different models
    ├── CheckpointError           a checkpoint cannot be written or read, or is another job's
    ├── DatasetError              a dataset cannot be found, read or split
    ├── GradientError             a gradient of the wrong shape, dtype or device
    │   └── NonFiniteGradientError  NaN or Inf in a gradient
    ├── OptimizerError            an optimizer psrpc cannot run on a server, or bad options for one
    ├── TorchInterfaceError       this torch lacks RPC, or its private interface has changed
    ├── AddressError              a port is taken, an address cannot be bound or reached
    ├── SecretError               the other side does not have this job's secret
    ├── ProtocolError             a peer said something impossible (a bug, or another version)
    ├── StartTimeoutError         not everybody came in time; says who is missing
    ├── ClosedError               you closed this object, or left the job, and used it afterwards
    ├── PeerLostError             a peer died or stopped answering
    ├── DeposedError              another server has this one's shard; it begins anew as backup
    ├── FencedError               this worker was taken for dead; what it says counts no more
    ├── JobOverError              every worker had left when this one came
    ├── MovedError                servers were added or removed: ask those that there are now
    ├── ScaleError                servers cannot be added or removed; the job goes on as it is
    ├── StoppedError              somebody asked the job to end before its time, and it has
    ├── SpaceTimeoutError         no tuple came in the time that was given
    ├── SpaceFullError            a tuple space holds as much as it may
    ├── LeaseLostError            a lease on a tuple had ended: another may have the tuple
    ├── JobFailedError            the job was ended by a failure somewhere else
    ├── RemoteError               an exception of an actor that cannot be sent as it is
    ├── PlacementError            no node has what an actor asks for
    ├── MailboxFullError          an actor has as many calls waiting as it takes
    └── ActorLostError            an actor has died, or never came to be

An error is built from one sentence that says what happened, to whom, and what
to try. All of them survive pickling, and cross a process boundary as a pair of
class name and text (`encode`, `decode`), never as a pickled exception.
"""

from __future__ import annotations

from collections.abc import Iterable


class PsrpcError(Exception):
    """Base of all psrpc errors. `exit_code` is what a command ends with."""

    exit_code = 1


class UsageError(PsrpcError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more settings are wrong. `problems` holds a sentence for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class ModelError(PsrpcError):
    """A model cannot be built, or is not one that psrpc can train."""


class ModelMismatchError(ModelError):
    """A worker's model differs from the servers'."""


class CheckpointError(PsrpcError):
    """A checkpoint cannot be written or read, is damaged, or does not fit this job."""


class DatasetError(PsrpcError):
    """A dataset cannot be found, read or split."""


class GradientError(PsrpcError):
    """A gradient does not fit its parameter."""


class NonFiniteGradientError(GradientError):
    """A gradient holds NaN or Inf."""


class OptimizerError(PsrpcError):
    """An optimizer cannot run on a server, or its options are wrong."""


class TorchInterfaceError(PsrpcError):
    """This torch lacks RPC, or the private names that psrpc needs have changed."""


class AddressError(PsrpcError):
    """A port is taken, or an address cannot be bound or reached."""


class SecretError(PsrpcError):
    """The other side does not have this job's secret."""


class ProtocolError(PsrpcError):
    """A peer said something impossible: a bug, or a peer of another version."""


class StartTimeoutError(PsrpcError):
    """Not everybody came in time."""


class ClosedError(PsrpcError):
    """This object was closed by its owner and then used."""


class PeerLostError(PsrpcError):
    """A peer died, or stopped answering."""


class DeposedError(PsrpcError):
    """Another server has this one's shard now, or the job has begun another life.

    As a new process it may be that one's backup, or serve in that life.
    """


class FencedError(PsrpcError):
    """This worker was taken for dead: others have its work, and what it says counts no more."""


class JobOverError(PsrpcError):
    """Every worker of the job had left when this one came."""


class MovedError(PsrpcError):
    """Servers were added or removed since this was asked: the rows are elsewhere now."""


class ScaleError(PsrpcError):
    """Servers could not be added or removed; the job goes on with those that it has."""


class StoppedError(PsrpcError):
    """The job ended before its time, with a last checkpoint, because SIGTERM came to a server."""

    exit_code = 143


class SpaceTimeoutError(PsrpcError, TimeoutError):
    """No tuple came in the time that was given."""


class SpaceFullError(PsrpcError):
    """A tuple space holds as many bytes as it may."""


class LeaseLostError(PsrpcError):
    """A lease on a tuple had ended: the tuple is in the space again, or another has it."""


class JobFailedError(PsrpcError):
    """The job was ended by a failure somewhere else."""


class RemoteError(PsrpcError):
    """An exception of an actor that cannot be sent as it is; its name and text are in this one."""


class PlacementError(PsrpcError):
    """No node has what an actor asks for."""


class MailboxFullError(PsrpcError):
    """An actor has as many calls of this caller waiting as it takes."""


class ActorLostError(PsrpcError):
    """An actor has died, or never came to be; whether the call was carried out is not known."""


def encode(error: BaseException) -> tuple[str, str]:
    """Return (class name, text) of `error`, to be sent to another process."""
    return type(error).__name__, str(error) or repr(error)


def decode(name: str, text: str) -> PsrpcError:
    """Return the error that `encode` described; an unknown name gives `JobFailedError`."""
    kind = _BY_NAME.get(name)
    if kind is None:
        return JobFailedError(f"{name}: {text}")
    if issubclass(kind, ConfigError):
        return kind(text.split("\n"))
    return kind(text)


def _tree(kind: type[PsrpcError]) -> Iterable[type[PsrpcError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


_BY_NAME = {kind.__name__: kind for kind in _tree(PsrpcError)}
