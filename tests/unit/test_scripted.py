"""Commands that are given a script of the user's with its own options."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from psrpc.scripted import OfScript, WithScript

given: list[Any] = []


@click.command(cls=WithScript)
@click.argument("address")
@click.argument("script", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", type=int, default=1)
@click.option("--loud", is_flag=True)
def command(address: str, script: tuple[str, ...], workers: int, loud: bool) -> None:
    """Do nothing."""
    given[:] = [address, script, workers, loud]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a:1", ["a:1", (), 1, False]),
        ("a:1 --workers 2", ["a:1", (), 2, False]),
        ("--workers 2 a:1 --loud", ["a:1", (), 2, True]),
        ("a:1 mine.py --epochs 3", ["a:1", ("mine.py", "--epochs", "3"), 1, False]),
        ("a:1 --workers 2 mine.py --workers 9", ["a:1", ("mine.py", "--workers", "9"), 2, False]),
        ("--workers=2 a:1 mine.py -x", ["a:1", ("mine.py", "-x"), 2, False]),
        ("a:1 --loud -- mine.py --loud", ["a:1", ("mine.py", "--loud"), 1, True]),
    ],
)
def test_a_scripts_options_are_its_own(words: str, expected: list[Any]) -> None:
    ended = CliRunner().invoke(command, words.split())
    assert ended.exit_code == 0, ended.output
    assert given == expected


def test_options_of_nobody_are_still_refused() -> None:
    ended = CliRunner().invoke(command, ["a:1", "--epochs", "3"])
    assert ended.exit_code == 2
    assert "No such option" in ended.output


@click.command(cls=OfScript)
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--workers", type=int, default=1)
@click.option("-m", "module", is_flag=True)
def launch(script: tuple[str, ...], workers: int, module: bool) -> None:
    """Do nothing."""
    given[:] = [script, workers, module]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mine.py --workers 9", [("mine.py", "--workers", "9"), 1, False]),
        ("--workers 2 mine.py a -m", [("mine.py", "a", "-m"), 2, False]),
        ("--workers=2 -m mine.train --x 1", [("mine.train", "--x", "1"), 2, True]),
        ("-m -- mine -m", [("mine", "-m"), 1, True]),
    ],
)
def test_all_is_the_scripts_from_its_name_on(words: str, expected: list[Any]) -> None:
    ended = CliRunner().invoke(launch, words.split())
    assert ended.exit_code == 0, ended.output
    assert given == expected
