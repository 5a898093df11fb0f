"""`@psrpc.actor`: classes whose objects live in other processes, and handles to these."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

from psrpc.actors import cluster
from psrpc.actors.client import Client
from psrpc.actors.future import Future
from psrpc.actors.messages import READY, Spec
from psrpc.actors.packing import pack, pack_definition
from psrpc.actors.route import Route
from psrpc.core.placement import Resources, Strategy, Want
from psrpc.errors import ActorLostError, ConfigError, UsageError

Class = TypeVar("Class")


@dataclass(frozen=True)
class Options:
    """How actors of a class are placed, restarted and called; see `actor`."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_bytes: int = 0
    labels: Mapping[str, str] | None = None
    placement: str = "spread"
    near: str | None = None
    own_process: bool | None = None
    max_restarts: int = 0
    max_retries: int = 0
    max_pending: int = 10_000
    name: str | None = None
    detached: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a number from {least}, not {getattr(self, name)!r}"
            for name, least in _LEAST.items()
            if not isinstance(getattr(self, name), int | float) or getattr(self, name) < least
        ]
        if self.placement not in [strategy.value for strategy in Strategy]:
            names = ", ".join(strategy.value for strategy in Strategy)
            problems.append(f"placement must be one of {names}, not {self.placement!r}")
        if (self.near is not None) != (self.placement == Strategy.AFFINITY.value):
            problems.append("near names the node for placement='affinity': give both or neither")
        if problems:
            raise ConfigError(problems)

    def want(self) -> Want:
        """What is asked of a node."""
        amounts = Resources(float(self.num_cpus), float(self.num_gpus), int(self.memory_bytes))
        return Want(amounts, dict(self.labels or {}), Strategy(self.placement), self.near)

    @property
    def apart(self) -> bool:
        """Whether it has a process of its own."""
        if self.own_process is not None:
            return self.own_process
        return self.num_cpus >= 1 or self.num_gpus > 0 or self.memory_bytes > 0


_LEAST = {
    "num_cpus": 0,
    "num_gpus": 0,
    "memory_bytes": 0,
    "max_restarts": 0,
    "max_retries": 0,
    "max_pending": 1,
}


