"""Remote references of torch RPC to actors: `rpc_sync`, `rpc_async`, `remote` and `to_here`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import futures

from psrpc.actors import cluster, current
from psrpc.actors.future import Future
from psrpc.actors.handle import Handle
from psrpc.actors.messages import Spec
from psrpc.errors import UsageError
from psrpc.planes import agent


def rref(handle: Handle) -> Any:
    """A `torch.distributed.rpc.RRef` to an actor, which this process owns and any peer may use.

    `rpc_sync().method(...)`, `rpc_async()` and `remote()` call the actor by way of this process,
    on none of its RPC threads. An actor's error is raised as torch raises errors: Python's own as
    such, others as a RuntimeError that names them, with the actor's traceback in its text.
    `to_here()` is the handle, which calls without this process: whoever
    has no cluster uses the actor's from then on (UsageError if it uses another, AddressError if
    that cannot be reached from there). The actor lives as long as the reference.
    Returns at once. Raises UsageError where torch RPC is not initialised.
    """
    if not agent.is_running():
        raise UsageError(
            "torch RPC is not initialised in this process: call torch.distributed.rpc.init_rpc "
            "before psrpc.rref"
        )
    if not isinstance(handle, Handle):
        raise UsageError(f"psrpc.rref makes a reference of an actor's handle, not of {handle!r}")
    return torch.distributed.rpc.RRef(Referred(handle))


@agent.answers_later
def _call(*_: Any) -> Any:
    """What torch finds as a method of the class: it looks whether its answer comes later."""
    raise NotImplementedError


class _AnyMethod(type):
    """Torch looks methods up in the class; which an actor has, only the actor knows."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _call


class Referred(Handle, metaclass=_AnyMethod):
    """An actor's handle as torch RPC calls it, in the process that owns the reference."""

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle._route, owned=False)
        self._handle = handle  # its end may be the actor's

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Called(self, name)

    def __reduce__(self) -> Any:
        self._handle._owned = False
        spec = replace(self._route.spec, arguments=(b"", []))
        return _reach, (cluster.client().address, self._route.actor, spec)


class _Called:
    """A method that gives torch's kind of future."""

    __slots__ = ("_handle", "_name")

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        answer: futures.Future[Any] = futures.Future()
        try:
            self.remote(*args, **kwargs).add_done_callback(_settles(answer))
        except Exception as error:
            answer.set_result(agent.failure(error))
        return answer

    def remote(self, *args: Any, **kwargs: Any) -> Future:
        """See `Method`; for the process that owns the reference."""
        return self._handle._route.call(self._name, args, kwargs)


def _settles(answer: futures.Future[Any]) -> Callable[[Any], None]:
    def settle(future: Any) -> None:
        error = future.exception()
        answer.set_result(future.result() if error is None else agent.failure(error))

    return settle


def _reach(address: str, actor: int, spec: Spec) -> Handle:
    """The handle, in a process that may not have used this cluster before."""
    with current.lock:
        if current.client is not None and current.client.closed:
            cluster.shutdown()  # what is left of one that has ended
        if current.client is None:
            cluster.init(address)
    client = cluster.client()
    if client.address != address:
        raise UsageError(
            f"this actor's cluster is another one than this process uses ({client.address}): call "
            "psrpc.shutdown() first, or its methods by the RRef"
        )
    return Handle(client.route(actor, spec), owned=False)
