"""The README's own snippets, run as they stand."""

from __future__ import annotations

import re
import shlex

import torch
from torch import nn

from psrpc.cli import cli
from psrpc.settings import parse
from tests.processes import ROOT, TORCHRUN, Bench

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def script(name: str) -> str:
    """The block whose first line names it."""
    (found,) = (block for block in blocks("python") if block.startswith(f"# {name}\n"))
    return found


def launch_of(script: str) -> list[str]:
    """What torchrun is given to run a script."""
    lines = "".join(blocks("sh")).splitlines()
    (line,) = (x for x in lines if x.startswith("torchrun") and x.endswith(f" {script}"))
    words = shlex.split(line)
    assert words[0] == "torchrun"
    return words[1:]


def look_at_the_weights(bench: Bench) -> None:
    """They are a plain state_dict of the README's model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model.load_state_dict(torch.load(bench.folder / "model.pt", weights_only=True))


def test_the_ten_lines(bench: Bench) -> None:
    bench.write("train.py", script("train.py"))
    ended = bench.run(*TORCHRUN, "--standalone", *launch_of("train.py"))
    assert (ended.code, ended.lines) == (0, [])
    assert ended.out.startswith("Report(")
    assert "samples=28760" in ended.out
    look_at_the_weights(bench)


def test_the_loop_with_an_optimizer(bench: Bench) -> None:
    assert launch_of("loop.py") == ["--nproc-per-node=3", "loop.py"]
    bench.write("loop.py", script("loop.py"))
    ranks = bench.ranks("loop.py", count=3).finish()
    assert [(ended.code, ended.lines) for ended in ranks] == [(0, [])] * 3
    assert "samples=7190" in ranks[1].out
    look_at_the_weights(bench)


def test_the_actors(bench: Bench) -> None:
    bench.write("actors.py", script("actors.py"))
    ended = bench.run("actors.py")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "[10, 11, 13, 16, 20]\n[1, 2, 3]\n5\n"


def test_the_commands_have_options_that_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if "psrpc train --" in line]
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line.split("psrpc train", 1)[1])
        flags = [word for word in words if word == "--isolate"]
        words = [word for word in words if word not in flags]
        texts = {
            option.removeprefix("--").replace("-", "_"): value
            for option, value in zip(words[::2], words[1::2], strict=True)
        }
        settings = parse(texts)
        plain = {name: value for name, value in texts.items() if name != "checkpoint_every"}
        assert all(str(getattr(settings, name)) == value for name, value in plain.items()), line


def test_psrpc_join_is_there() -> None:
    line = next(x for block in blocks("sh") for x in block.splitlines() if "psrpc join" in x)
    words = shlex.split(line.split("psrpc join", 1)[1])
    context = cli.commands["join"].make_context("join", words)
    assert context.params["workers"] == 2


def test_psrpc_launch_is_there() -> None:
    lines = [x for block in blocks("sh") for x in block.splitlines() if "psrpc launch" in x]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line.split("psrpc launch", 1)[1])
        context = cli.commands["launch"].make_context("launch", words)
        assert context.params["workers"] == 4
        assert context.params["script"] == ("train.py",)
