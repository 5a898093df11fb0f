"""A user's secret: where it comes from, who may read it, and what is made of it."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from psrpc.errors import ConfigError, SecretError
from psrpc.sealed import SealedStore
from psrpc.secret import Secret, user_key

ONE, OTHER = Secret(b"one"), Secret(b"other")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PSRPC_SECRET_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_is_made_once_and_is_nobody_elses(home: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: user_key(), range(32)))
    assert len(keys) == 1, "whoever begins first, all have the same"
    folder = home / ".psrpc"
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "secret").unlink()
    assert user_key() not in keys


def test_a_file_that_others_may_read_is_refused(home: Path) -> None:
    user_key()
    for mode in (0o640, 0o604, 0o620, 0o601):
        (home / ".psrpc" / "secret").chmod(mode)
        with pytest.raises(ConfigError, match=r"may be used by others: chmod 600"):
            user_key()


def test_without_a_home_it_is_this_hosts(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    assert user_key() == user_key()
    place = temporary / f"psrpc-{os.geteuid()}"
    assert (place / "secret").exists()
    (place / "secret").unlink()
    place.rmdir()
    place.symlink_to(tmp_path_factory.mktemp("anothers"))
    with pytest.raises(ConfigError, match="there is no place for this user's secret"):
        user_key()


def test_the_environment_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = user_key()
    path = home / "key"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    monkeypatch.setenv("PSRPC_SECRET_FILE", str(path))
    of_file = user_key()
    assert of_file != mine
    monkeypatch.setenv("PSRPC_SECRET", "0123456789abcdef")
    assert user_key() == of_file, "white space at its end does not matter"
    monkeypatch.setenv("PSRPC_SECRET", "0123456789abcde")
    with pytest.raises(ConfigError, match="PSRPC_SECRET has 15 characters, too few"):
        user_key()
    monkeypatch.delenv("PSRPC_SECRET")
    monkeypatch.setenv("PSRPC_SECRET_FILE", str(home / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere, which PSRPC_SECRET_FILE names, cannot be"):
        user_key()


def test_it_is_not_shown() -> None:
    assert "one" not in repr(ONE)
    assert ONE.key.hex() not in str(ONE)


def test_how_parts_are_cut_matters() -> None:
    macs = {
        ONE.mac("a", b"bc"),
        ONE.mac("ab", b"c"),
        ONE.mac("a", b"b", b"c"),
        ONE.mac("a", b"bc", b""),
        OTHER.mac("a", b"bc"),
        ONE.derive("a").mac("a", b"bc"),
    }
    assert len(macs) == 6
    assert ONE.knows(ONE.mac("a", b"bc"), "a", b"bc")
    assert not ONE.knows(ONE.mac("a", b"bc")[:31], "a", b"bc")


def test_a_seal_belongs_to_a_key_and_a_value() -> None:
    sealed = ONE.seal("key", "wert ü")
    assert ONE.unseal("key", sealed) == "wert ü"
    for secret, key, text in (
        (OTHER, "key", sealed),
        (ONE, "another", sealed),
        (ONE, "key", sealed + "!"),
        (ONE, "key", sealed[1:]),
        (ONE, "key", "wert ü"),
        (ONE, "key", ""),
    ):
        with pytest.raises(SecretError, match="was not said by a process that has this job's"):
            secret.unseal(key, text)


class Dict:
    """A store."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        if self.values.get(key, "") == expected:
            self.values[key] = desired
        return self.values.get(key, expected).encode()


def test_what_a_stranger_puts_into_the_store_is_not_believed() -> None:
    store = Dict()
    ours, theirs = SealedStore(store, ONE), SealedStore(store, OTHER)
    ours.set("url", "here")
    assert ours.get("url") == b"here"
    assert ours.compare_set("reign", "", "first") == b"first"
    assert ours.compare_set("reign", "", "second") == b"first"
    assert ours.compare_set("reign", "first", "second") == b"second"
    theirs.set("url", "there")
    with pytest.raises(SecretError):
        ours.get("url")
    store.set("reign", "mine")
    with pytest.raises(SecretError):
        ours.compare_set("reign", "second", "third")
    store.values["reign"] = store.values["url"]
    with pytest.raises(SecretError):
        ours.get("reign")
    branch = SealedStore(store, ONE, "branch")
    ours.set("url", "here")
    with pytest.raises(SecretError):
        branch.get("url")