class ActorClass(Generic[Class]):
    """A class that `actor` was applied to. `remote` makes actors, a plain call a plain object."""

    def __init__(self, kind: type[Class], options: Options) -> None:
        functools.update_wrapper(self, kind, updated=())
        self.kind = kind
        self.given = options
        self._definition: bytes | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Class:
        return self.kind(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the class has, such as a method by which a pool's jobs are submitted."""
        if name.startswith("__") or name == "kind":
            raise AttributeError(name)
        return getattr(self.kind, name)

    def options(self, **changes: Any) -> ActorClass[Class]:
        """The same class with other options, `actor`'s own and `name` and `detached` among them."""
        return ActorClass(self.kind, _changed(self.given, changes))

    def remote(self, *args: Any, **kwargs: Any) -> Handle:
        """Make an actor, and return its handle at once.

        What goes wrong (no node has what it needs, its constructor fails) is raised by its calls,
        and by `psrpc.ready(handle)`. Raises UsageError if an argument cannot be sent or a name is
        taken.
        """
        return Handle(self.make(cluster.client(), args, kwargs), owned=True)

    def make(self, client: Client, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Route:
        """The way to a new actor."""
        if self._definition is None:
            self._definition = pack_definition(self._named() or self.kind)
        options = self.given
        spec = Spec(
            self.kind.__qualname__,
            self._definition,
            pack((args, kwargs)),
            options.want(),
            options.apart,
            options.max_restarts,
            options.max_retries,
            options.max_pending,
            options.name,
            options.detached,
        )
        return client.create(spec)

    def _named(self) -> _Named | None:
        """The class by its name, if another process can import it by that."""
        module, name = self.kind.__module__, self.kind.__qualname__
        if module == "__main__" or module not in sys.modules:
            return None
        try:
            found: Any = sys.modules[module]
            found = functools.reduce(getattr, name.split("."), found)
        except AttributeError:
            return None
        if found is self.kind or getattr(found, "kind", None) is self.kind:
            return _Named(module, name)
        return None


@dataclass(frozen=True)
class _Named:
    """A class that is found by its name when it is called."""

    module: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found: Any = importlib.import_module(self.module)
        found = functools.reduce(getattr, self.name.split("."), found)
        return (found.kind if isinstance(found, ActorClass) else found)(*args, **kwargs)


class Method:
    """A method of an actor: `remote` calls it."""

    __slots__ = ("_handle", "_name")

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *args: Any, **kwargs: Any) -> Future:
        """Call it; returns at once, unless the actor has `max_pending` of our calls already."""
        return self._handle._route.call(self._name, args, kwargs)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """What is called so in a plain object. Raises UsageError."""
        raise UsageError(
            f"an actor's method is called as {self._name}.remote(...), which gives a future"
        )


class Handle:
    """An actor. May be sent to other processes, actors among them.

    `handle.method.remote(...)` calls a method. One thread's calls are carried out in its order,
    one at a time. An actor without a name ends when its maker's handle is gone and was sent to
    nobody, after the calls that it has; any other with the process that made it, or by `kill`.
    """

    def __init__(self, route: Route, *, owned: bool) -> None:
        self._route = route
        self._owned = owned and route.spec.name is None

    def __getattr__(self, name: str) -> Method:
        if name.startswith("__"):
            raise AttributeError(name)
        return Method(self, name)

    def __repr__(self) -> str:
        return f"<actor {self._route.spec.title} {self._route.actor:x}>"

    def __reduce__(self) -> Any:
        self._owned = False
        return _reach, (self._route.actor, replace(self._route.spec, arguments=(b"", [])))

    def __del__(self) -> None:
        if self.__dict__.get("_owned") and not sys.is_finalizing():
            _retire(self._route)


def _retire(route: Route) -> None:
    # Not here: the collector may run in a thread that holds what this needs.
    _retiring.append(route)
    if not _rung.is_set():
        _rung.set()
        if not _retirer.is_alive():
            _start_retirer()


def _reach(actor: int, spec: Spec) -> Handle:
    return Handle(cluster.client().route(actor, spec), owned=False)


_retiring: list[Route] = []
_rung = threading.Event()


def _retire_all() -> None:
    while True:
        _rung.wait()
        _rung.clear()
        while _retiring:
            _retiring.pop().retire()


_retirer = threading.Thread(target=_retire_all, name="psrpc-retirer", daemon=True)


def _start_retirer() -> None:
    global _retirer
    _retirer = threading.Thread(target=_retire_all, name="psrpc-retirer", daemon=True)
    _retirer.start()


@overload
def actor(kind: type[Class], /, **options: Any) -> ActorClass[Class]: ...
@overload
def actor(**options: Any) -> Callable[[type[Class]], ActorClass[Class]]: ...
def actor(kind: Any = None, /, **options: Any) -> Any:
    """Let objects of a class be actors: `@psrpc.actor`, `@psrpc.actor(...)`, `actor(cls, ...)`.

    `num_cpus`, `num_gpus` (parts of one too) and `memory_bytes` are set aside for each while it
    lives, on a node that has the `labels`; `placement` is "spread", "pack", "even" (as many on
    each node), or "affinity" to the node that `near` names. One that asks for a CPU, a GPU or
    memory has a process of its own, the others share some; `own_process` says otherwise. When its
    process dies it is made again up to `max_restarts` times; with what its method `save_state()`
    returned after its latest call, given to `load_state(state)`, if it has these. A call that was
    not answered then is made again up to `max_retries` times, so it may be carried out more than
    once; otherwise it raises ActorLostError. A caller may have `max_pending` calls unanswered; the
    next one waits.

    Raises ConfigError for wrong options.
    """
    checked = _changed(Options(), options)
    if kind is None:
        return lambda decorated: actor(decorated, **options)
    if not isinstance(kind, type):
        raise UsageError(f"an actor is made of a class, not of {kind!r}")
    return ActorClass(kind, checked)


def _changed(options: Options, changes: dict[str, Any]) -> Options:
    known = list(Options.__dataclass_fields__)
    if unknown := [name for name in changes if name not in known]:
        raise ConfigError(
            [f"an actor has no option {name}; there are {', '.join(known)}" for name in unknown]
        )
    return replace(options, **changes)


def get_actor(name: str) -> Handle:
    """The actor of this name, from any process of its cluster. Blocks for an answer.

    Raises UsageError if there is none.
    """
    client = cluster.client()
    found = client.find(name)
    if found is None:
        raise UsageError(f"there is no actor named {name!r}")
    return Handle(client.route(*found), owned=False)


def ready(handle: Handle, timeout: float | None = None) -> None:
    """Wait until an actor is made; raises what went wrong, or TimeoutError. Blocks."""
    _checked(handle)._route.call(READY, (), {}).result(timeout)


def kill(handle: Handle) -> None:
    """End an actor at once; calls that are not answered raise ActorLostError, whoever made them.

    Where it shares a process, a method that it is in runs to its end, which nobody hears of.
    """
    _checked(handle)._owned = False
    handle._route.gone(ActorLostError(f"{handle._route.spec.title} was killed here"))
    cluster.client().kill(handle._route.actor)


def _checked(handle: Handle) -> Handle:
    if not isinstance(handle, Handle):
        raise UsageError(f"this takes an actor's handle, as remote(...) gives it, not {handle!r}")
    return handle
