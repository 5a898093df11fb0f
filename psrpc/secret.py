"""What the processes of a job know and strangers do not.

A user has a key: what the environment gives (`PSRPC_SECRET`, or the file that `PSRPC_SECRET_FILE`
names), or a file of mode 0600 in the user's home, which the first process makes. Of that, the
job's name and a random number of the job's own comes the job's secret, which is never sent:
who has it proves that (`psrpc.planes.doors`), and signs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from psrpc import environment
from psrpc.environment import SECRET, SECRET_FILE
from psrpc.errors import ConfigError, SecretError

MAC_BYTES = 32
NONCE_BYTES = 16
_LEAST_BYTES = 16  # of a key: less can be guessed
_LARGEST_BYTES = 4096
_PARTS_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Secret:
    """A key that is never shown, sent or written."""

    key: bytes = field(repr=False)

    @classmethod
    def random(cls) -> Secret:
        """A new one."""
        return cls(os.urandom(MAC_BYTES))

    def mac(self, purpose: str, *parts: bytes) -> bytes:
        """What only who has this secret can say of `parts`: `MAC_BYTES` bytes (HMAC, RFC 2104).

        Each purpose has a MAC of its own, and how the parts are cut matters.
        """
        first = purpose.encode()
        said = b"".join(len(part).to_bytes(8, "little") + part for part in (first, *parts))
        return hmac.digest(self.key, said, "sha256")

    def knows(self, mac: bytes, purpose: str, *parts: bytes) -> bool:
        """Whether `mac` was made with this secret. Takes as long for a wrong one as for another."""
        return hmac.compare_digest(mac, self.mac(purpose, *parts))

    def signer(self, purpose: str) -> hmac.HMAC:
        """A MAC of much: `update` it, and take its `digest`."""
        return hmac.new(self.mac("signer", purpose.encode()), digestmod=hashlib.sha256)

    def derive(self, purpose: str, *parts: bytes) -> Secret:
        """Another secret, from which this one cannot be told."""
        return Secret(self.mac("derive", purpose.encode(), *parts))

    def seal(self, key: str, value: str) -> str:
        """`value` with a MAC that says it belongs to `key`."""
        return self.mac("seal", key.encode(), value.encode()).hex() + value

    def unseal(self, key: str, text: str) -> str:
        """What `seal` was given. Raises SecretError if it was not given this."""
        mac, value = text[: 2 * MAC_BYTES], text[2 * MAC_BYTES :]
        with suppress(ValueError):
            if self.knows(bytes.fromhex(mac), "seal", key.encode(), value.encode()):
                return value
        raise SecretError(
            f"what {key!r} says was not said by a process that has this job's secret: does another "
            f"user's job use the same address, or do hosts have different secrets ({SECRET_FILE})?"
        )


def user_key() -> Secret:
    """The user's key: what the environment gives, or a file in the home that is made if need be.

    Raises ConfigError for one that is too short, or a file that others may read.
    """
    text, path = environment.secret()
    if text is not None:
        return _checked(text.encode(), f"the variable {SECRET}")
    if path is not None:
        return _read(Path(path), f"{path}, which {SECRET_FILE} names,")
    for folder in _folders():
        with suppress(OSError):
            _make(folder)
            return _read(folder / "secret", str(folder / "secret"))
    raise ConfigError(
        f"there is no place for this user's secret (tried {', '.join(map(str, _folders()))}): "
        f"set {SECRET_FILE} to a file with mode 0600 that has some random bytes"
    )


def _folders() -> tuple[Path, Path]:
    """The home's, and where that cannot be written one that is this host's only."""
    return (
        Path(os.path.expanduser("~")) / ".psrpc",
        Path(tempfile.gettempdir()) / f"psrpc-{os.geteuid()}",
    )


def _make(folder: Path) -> None:
    """Let a folder of this user's have a secret. Raises OSError where that cannot be."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{folder} is another's")
    path = folder / "secret"
    if path.exists():
        return
    descriptor, new = tempfile.mkstemp(dir=folder)  # mode 0600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(os.urandom(MAC_BYTES).hex() + "\n")
        # Whole, or not at all; and where several begin at once, the first one's.
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        os.unlink(new)


def _read(path: Path, name: str) -> Secret:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _PARTS_OF_OTHERS:
                raise ConfigError(f"{name} may be used by others: chmod 600 {path}")
            return _checked(file.read(_LARGEST_BYTES), name)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None


def _checked(text: bytes, name: str) -> Secret:
    text = text.strip()
    if len(text) < _LEAST_BYTES:
        raise ConfigError(
            f"{name} has {len(text)} characters, too few for a secret: take {_LEAST_BYTES} or "
            "more, such as `openssl rand -hex 32` gives"
        )
    return Secret(hashlib.sha256(text).digest())
