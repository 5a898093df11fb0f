"""The README's own snippets, run as they stand."""

from __future__ import annotations

import re
import shlex

import torch
from torch import nn

from psrpc.settings import parse
from tests.processes import ROOT, TORCHRUN, Bench

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_script_and_the_loop_with_an_optimizer(bench: Bench) -> None:
    script, loop = blocks("python")
    bench.write("train.py", script)
    launch = next(line for line in "".join(blocks("sh")).splitlines() if line.endswith("train.py"))
    words = shlex.split(launch)
    assert words[0] == "torchrun"
    ended = bench.run(*TORCHRUN, "--standalone", *words[1:])
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Report(")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model.load_state_dict(torch.load(bench.folder / "model.pt", weights_only=True))

    own = re.compile(r"^def train.*?(?=^result)", re.MULTILINE | re.DOTALL)
    assert len(own.findall(script)) == 1
    bench.write("train.py", own.sub(lambda _: loop + "\n\n", script))
    ranks = bench.ranks("train.py", count=3).finish()
    assert [(ended.code, ended.err) for ended in ranks] == [(0, "")] * 3
    assert "samples=1438" in ranks[1].out


def test_the_commands_have_options_that_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if "psrpc train --" in line]
    assert len(commands) >= 4
    for line in commands:
        words = shlex.split(line.split("psrpc train", 1)[1])
        texts = {
            option.removeprefix("--").replace("-", "_"): value
            for option, value in zip(words[::2], words[1::2], strict=True)
        }
        settings = parse(texts)
        assert all(str(getattr(settings, name)) == value for name, value in texts.items()), line
