"""The Python door of torch RPC: only what this job's processes have signed, once, in its list."""

from __future__ import annotations

import pickle
import random
from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from psrpc.errors import ProtocolError, SecretError
from psrpc.job import Job
from psrpc.messages import Adopt, Done, Failure, Push, Stepped, Stream, StreamKind, UpdateKey, View
from psrpc.modes import Asynchronous
from psrpc.planes import codec, rpc
from psrpc.planes.agent import Agent
from psrpc.planes.signing import Call, Signer, Tickets
from psrpc.secret import MAC_BYTES, Secret
from psrpc.server import ParameterServer
from tests import bomb
from tests.bomb import Bomb
from tests.contract.fleet import Plan

SECRET = Secret(b"a secret of these tests")
PythonUDF = namedtuple("PythonUDF", ["func", "args", "kwargs"])
RemoteException = namedtuple("RemoteException", ["msg", "exception_type"])
Message = tuple[bytes, list[torch.Tensor]]


def signer(tickets: Tickets, secret: Secret = SECRET) -> Signer:
    return Signer(secret, tickets, PythonUDF, RemoteException)


class Host:
    """A server and a worker, with nothing between them but the bytes."""

    def __init__(self) -> None:
        plan = Plan(Job(1, mode=Asynchronous()))
        service = plan.service(0)
        self.server: ParameterServer = getattr(service, "server", service)
        service.handle(Adopt(0, View(1, ((0, 0),))), [], lambda payload: None)
        self.gradients = [torch.ones_like(flat) for flat in self.server.store.flats]
        self.theirs = Tickets("server0")
        self.door, self.mine = signer(self.theirs), Tickets("worker0")
        rpc.serve(cast(Agent, SimpleNamespace(name="server0")), service)

    def message(self, clock: int, secret: Secret = SECRET, to: str = "server0") -> Message:
        """A push, as a worker's torch would send it."""
        key = UpdateKey(Stream(StreamKind.WORKER, 0, 0), clock)
        arguments = (self.mine.take(to), Push(0, clock, key, 1, pull=False), self.gradients)
        return signer(self.mine, secret).serialize(PythonUDF(rpc._handle, arguments, {}))

    def comes(self, data: bytes, tensors: list[torch.Tensor]) -> Any:
        """What torch does with a message that comes, and what is answered."""
        call = self.door.deserialize(data, tensors)
        future = (
            call.func._wrapped_async_rpc_function(*call.args)
            if hasattr(call.func, "_wrapped_async_rpc_function")
            else call.func(*call.args)
        )
        return future.wait()[1][0]

    @property
    def applied(self) -> int:
        return self.server.core.stats().updates_applied


@pytest.fixture
def host() -> Iterator[Host]:
    yield Host()
    rpc.withdraw(cast(Agent, SimpleNamespace(name="server0")))


def test_a_call_goes_there_and_its_answer_back(host: Host) -> None:
    assert isinstance(host.comes(*host.message(0)), Stepped)
    assert host.applied == 1
    answer = signer(host.theirs).serialize(("ticket", (Done(3), [torch.ones(2)])))
    ticket, (done, tensors) = signer(host.mine).deserialize(*answer)
    assert (ticket, done) == ("ticket", Done(3))
    assert torch.equal(tensors[0], torch.ones(2))


def test_what_comes_again_is_refused(host: Host) -> None:
    first, second = host.message(0), host.message(1)
    host.comes(*first)
    host.comes(*second)
    for again in (first, second, first):
        with pytest.raises(SecretError, match="a call came again"):
            host.comes(*again)
    assert host.applied == 2


def test_calls_may_overtake_each_other(host: Host) -> None:
    messages = [host.message(0) for _ in range(50)]
    random.Random(3).shuffle(messages)
    for message in messages:
        host.comes(*message)
    assert host.applied == 1, "it is one push, sent fifty times"
    assert len(next(iter(host.theirs._seen.values()))._lows) == 1, "what is remembered is small"


def test_a_call_of_another_server_is_refused(host: Host) -> None:
    with pytest.raises(SecretError, match="a call to server1 came to server0"):
        host.comes(*host.message(0, to="server1"))
    assert host.applied == 0


@pytest.mark.parametrize("secret", [Secret(b"another"), Secret(b""), SECRET.derive("rpc")])
def test_another_secret_is_refused(host: Host, secret: Secret) -> None:
    with pytest.raises(SecretError, match="nobody of this job has signed"):
        host.comes(*host.message(0, secret))
    assert host.applied == 0


