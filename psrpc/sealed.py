"""The launcher's store as the processes of one job use it: each value says who set it.

Whoever reaches the store may write to it, but nobody believes what has no seal. A seal is made of
the job's secret, the key and the value.
"""

from __future__ import annotations

import os
from typing import Protocol

from psrpc.secret import Secret


class Plain(Protocol):
    """The part of a store that is used here. What it raises is raised on."""

    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str) -> None: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class SealedStore:
    """A store with seals; `name` tells apart what has the same keys.

    `get` and `compare_set` raise SecretError for a value that nobody of this job has set.
    """

    def __init__(self, store: Plain, secret: Secret, name: str = "") -> None:
        self._store = store
        self._secret = secret
        self._name = name

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._store.check(keys))

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        return self._open(key, self._store.get(key))

    def set(self, key: str, value: str) -> None:
        """Give a key a value."""
        self._store.set(key, self._seal(key, value))

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Set a key if it has the value `expected` ("": none); returns what it has then."""
        before = self._seal(key, expected) if expected else ""
        return self._open(key, self._store.compare_set(key, before, self._seal(key, desired)))

    def _seal(self, key: str, value: str) -> str:
        return self._secret.seal(f"{self._name}/{key}", value)

    def _open(self, key: str, value: bytes) -> bytes:
        return self._secret.unseal(f"{self._name}/{key}", value.decode(errors="replace")).encode()


def job_secret(store: Plain, key: Secret, job: str) -> Secret:
    """The secret of a job whose keys are in `store`, for a user with this key.

    Raises SecretError if it is another user's, and what the store raises.
    """
    mine = key.derive("job", job.encode())
    number = SealedStore(store, mine).compare_set("nonce", "", os.urandom(16).hex())
    return mine.derive("secret", number)
