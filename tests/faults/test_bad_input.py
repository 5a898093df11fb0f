"""What the command line says to wrong input: one line per problem, and nothing else."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.distributed import rpc

from psrpc.cli import main
from psrpc.datasets import digits
from psrpc.modes import Asynchronous, BoundedStaleness
from psrpc.settings import parse
from tests.processes import Bench

Said = tuple[int, list[str]]


class Shell:
    """Calls the command line in this process, from a folder of its own."""

    def __init__(self, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capfd = capfd
        self._patch = patch

    def train(self, options: str) -> Said:
        """The exit code of `psrpc train OPTIONS`, and what it wrote to stderr."""
        with pytest.raises(SystemExit) as leaving:
            main(["train", *options.split()])
        out, err = self._capfd.readouterr()
        assert out == ""
        assert isinstance(leaving.value.code, int)
        # The plane suite's RPC agent lives on in the test process, and may still log.
        lines = [line for line in err.splitlines() if "RPC agent for tester" not in line]
        return leaving.value.code, lines

    def as_rank(self, rank: int, world_size: int) -> None:
        """Be one of a launcher's processes from now on."""
        variables = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**variables, "MASTER_PORT": 1}.items():
            self._patch.setenv(name, str(value))


@pytest.fixture
def shell(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Shell:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "PSRPC_LAUNCHER", "PSRPC_FAILURE_FILE", "PSRPC_OVER_FILE"):
        monkeypatch.delenv(name, raising=False)
    # The command line puts the current folder on the path.
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Shell(capfd, monkeypatch)


def test_all_wrong_options_are_reported_at_once(shell: Shell) -> None:
    code, lines = shell.train(
        "--mode fast --servers 0 --workers 0 --staleness -1 --optimizer adamm --lr nan "
        "--reduction max --nonfinite hide --device tpu --epochs 3 --steps 3"
    )
    assert code == 2
    for name, valid in (
        ("mode", "one of sync, async, bounded, not 'fast'"),
        ("servers", "a whole number of at least 1, not '0'"),
        ("workers", "a whole number of at least 1, not '0'"),
        ("staleness", "a whole number of at least 0, not '-1'"),
        ("optimizer", "one of sgd, adam, adamw, adagrad, not 'adamm'"),
        ("lr", "a number of at least 0, not 'nan'"),
        ("reduction", "one of mean, sum, not 'max'"),
        ("nonfinite", "one of error, skip, not 'hide'"),
        ("device", "one of auto, cpu, cuda, not 'tpu'"),
    ):
        assert f"Error: --{name} must be {valid}" in lines
    assert "Error: give --epochs or --steps, not both" in lines
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--plane collective", "--plane collective needs --mode sync, not bounded"),
        ("--plane collective --mode async", "--plane collective needs --mode sync, not async"),
        (
            "--plane rpc --backend gloo",
            "--backend belongs to --plane collective, not to rpc: give --plane collective as well",
        ),
        (
            "--collective-timeout 9",
            "--collective-timeout belongs to --plane collective, not to auto: give --plane "
            "collective as well",
        ),
        (
            "--plane collective --mode sync --backend mpi",
            "--backend must be one of gloo, nccl, not 'mpi'",
        ),
        (
            "--backup-workers 1",
            "--backup-workers belongs to --mode sync, not to bounded: give --mode sync, or no "
            "--backup-workers",
        ),
        (
            "--backup-workers 1 --mode sync --plane collective",
            "--backup-workers cannot be with --plane collective, which adds up all gradients",
        ),
        (
            "--backup-workers 2 --mode sync",
            "--backup-workers 2 leaves none of 2 workers: give fewer, or more --workers",
        ),
    ],
)
def test_options_that_do_not_go_together(shell: Shell, options: str, reason: str) -> None:
    assert shell.train(options) == (2, [f"Error: {reason}"])


def test_restarts_without_a_launcher_of_its_own(shell: Shell) -> None:
    assert shell.train("--max-restarts 3") == (
        2,
        ["Error: --max-restarts needs --isolate: without it a process that dies ends all others"],
    )


@pytest.mark.parametrize("options", ["--isolate", "--port 0", "--isolate --max-restarts 1"])
def test_options_of_the_launcher_under_torchrun(shell: Shell, options: str) -> None:
    shell.as_rank(0, 3)
    code, lines = shell.train(options)
    assert code == 2
    for name, line in zip(re.findall("--[a-z-]+", options), lines, strict=True):
        assert line.startswith(f"Error: {name} is for processes that psrpc train starts itself;")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_staleness_outside_its_mode(shell: Shell, mode: str) -> None:
    code, lines = shell.train(f"--mode {mode} --staleness 8 --epochs 1 --steps 1")
    assert code == 2
    assert lines == [
        "Error: give --epochs or --steps, not both",
        f"Error: --staleness belongs to --mode bounded, not to {mode}: give --mode bounded, or no "
        "--staleness",
    ]


def test_the_default_staleness_may_be_said_in_every_mode() -> None:
    assert parse({"mode": "async", "staleness": "4"}).consistency == Asynchronous()
    assert parse({"mode": "bounded", "staleness": "8"}).consistency == BoundedStaleness(8)


def test_help_says_what_needs_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--staleness X of --mode bounded: steps that a worker may be ahead" in said
    assert "[4]" in said
    for plane in ("auto (shm to", "shm (shared memory)", "rpc (torch RPC)", "needs --mode sync"):
        assert plane in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="here are GPUs")
