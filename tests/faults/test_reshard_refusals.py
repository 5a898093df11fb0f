"""`psrpc scale` of a job whose servers must stay as they are: one line, and the job goes on."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.processes import PATIENCE_S, PSRPC, Bench, wait_until
from tests.scaling import SLOW

REFUSED = {
    "--isolate --checkpoint-dir kept --checkpoint-every 1s": (
        "its servers come back to a checkpoint when one dies, with the number of its start: start "
        "it without --isolate, or without --checkpoint-dir"
    ),
    "--isolate --plane collective --mode sync": (
        "its plane is collective, whose groups are made for the servers of its start"
    ),
}


@pytest.mark.parametrize("options", REFUSED)
def test_a_job_that_cannot_be_scaled_says_why_and_goes_on(bench: Bench, options: str) -> None:
    bench.write("slow.py", SLOW)
    usual = "--dataset slow:Slow --model slow:model --batch-size 5 --workers 1 --epochs 1000"
    trained = bench.start(*PSRPC, "train", *usual.split(), *options.split())
    read = bench.folder / "read"
    wait_until(read.exists, PATIENCE_S, trained.shown)
    (address,) = re.findall(r"psrpc join (\S+)", trained.shown())
    refused = bench.run(*PSRPC, "scale", address, "--servers", "2")
    assert refused.code == 1
    why = f"Error: the job at {address} cannot be scaled: {REFUSED[options]}"
    assert refused.err.splitlines() == [why]
    assert refused.out == ""
    read.unlink()
    wait_until(read.exists, PATIENCE_S, trained.shown)
    os.killpg(trained.process.pid, signal.SIGINT)
    assert trained.finish().code == 130
    trained.leaves_nothing()
