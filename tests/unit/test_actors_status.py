"""Which cluster `psrpc status` shows. No other processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from psrpc.actors.head import Head
from psrpc.cli import cli
from psrpc.core.placement import Resources
from psrpc.errors import AddressError


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head("127.0.0.1")
    head.expect("mine", Resources(2, 0, 0), {"zone": "a"})
    head.start()
    yield head
    head.close()


def status(*arguments: str) -> str:
    ended = CliRunner().invoke(cli, ["status", *arguments], catch_exceptions=True)
    if ended.exception is not None:
        raise ended.exception
    return ended.output


def test_the_cluster_in_the_environment_is_shown(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSRPC_CLUSTER", head.address)
    token, _, where = head.address.rpartition("@")
    shown = status()
    assert shown.splitlines()[0] == where
    assert "mine" in shown
    assert token not in shown


def test_a_given_address_counts_more_than_the_environment(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSRPC_CLUSTER", "nonsense")
    assert "mine" in status(head.address)
    with pytest.raises(AddressError, match="no address of a cluster"):
        status()


def test_without_either_those_of_this_host_are_shown_and_who_needs_an_address_is_told(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSRPC_CLUSTER", "")
    monkeypatch.setattr("psrpc.actors.display.clusters_here", list)
    assert "give its address, here or in PSRPC_CLUSTER" in status()