def test_nccl_without_a_gpu(shell: Shell) -> None:
    code, lines = shell.train("--plane collective --mode sync --backend nccl")
    assert code == 2
    assert lines == [
        "Error: backend nccl needs a GPU of its own for every process, servers included: 3 "
        "processes run here and torch finds 0 GPUs; use backend gloo"
    ]


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/more"])
def test_a_folder_that_cannot_be_made_is_reported_at_once(shell: Shell, folder: str) -> None:
    code, lines = shell.train(f"--checkpoint-dir {folder}")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"Error: --checkpoint-dir {folder} is no folder (")


def test_unknown_names_and_missing_folders_are_reported_at_once(shell: Shell) -> None:
    code, lines = shell.train("--dataset digit --output none/model.pt --json .")
    assert code == 2
    assert lines == [
        "Error: there is no dataset 'digit': use digits, mnist, synthetic, or "
        "package.module:callable",
        "Error: --output none/model.pt cannot be written: none is no folder",
        "Error: --json . is a folder",
    ]


def test_problems_of_different_kinds_are_reported_at_once(shell: Shell) -> None:
    code, lines = shell.train("--model nowhere:f --dataset none --output none/model.pt")
    assert code == 1
    assert [line.split("none")[0] for line in lines[1:]] == [
        "Error: there is no dataset '",
        "Error: --output ",
    ]
    assert lines[0].startswith("Error: 'nowhere:f' cannot be used: there is no module 'nowhere'")


@pytest.mark.usefixtures("vision")
def test_an_unknown_model(shell: Shell) -> None:
    code, lines = shell.train("--model resnet")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("Error: there is no model 'resnet': use one of auto, convnet, mlp,")
    assert "resnet50" in lines[0]


USERS = """
    def raises():
        raise LookupError("on purpose")
"""


@pytest.mark.parametrize("option", ["model", "dataset"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere:f", "there is no module 'nowhere' in "),
        ("users:absent", "AttributeError: module 'users' has no attribute 'absent'"),
        ("broken:f", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("users:raises", "failed when it was called: LookupError: on purpose"),
    ],
)
def test_the_users_own_callable_is_no_good(
    shell: Shell, bench: Bench, option: str, path: str, reason: str
) -> None:
    bench.write("users.py", USERS)
    bench.write("broken.py", "1 / 0")
    if path == "users:raises":
        shell.as_rank(1, 2)  # The launcher does not call it.
    code, lines = shell.train(f"--{option} {path}")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"Error: '{path}' ")
    assert reason in lines[0]


@pytest.mark.usefixtures("vision")
def test_the_model_does_not_take_the_samples(shell: Shell) -> None:
    shell.as_rank(1, 2)
    code, lines = shell.train("--model resnet18")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("Error: model 'resnet18' does not take samples of shape (1, 8, 8): ")


def test_mnist_is_not_there(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, vision: ModuleType
) -> None:
    # Nobody listens on port 9, so this fails at once, network or not.
    monkeypatch.setattr(vision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    code, lines = shell.train("--dataset mnist --data-root empty")
    assert (code, len(lines)) == (1, 1)
    assert str(Path("empty").absolute()) in lines[0]
    assert lines[0].endswith("or use --dataset digits")


def test_the_digits_are_damaged(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "digits.npz").write_bytes(b"PK\x03\x04 no archive")
    monkeypatch.setattr(digits.resources, "files", lambda package: tmp_path)
    shell.as_rank(1, 2)
    code, lines = shell.train("")
    assert (code, len(lines)) == (1, 1)
    assert "digits.npz" in lines[0]
    assert "install psrpc again" in lines[0]


@pytest.mark.parametrize(("options", "world_size"), [("", 1), ("--servers 3", 3)])
def test_too_few_processes(shell: Shell, options: str, world_size: int) -> None:
    shell.as_rank(0, world_size)
    code, lines = shell.train(options)
    assert (code, len(lines)) == (2, 1)
    assert f"{world_size} processes cannot hold" in lines[0].replace("process ", "processes ")


def test_the_output_folder_is_missing_under_torchrun(shell: Shell) -> None:
    shell.as_rank(1, 2)
    code, lines = shell.train("--output none/model.pt")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("Error: --output none/model.pt cannot be written")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_the_port_is_taken(shell: Shell) -> None:
    with taken_port() as port:
        code, lines = shell.train(f"--port {port}")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"Error: port {port} of 127.0.0.1 cannot be had (Address already in")
    assert "--port" in lines[0]


def test_the_master_port_is_taken(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.as_rank(0, 2)
    with taken_port() as port:
        monkeypatch.setenv("MASTER_PORT", str(port))
        code, lines = shell.train("")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"Error: rank 0 cannot listen on 127.0.0.1:{port} (Address already")


def test_torch_has_another_private_interface(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rpc.api, "_init_rpc_states")
    code, lines = shell.train("")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"Error: torch {torch.__version__} has another private RPC interf")
    assert "torch.distributed.rpc.api._init_rpc_states is missing or changed" in lines[0]


WITHOUT_RPC = """
    import sys, torch

    del torch._C._rpc_init
    for name in [name for name in sys.modules if name.startswith("torch.distributed.rpc")]:
        del sys.modules[name]
    del torch.distributed.rpc
    from psrpc.cli import main
    main(["train"])
"""


def test_torch_has_no_rpc(bench: Bench) -> None:
    script = bench.write("script.py", WITHOUT_RPC)
    ended = bench.run(str(script), fresh=True)
    assert (ended.code, len(ended.lines)) == (1, 1), ended.err
    assert "is built without torch.distributed.rpc" in ended.lines[0]