def test_tensors_are_signed_as_well(host: Host) -> None:
    data, tensors = host.message(0)
    others = [[each + 1 for each in tensors], [*tensors, torch.ones(1)], []]
    others += [
        [each.reshape(-1, 1) for each in tensors],
        [each.to(torch.int32) for each in tensors],
    ]
    for other in others:
        with pytest.raises(SecretError, match="nobody of this job has signed"):
            host.comes(data, other)
    assert host.applied == 0
    host.comes(data, tensors)
    assert host.applied == 1


def signed(body: bytes) -> bytes:
    return SECRET.derive("rpc").mac("body", body) + body


def test_only_listed_functions_are_called(host: Host) -> None:
    ticket = host.mine.take("server0")
    for function in ("go_off", "system", "", "_handle.__globals__"):
        with pytest.raises(ProtocolError, match="says nothing"):
            host.door.deserialize(signed(codec.encode(Call(function, (ticket,)))), [])
    with pytest.raises(ProtocolError, match="go_off is not to be called by RPC"):
        host.door.serialize(PythonUDF(bomb.go_off, (1,), {}))
    # What fetching an RRef would bring.
    told = signer(host.mine).deserialize(*host.door.serialize(host.server))
    assert isinstance(told, RemoteException)
    assert "ParameterServer cannot be sent" in told.msg


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(Bomb()),
        pickle.dumps(PythonUDF(bomb.go_off, (1,), {})),
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"s\xff\xff\xff\xff",
        bytes(1000),
    ],
    ids=["a bomb", "torch's own", "nothing", "http", "a huge length", "zeros"],
)
def test_what_is_no_message_is_refused(host: Host, body: bytes) -> None:
    for data in (body, bytes(MAC_BYTES) + body):
        with pytest.raises(SecretError, match="nobody of this job has signed"):
            host.door.deserialize(data, [])
    with pytest.raises(ProtocolError):
        host.door.deserialize(signed(body), [])
    assert not bomb.went_off


def changed(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A message with something else in it, or missing."""
    at, size = chance.randrange(len(data)), chance.choice((1, 4, 8, 32))
    match chance.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + chance.randbytes(size) + data[at + size :]
        case 2:
            return data[:at] + chance.randbytes(size) + data[at:]
        case 3:
            return data[:at] + other[at:]
        case _:
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def test_of_ten_thousand_changed_messages_none_does_anything(host: Host) -> None:
    chance = random.Random(2)
    messages = [host.message(clock)[0] for clock in range(20)]
    messages += [pickle.dumps(Bomb()), signed(codec.encode(Call("go_off", (1,))))]
    weights = [flat.clone() for flat in host.server.store.flats]
    refused = 0
    for _ in range(10_000):
        one, other = chance.choice(messages), chance.choice(messages)
        data = changed(chance, one, other)
        if data in messages:
            continue
        with pytest.raises(SecretError):
            host.comes(data, host.gradients)
        refused += 1
    assert refused > 9_000
    assert not bomb.went_off
    assert host.applied == 0
    assert all(map(torch.equal, weights, host.server.store.flats))
    for clock in range(3):
        host.comes(*host.message(clock))
    assert (host.applied, host.server.core.stats().duplicates_dropped) == (3, 0)


def test_changed_and_signed_messages_are_errors_or_messages(host: Host) -> None:
    """Of a worker that has lost its mind: none runs code, and the server answers the others."""
    chance = random.Random(4)
    for _ in range(3000):
        body = host.message(0)[0][MAC_BYTES:]
        parts = host.door._parts(changed(chance, body, body), host.gradients)
        data = SECRET.derive("rpc").mac("body", *parts) + parts[0]
        try:
            call = host.door.deserialize(data, host.gradients)
        except (ProtocolError, SecretError):
            continue
        assert call.func in (rpc._handle, rpc._greet)
    assert not bomb.went_off
    assert not isinstance(host.comes(*host.message(0)), Failure)
    assert host.applied == 1


def test_what_a_handler_raises_is_told_as_a_text(host: Host) -> None:
    data = host.door.serialize(RemoteException("a\\b\n\x00", KeyError))
    back = signer(host.mine).deserialize(*data)
    assert back.exception_type is RuntimeError
    assert back.msg.encode("utf-8").decode("unicode_escape") == "a\\b\n\x00"


def test_torchs_modules_may_be_imported_late() -> None:
    # As torch.distributed.nn does it, which torch.distributed.checkpoint imports.
    signer(Tickets("late"))._register_reducer(object, pickle.dumps)
