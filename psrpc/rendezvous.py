"""How the processes of a job find each other, once: through the launcher's store."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from psrpc import addresses, environment
from psrpc.addresses import Interface, listen
from psrpc.clock import Clock, SystemClock
from psrpc.environment import SECRET, SECRET_FILE, Place
from psrpc.errors import (
    JobOverError,
    PeerLostError,
    SecretError,
    StartTimeoutError,
    decode,
)
from psrpc.saying import hushed
from psrpc.sealed import SealedStore, job_secret
from psrpc.secret import Secret, user_key
from psrpc.timely import TimelyStore

_LOOK_AGAIN_S = 0.02
_JOIN_S = 10.0
_SAY_AGAIN_S = 5.0
_SEEN = "seen"  # the key of the address at which other hosts reach the store's host
FAREWELL_S = 2.0
FAILED = "failed"  # the key under which a server says why it could not begin
STOP = "stop"  # the key under which a server says that it was asked to end the job
FAREWELL = "farewell"  # what a worker says under `gone`; the coordinator's word of it is another
REPORTED = "reported"  # the key under which the worker that reports says that it has all
PULSE = "pulse"  # the key under which the coordinator says where it hears who is alive


class Rendezvous:
    """A small key-value store that all processes of the job share.

    `wanted` is the interface, or its address, that the user chose for this process, and `who` its
    name in what is said. `interface` is the one to listen on, known once it is open: the chosen
    one, or on several hosts that whose route leads to the store; None leaves it to torch.
    """

    def __init__(
        self,
        place: Place,
        timeout_s: float,
        clock: Clock | None = None,
        *,
        wanted: str | None = None,
        who: str | None = None,
    ) -> None:
        self.interface: Interface | None = None
        self.named: Callable[[str], str] = lambda key: key
        self._wanted, self._who = wanted, who or f"rank {place.rank}"
        self._address = place.address
        self._route: tuple[str, str] | None = None  # from here, to the store's host
        self._place = place
        self._timeout_s = timeout_s
        # A job that one joins runs already, or is over.
        self._connect_s = min(timeout_s, _JOIN_S) if place.joins else timeout_s
        self._clock = clock or SystemClock()
        self._store: TimelyStore | None = None
        self._sealed: SealedStore | None = None
        self._secret: Secret | None = None
        self._root: Any = None
        self._keeps = place.rank == 0 and not place.agent_keeps_store

    def __enter__(self) -> Rendezvous:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect to the store; rank 0 keeps it where the launcher does not.

        Raises AddressError if its port is taken, StartTimeoutError if nobody answers there in time
        and, if this process joins a job, JobOverError if nobody does at once; SecretError if it
        has another secret than the others, ConfigError if it can have none.
        """
        place, key, self._address = self._place, user_key(), self._where()
        listener = listen(self._address, place.port) if self._keeps else None
        if listener is None:
            self._knock()
        try:
            store = TCPStore(
                self._address,
                place.port,
                is_master=self._keeps,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._connect_s),
                master_listen_fd=listener.detach() if listener is not None else None,
            )
        except (RuntimeError, dist.DistNetworkError) as error:
            raise self._no_store() from error
        self._root = store
        self._store = TimelyStore(PrefixStore(f"psrpc/{place.job}", store))
        self._secret = self._agree(key)
        self._sealed = SealedStore(self._store, self._secret)
        self.interface = self._settle()

    @property
    def secret(self) -> Secret:
        """The job's secret, once this is open."""
        assert self._secret is not None
        return self._secret

    def _agree(self, key: Secret) -> Secret:
        """The job's secret: of the user's key, the job's name, and the number that came first."""
        assert self._store is not None
        try:
            return job_secret(self._store, key, self._place.job)
        except (RuntimeError, dist.DistError) as error:
            raise self._lost_store() from error
        except SecretError:
            raise SecretError(
                f"rank {self._place.rank} has another secret than the processes that came before: "
                f"do all hosts share a home folder? If not, give all the same {SECRET_FILE} (a "
                f"file with mode 0600) or {SECRET}"
            ) from None

    @property
    def address(self) -> str:
        """Where the store is, HOST:PORT, as others than its own host may reach it too."""
        host = self._address
        if not self._keeps and not self._place.one_host and self.interface is not None:
            host = self.interface.address if self._place.rank == 0 else host
        return f"[{host}]:{self._place.port}" if ":" in host else f"{host}:{self._place.port}"

    def _where(self) -> str:
        """The store's address: on its own host a name may stand for loopback (127.0.1.1)."""
        place = self._place
        address = place.address
        if place.one_host or place.joins or place.agent_keeps_store:
            return address
        if not addresses.is_loopback(addresses.resolve(address)):
            return address
        return addresses.store_address(address, self._wanted)

    def _settle(self) -> Interface | None:
        """The interface to listen on."""
        wanted = self._wanted or environment.interface()
        if wanted is not None:
            return addresses.chosen(wanted)
        if self._place.one_host:
            return None
        if self._keeps:
            return addresses.with_address(addresses.resolve(self._address))
        assert self._route is not None
        own, there = self._route
        if not addresses.is_loopback(there):
            self.say(_SEEN, there)
        if not addresses.is_loopback(own):
            return addresses.with_address(own)
        only = addresses.alone()
        if only is not None:
            return only
        (seen,) = self.read([_SEEN])
        return addresses.with_address(seen)

    def branch(self, name: str) -> Store:
        """A way to the store for another thread's own use, with its keys under `name`.

        Whoever waits on a way keeps it to himself. Raises PeerLostError if the store is gone.
        """
        place = self._place
        try:
            store = TCPStore(
                self._address,
                place.port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._timeout_s),
            )
        except (RuntimeError, dist.DistError) as error:
            raise self._lost_store() from error
        return PrefixStore(f"psrpc/{place.job}/{name}", store)

    def sealed_branch(self, name: str) -> SealedStore:
        """The store's keys under `name`, where no process but this job's is believed.

        For any thread, over the connection that there is: torch's store looks up the names of
        those that connect, and answers nobody while a name server is silent.
        """
        assert self._store is not None
        return SealedStore(self._store.branch(name), self.secret, name)

    def _knock(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until somebody listens where the store is; the store's own waiting logs a lot."""
        began = self._clock.now()
        deadline, say_at = began + self._timeout_s, began + _SAY_AGAIN_S
        while True:
            try:
                with socket.create_connection((self._address, self._place.port), 5.0) as door:
                    self._route = (door.getsockname()[0], door.getpeername()[0])
                return
            except OSError as error:
                if self._place.joins:
                    raise JobOverError("nobody keeps its store any more") from error
                now = self._clock.now()
                if now > deadline:
                    raise self._no_store() from error
                if now > say_at:
                    say_at = now + _SAY_AGAIN_S
                    self._grumble(now - began, error)
            sleep(_LOOK_AGAIN_S)

    def _grumble(self, waited_s: float, error: OSError) -> None:
        """Say, once a host, that rank 0 has not come."""
        if self._place.local_rank == 0:
            print(
                f"psrpc: {self._who} on {socket.gethostname()} has waited {waited_s:.0f} s for "
                f"server 0, which keeps the store at {self._address}:{self._place.port}: "
                f"{error.strerror or error}",
                file=sys.stderr,
                flush=True,
            )

    def _no_store(self) -> StartTimeoutError:
        place = self._place
        return StartTimeoutError(
            f"{self._who} found no store at {self._address}:{place.port} within "
            f"{self._timeout_s:g} s: is rank 0 running, and does MASTER_ADDR name its host?"
        )

    def _lost_store(self) -> PeerLostError:
        lost = f"{self._who} lost the store at {self._address}:{self._place.port}"
        return PeerLostError(f"{lost}: rank 0 or its launcher has ended")

    def close(self) -> None:
        """Leave. The process that keeps the store stays until the others have left, or 2 s."""
        self.say(left(self._place.rank))
        if self._keeps:
            everybody = [left(rank) for rank in range(self._place.world_size)]
            self.await_or_give_up(everybody, FAREWELL_S)
        if self._store is not None:
            self._store.close()

    def number(self) -> int:
        """A number from 0 on that no process of the job has had before."""
        assert self._store is not None
        try:
            return int(self._store.add("numbers", 1)) - 1
        except (RuntimeError, dist.DistError) as error:
            raise self._lost_store() from error

    def announce(self, key: str, value: str) -> None:
        """Let even those read `value` who do not know the job's name; they know who said it."""
        self._root.set(key, user_key().derive("lobby").seal(key, value))

    def publish(self, key: str, value: str) -> None:
        """Let the others read `value` under `key`. Raises PeerLostError if the store is gone."""
        assert self._sealed is not None
        try:
            self._sealed.set(key, value)
        except (RuntimeError, dist.DistError) as error:
            raise self._lost_store() from error

    def say(self, key: str, value: str = "") -> None:
        """Publish, if the store is still there."""
        with hushed(), contextlib.suppress(PeerLostError):
            self.publish(key, value)

    def heard(self, key: str, *, hush: bool = True) -> str | None:
        """What was published under `key`, if this job published it, and has its store.

        With `hush` torch logs nothing meanwhile.
        """
        assert self._sealed is not None
        with (
            hushed() if hush else contextlib.nullcontext(),
            contextlib.suppress(RuntimeError, dist.DistError, SecretError),
        ):
            if self._sealed.check([key]):
                return self._sealed.get(key).decode()
        return None

    def answers(self) -> bool:
        """Whether the store is still there."""
        assert self._store is not None
        with hushed(), contextlib.suppress(RuntimeError, dist.DistError):
            self._store.check([PULSE])
            return True
        return False

    def read(self, keys: Sequence[str]) -> list[str]:
        """Wait for all keys and return their values.

        Raises StartTimeoutError that names the keys that nobody published in time, the error for
        which a server could not begin, PeerLostError if the store is gone, and SecretError for what
        no process of this job has published.
        """
        assert self._store is not None
        assert self._sealed is not None
        try:
            if not self._have_come(keys, self._timeout_s, heed_failure=True):
                missing = [key for key in keys if not self._store.check([key])]
                names = dict.fromkeys(self.named(key) for key in missing)
                raise StartTimeoutError(
                    f"{self._who} waited {self._timeout_s:g} s and these have not come: "
                    f"{', '.join(names)}"
                )
            return [self._sealed.get(key).decode() for key in keys]
        except (RuntimeError, dist.DistError) as error:
            raise self._lost_store() from error

    def heed_failure(self) -> None:
        """Raise the error for which a server could not begin, if there is one."""
        if (text := self.heard(FAILED)) is not None:
            raise decode(*json.loads(text))

    def await_or_give_up(self, keys: Sequence[str], timeout_s: float) -> None:
        """Wait for keys, but not long, and not if the store itself is gone."""
        with hushed(), contextlib.suppress(RuntimeError, dist.DistError):
            self._have_come(keys, timeout_s)

    def _have_come(
        self, keys: Sequence[str], timeout_s: float, *, heed_failure: bool = False
    ) -> bool:
        """Wait for keys; look again and again, for the store's own `wait` logs its time limits."""
        assert self._store is not None
        deadline = self._clock.now() + timeout_s
        while not self._store.check(list(keys)):
            if self._clock.now() > deadline:
                return False
            if heed_failure:
                self.heed_failure()
            time.sleep(_LOOK_AGAIN_S)
        return True


def here(rank: int) -> str:
    """The key under which a rank says that it has come, and on which host it is."""
    return f"here/{rank}"


def worker_name(process: int) -> str:
    """The name of a worker process's agent."""
    return f"worker{process}"


def shm_key(name: str) -> str:
    """The key under which a server says where it shares memory; empty if it does not."""
    return f"{name}/shm"


def stream_key(name: str) -> str:
    """The key under which a server says where it takes streams; empty if it does not."""
    return f"{name}/stream"


def groups_key(name: str) -> str:
    """Where the members of a server's process groups find each other."""
    return f"{name}/groups"


def reason(name: str) -> str:
    """The key under which a server says why it leaves before the job is done."""
    return f"{name}/reason"


def gone(name: str) -> str:
    """The key under which a node says that it calls and answers no more."""
    return f"{name}/gone"


def left(rank: int) -> str:
    """The key under which a rank says that it needs the store no more."""
    return f"left/{rank}"
