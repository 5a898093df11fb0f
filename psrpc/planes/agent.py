"""This process's torch RPC agent. The only module that touches torch's private names.

`rpc.init_rpc` knows static groups, which never take a replacement, and dynamic
ones, which break for good when a member dies. Here every process starts its own
agent on its own store, and learns its peers one by one: an agent takes a peer's
address from its store when it is told of that peer.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import torch

from psrpc import environment
from psrpc.errors import AddressError, TorchInterfaceError
from psrpc.planes.gate import Gate, pass_through, shut_for_good
from psrpc.planes.signing import Signer, Ticket, Tickets
from psrpc.saying import hushed
from psrpc.secret import Secret

_NEEDED = {
    "torch.distributed": ("HashStore", "is_available"),
    "torch.distributed.rpc": (
        "TensorPipeRpcBackendOptions",
        "WorkerInfo",
        "is_available",
        "rpc_async",
        "RRef",
        "functions",
    ),
    "torch.distributed.rpc.api": (
        "_init_rpc_states",
        "shutdown",
        "_internal_rpc_pickler",
        "_default_pickler",
    ),
    "torch.distributed.rpc.internal": ("_internal_rpc_pickler", "PythonUDF", "RemoteException"),
    "torch._C._distributed_rpc": ("TensorPipeAgent", "PyRRef"),
    "torch.distributed.autograd": ("_init",),
}
Function = TypeVar("Function", bound=Callable[..., Any])

_METHODS = {
    "TensorPipeAgent": ("_update_group_membership",),
    "PyRRef": ("_serialize", "_deserialize"),
}


def check_torch() -> None:
    """Raise TorchInterfaceError unless this torch has RPC and the names that psrpc uses."""
    distributed = importlib.import_module("torch.distributed")
    if not distributed.is_available() or not _rpc().is_available():
        raise TorchInterfaceError(
            f"torch {torch.__version__} is built without torch.distributed.rpc; install a Linux "
            "build of torch that has it (pip install torch)"
        )
    missing = [
        f"{module}.{name}"
        for module, names in _NEEDED.items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    module = importlib.import_module("torch._C._distributed_rpc")
    missing += [
        f"{kind}.{name}"
        for kind, names in _METHODS.items()
        for name in names
        if hasattr(module, kind) and not hasattr(getattr(module, kind), name)
    ]
    states = getattr(importlib.import_module("torch.distributed.rpc.api"), "_init_rpc_states", None)
    if states is not None and len(inspect.signature(states).parameters) != 1:
        missing.append("torch.distributed.rpc.api._init_rpc_states(agent)")
    if missing:
        raise TorchInterfaceError(
            f"torch {torch.__version__} has another private RPC interface than psrpc knows: "
            f"{', '.join(missing)} is missing or changed; install a torch that this psrpc was "
            "tested with (2.11 to 2.15)"
        )


def answers_later(function: Function) -> Function:
    """Mark a function whose RPC is answered when the future that it returns is done.

    Where torch has no RPC it stays as it is, so that psrpc can be imported anywhere.
    """
    functions = getattr(_rpc(), "functions", None)
    marked: Function = function if functions is None else functions.async_execution(function)
    return marked


def lend(value: Any) -> tuple[Any, ...]:
    """What `borrow` makes an RRef to this value of, once, at the peer that it is sent to."""
    lent: tuple[Any, ...] = _rpc().RRef(value)._serialize()
    return lent


def borrow(lent: tuple[Any, ...]) -> Any:
    """The RRef to what a peer has lent.

    The owner knows of it already. With `rpc.remote` it would be asked, and torch throws in a thread
    of its own, with a page of C++ frames on stderr, if it ends before it has answered.
    """
    return importlib.import_module("torch._C._distributed_rpc").PyRRef._deserialize(lent)


def is_running() -> bool:
    """Whether torch RPC is initialised in this process, by whomever."""
    try:
        _rpc().get_worker_info()
    except (RuntimeError, AttributeError):
        return False
    return True


def failure(error: BaseException) -> Any:
    """What an RPC is answered with that raises this error at the caller.

    The class is the caller's to import, or RuntimeError; the traceback is in the text.
    """
    kind: type[BaseException] = type(error)
    try:
        pickle.dumps(kind)
    except Exception:
        kind = RuntimeError
    # The caller's torch reads escapes in the text; what is no escape it would fail at.
    text = f"{error}\n\n{''.join(traceback.format_exception(error))}"
    internal = importlib.import_module("torch.distributed.rpc.internal")
    return internal.RemoteException(text.encode("unicode_escape").decode(), kind)


class Agent:
    """The RPC agent of this process; torch allows one at a time.

    `name` and `number` must be unique in the job, for ever: agents keep pipes by
    number and never open a second one to the same number. Others can connect to one that
    `serves`, through its gate; to any other nobody can.
    """

    def __init__(
        self,
        name: str,
        number: int,
        *,
        threads: int,
        one_host: bool,
        secret: Secret,
        serves: bool = False,
    ) -> None:
        self.name = name
        self.number = number
        self._threads = threads
        self._one_host = one_host
        self.secret = secret
        self._serves = serves
        self._tickets = Tickets(name)
        self._store: Any = None
        self._agent: Any = None
        self._gate: Gate | None = None
        self._undo = ExitStack()
        self._met: set[int] = set()
        self._unreached: dict[str, str] = {}  # urls of those it may call, and has not yet

    @property
    def url(self) -> str:
        """Where peers reach this agent, and (`gate`, a port) what lets them in."""
        url = str(self._store.get(f"addrs/{self.name}").decode())
        return url if self._gate is None else f"{url}?gate={self._gate.port}"

    @property
    def host(self) -> str:
        """The address of this host on which the agent listens; empty if it does not."""
        if self._agent is None:
            return ""
        return urlsplit(self.url).hostname or ""

    def start(self) -> None:
        """Start listening. On one host only the loopback interface listens."""
        check_torch()
        if self._one_host:
            environment.use_interface("lo")
        rpc, api = _rpc(), importlib.import_module("torch.distributed.rpc.api")
        # uv: the other transports poll without pause and take the cores from training.
        options = rpc.TensorPipeRpcBackendOptions(
            num_worker_threads=self._threads, rpc_timeout=0, _transports=["uv"], _channels=["basic"]
        )
        importlib.import_module("torch.distributed.autograd")._init(self.number)
        self._store = importlib.import_module("torch.distributed").HashStore()
        kind = importlib.import_module("torch._C._distributed_rpc").TensorPipeAgent
        try:
            self._agent = kind(self._store, self.name, self.number, 0, options, {}, [])
            api._init_rpc_states(self._agent)
        except RuntimeError as error:
            raise AddressError(
                f"the RPC agent of {self.name} cannot listen: {_first_line(error)}; check that the "
                "host's name resolves, or set TP_SOCKET_IFNAME to a network interface"
            ) from error
        self._guard(api)

    def _guard(self, api: ModuleType) -> None:
        """Shut the agent's own socket, and let nothing that is not signed be called."""
        port = urlsplit(self.url).port or 0
        if self._serves:
            self._gate = Gate(self.host, port, self.secret)
            self._gate.start()
        else:
            self._undo.callback(shut_for_good(port))
        internal = importlib.import_module("torch.distributed.rpc.internal")
        signer = Signer(self.secret, self._tickets, internal.PythonUDF, internal.RemoteException)
        for module, name in (
            (internal, "_internal_rpc_pickler"),
            (api, "_internal_rpc_pickler"),
            (api, "_default_pickler"),
        ):
            self._undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, signer)

    @contextmanager
    def reaching(self, name: str) -> Iterator[None]:
        """Be let in by a peer, within this block, unless it has been called before.

        The first call to it must be answered within the block. Raises OSError if nobody is there,
        SecretError if it has another secret.
        """
        url = urlsplit(self._unreached.get(name, ""))
        gate = dict(parse_qsl(url.query)).get("gate")
        if gate is None:
            yield
            return
        with pass_through(url.hostname or "", int(gate), self.secret):
            yield
        self._unreached.pop(name, None)

    def ticket(self, to: str) -> Ticket:
        """For one call of a peer."""
        return self._tickets.take(to)

    def meet(self, name: str, number: int, url: str) -> None:
        """Make a peer known, so that it can be called and its calls can be answered."""
        if number in self._met:
            return
        self._met.add(number)
        if "?" in url:
            self._unreached[name] = url
        self._store.set(f"addrs/{name}", url.partition("?")[0])
        info = _rpc().WorkerInfo(name, number)
        self._agent._update_group_membership(info, [], {}, True)

    def close(self) -> None:
        """Stop at once: calls under way fail at their callers."""
        if self._agent is not None:
            with hushed():
                importlib.import_module("torch.distributed.rpc.api").shutdown(graceful=False)
            self._agent = None
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        self._undo.close()


def _rpc() -> ModuleType:
    return importlib.import_module("torch.distributed.rpc")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
