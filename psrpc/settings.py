"""The options of `psrpc train`: their names, defaults, and what may stand there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psrpc.errors import ConfigError
from psrpc.job import Checkpointing, Elastic, Hosts
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous

Parser = Callable[[str], Any]


def whole(low: int) -> Parser:
    """A parser of whole numbers from `low` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"a whole number of at least {low}") from None
        if number < low:
            raise ValueError(f"a whole number of at least {low}")
        return number

    return parse


def few(high: int) -> Parser:
    """A parser of whole numbers from 0 to `high`."""

    def parse(text: str) -> int:
        if text not in map(str, range(high + 1)):
            raise ValueError(" or ".join(map(str, range(high + 1))))
        return int(text)

    return parse


def real(low: float, *, above: bool = False) -> Parser:
    """A parser of numbers from `low` on (or above it)."""
    wanted = f"a number {'above' if above else 'of at least'} {low:g}"

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= number < float("inf") or (above and number == low):
            raise ValueError(wanted)
        return number

    return parse


def choice(*names: str) -> Parser:
    """A parser of one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return parse


def interval(text: str) -> tuple[float | None, int | None]:
    """Read "30s", "5m" or "1h" as seconds, "500" as a number of updates."""
    wanted = "a time above 0 (30s, 5m, 1h) or a number of updates (500)"
    unit = _UNITS_S.get(text[-1:])
    try:
        value = float(text[:-1]) if unit else int(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 < value < float("inf"):
        raise ValueError(wanted)
    return (value * unit, None) if unit else (None, int(value))


_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Option:
    """One option: `--name`, how its text is read, what it is when left out, what it does."""

    name: str
    parse: Parser
    default: str | None
    help: str


# Steps of lead in bounded mode.
_STALENESS = "4"
# Learning rates that suit the built-in models on the built-in datasets.
_LR = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005, "adagrad": 0.1}

OPTIONS = (
    Option("mode", choice("sync", "async", "bounded"), "bounded", "sync|async|bounded"),
    Option("staleness", whole(0), _STALENESS,
           "of --mode bounded: steps that a worker may be ahead of the slowest one when it starts "
           "its next; 0 waits as sync does, more waits less and computes on older weights"),
    Option("backup-workers", whole(0), None,
           "of --mode sync: a step of n workers is made of the first n less so many gradients; "
           "those that come later are dropped, and their samples done again  [0]"),
    Option("servers", whole(1), "1", "number of parameter servers"),
    Option("replicas", few(1), "0",
           "backups of each server, 0 or 1: with one a server may die, and no update is lost"),
    Option("workers", whole(1), "2", "number of workers (under torchrun: the other ranks)"),
    Option("dataset", str, "digits", "digits|mnist|synthetic|module:callable"),
    Option("data-root", str, None, "folder that has or takes MNIST (default ./data)"),
    Option("model", str, "auto", "auto|convnet|mlp|a torchvision model|module:callable"),
    Option("optimizer", choice(*_LR), "adagrad", "sgd|adam|adamw|adagrad"),
    Option("lr", real(0.0), None, "learning rate (default: by optimizer)"),
    Option("momentum", real(0.0), None, "sgd only (default 0.9)"),
    Option("weight-decay", real(0.0), None, "weight decay (default: the optimizer's own)"),
    Option("warmup", whole(0), "30", "steps per worker until the full learning rate"),
    Option("batch-size", whole(1), None, "samples per worker and step (default 32 or 64)"),
    Option("epochs", whole(1), None, "passes over the data (default: digits 20, others 3)"),
    Option("steps", whole(1), None, "steps per worker, in place of --epochs"),
    Option("reduction", choice("mean", "sum"), "mean", "of a synchronous round: mean|sum"),
    Option("nonfinite", choice("error", "skip"), "error", "NaN, Inf in gradients: error|skip"),
    Option("plane", choice("auto", "rpc", "shm", "collective"), "auto",
           "how gradients and weights travel: auto (shm to servers on the worker's own host, rpc "
           "to others), shm (shared memory), rpc (torch RPC), or collective (process groups; needs "
           "--mode sync)"),
    Option("backend", choice("gloo", "nccl"), None,
           "of --plane collective: gloo (CPUs) or nccl (a GPU for every process)  [gloo]"),
    Option("collective-timeout", real(0.0, above=True), None,
           "of --plane collective: seconds until a process that stands still breaks a round  [30]"),
    Option("device", choice("auto", "cpu", "cuda"), "auto", "auto|cpu|cuda"),
    Option("threads", whole(1), None, "torch threads per process (default: cores / workers)"),
    Option("seed", whole(0), "0", "orders samples and starts the model"),
    Option("interface", str, None,
           "network interface, or its address, to listen on (default: loopback on one host, on "
           "several the one whose route leads to the coordinator)"),
    Option("server-placement", choice("spread", "pack", "colocate"), "pack",
           "servers on several hosts: pack (on as few as they need), spread (in turn on each), "
           "colocate (as many on each, beside workers)"),
    Option("address-file", str, None, "file for the job's address, for psrpc join"),
    Option("port", whole(0), "0", "port of the launcher on 127.0.0.1 (0: a free one)"),
    Option("start-timeout", real(0.0, above=True), "300", "seconds to wait for all processes"),
    Option("min-workers", whole(1), None, "begin, and go on, with as few (default: all, and 1)"),
    Option("dead-after", real(0.0, above=True), "10", "seconds of silence that are a death"),
    Option("rejoin-timeout", real(0.0, above=True), "60", "seconds to wait when too few are left"),
    Option("on-worker-failure", choice("continue", "stop"), "continue", "continue|stop"),
    Option("on-poison", choice("stop", "skip"), "stop", "samples that kill workers: stop|skip"),
    Option("max-restarts", whole(0), "100", "with --isolate: how often a process may come back"),
    Option("checkpoint-dir", str, None, "folder for checkpoints of the whole job"),
    Option("checkpoint-every", interval, None, "seconds (30s, 5m, 1h) or updates (500)  [60s]"),
    Option("checkpoint-keep", whole(1), None, "how many checkpoints stay  [3]"),
    Option("resume", str, "never", "never|auto|the folder of a checkpoint"),
    Option("output", str, None, "file for the trained weights, a plain state_dict"),
    Option("json", str, None, "file for the results as one JSON object (- for stdout)"),
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """The options of one `psrpc train`, read and checked. Times are in seconds."""

    mode: str
    staleness: int
    backup_workers: int | None
    servers: int
    replicas: int
    workers: int
    dataset: str
    data_root: str | None
    model: str
    optimizer: str
    lr: float
    momentum: float | None
    weight_decay: float | None
    warmup: int
    batch_size: int
    epochs: int | None
    steps: int | None
    reduction: str
    nonfinite: str
    plane: str
    backend: str | None
    collective_timeout: float
    device: str
    threads: int | None
    seed: int
    interface: str | None
    server_placement: str
    address_file: str | None
    port: int
    start_timeout: float
    min_workers: int | None
    dead_after: float
    rejoin_timeout: float
    on_worker_failure: str
    on_poison: str
    max_restarts: int
    checkpoint_dir: str | None
    checkpoint_every: tuple[float | None, int | None] | None
    checkpoint_keep: int | None
    resume: str
    output: str | None
    json: str | None
    overlap: bool = False
    quiet: bool = False
    isolate: bool = False

    @property
    def server_processes(self) -> int:
        """How many processes serve."""
        return self.servers * (1 + self.replicas)

    @property
    def elastic(self) -> Elastic:
        """What happens when workers come and go, as `psrpc.run` takes it."""
        return Elastic(
            self.min_workers,
            self.on_worker_failure,
            self.on_poison,
            self.dead_after,
            self.rejoin_timeout,
        )

    @property
    def hosts(self) -> Hosts:
        """How the job lies on its hosts, as `psrpc.run` takes it."""
        return Hosts(self.interface, self.server_placement, self.address_file)

    @property
    def checkpointing(self) -> Checkpointing | None:
        """Where checkpoints go, as `psrpc.run` takes it."""
        if self.checkpoint_dir is None:
            return None
        every_s, every = self.checkpoint_every or (60.0, None)
        keep = self.checkpoint_keep or 3
        resume, revived = self.resume, self.isolate
        return Checkpointing(self.checkpoint_dir, every_s, every, keep, resume, revived)

    @property
    def goes_back(self) -> bool:
        """Whether a server that dies comes back, and the job goes on from a checkpoint."""
        plan = self.checkpointing
        return not self.replicas and plan is not None and plan.revived and plan.writes

    @property
    def consistency(self) -> Mode:
        """The mode as `psrpc.run` takes it."""
        match self.mode:
            case "sync":
                return Synchronous(self.backup_workers or 0)
            case "async":
                return Asynchronous()
        return BoundedStaleness(self.staleness)


def parse(
    texts: Mapping[str, str | None],
    *,
    overlap: bool = False,
    quiet: bool = False,
    isolate: bool = False,
) -> TrainSettings:
    """Read the options' texts. Raises ConfigError with everything that is wrong, at once."""
    values: dict[str, Any] = {}
    problems = []
    for option in OPTIONS:
        key = option.name.replace("-", "_")
        text = texts.get(key)
        text = option.default if text is None else text
        try:
            values[key] = None if text is None else option.parse(text)
        except ValueError as error:
            problems.append(f"--{option.name} must be {error}, not {text!r}")
    problems += _contradictions(values)
    problems += _without_effect(texts, isolate=isolate)
    mode = values.get("mode")
    if overlap and (mode == "sync" or (mode == "bounded" and not values.get("staleness", 1))):
        problems.append(
            "--overlap makes weights one step old: it needs --mode async, or bounded with a "
            "--staleness of 1 or more"
        )
    if problems:
        raise ConfigError(problems)
    return TrainSettings(**_filled(values), overlap=overlap, quiet=quiet, isolate=isolate)


def unwritable(settings: TrainSettings) -> list[str]:
    """Say of each file that the job is to write why it cannot be; make the checkpoints' folder."""
    problems = []
    for option, name in (("output", settings.output), ("json", settings.json)):
        path = Path(name or "-")
        if path.is_dir():
            problems.append(f"--{option} {name} is a folder")
        elif not path.parent.is_dir():
            problems.append(f"--{option} {name} cannot be written: {path.parent} is no folder")
    if settings.checkpoint_dir is not None:
        try:
            Path(settings.checkpoint_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            problems.append(f"--checkpoint-dir {settings.checkpoint_dir} is no folder ({why})")
    return problems


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if values.get("checkpoint_dir") is None:
        given = [n for n in ("checkpoint_every", "checkpoint_keep") if values.get(n) is not None]
        given += ["resume"] if values.get("resume", "never") != "never" else []
        problems += [f"--{n.replace('_', '-')} needs a --checkpoint-dir" for n in given]
    if values.get("epochs") and values.get("steps"):
        problems.append("give --epochs or --steps, not both")
    if values.get("momentum") is not None and values.get("optimizer") not in ("sgd", None):
        problems.append(f"--momentum belongs to sgd, not to {values['optimizer']}")
    # What is the default anyhow may be said in every mode.
    if values.get("mode") in ("sync", "async") and values.get("staleness") not in (
        int(_STALENESS),
        None,
    ):
        problems.append(
            f"--staleness belongs to --mode bounded, not to {values['mode']}: give --mode bounded, "
            "or no --staleness"
        )
    problems += _wrong_backups(values)
    collective = values.get("plane") == "collective"
    if collective and values.get("mode") not in ("sync", None):
        problems.append(f"--plane collective needs --mode sync, not {values['mode']}")
    if not collective and "plane" in values:
        problems += [
            f"--{name.replace('_', '-')} belongs to --plane collective, not to {values['plane']}: "
            "give --plane collective as well"
            for name in ("backend", "collective_timeout")
            if values.get(name) is not None
        ]
    return problems


def _without_effect(texts: Mapping[str, str | None], *, isolate: bool) -> list[str]:
    """Say of each option that was given, be it with its default, why it would do nothing."""
    problems = []
    if texts.get("max_restarts") is not None and not isolate:
        problems.append(
            "--max-restarts needs --isolate: without it a process that dies ends all others"
        )
    return problems


def of_the_launcher(texts: Mapping[str, str | None], *, isolate: bool) -> list[str]:
    """Say of each option that is about starting processes that they were started otherwise."""
    given = ["isolate"] if isolate else []
    given += [name for name in ("port", "max_restarts") if texts.get(name) is not None]
    return [
        f"--{name.replace('_', '-')} is for processes that psrpc train starts itself; torchrun has "
        "started these: leave it out"
        for name in given
    ]


def _wrong_backups(values: Mapping[str, Any]) -> list[str]:
    if not values.get("backup_workers"):
        return []
    if values.get("mode") not in ("sync", None):
        return [
            f"--backup-workers belongs to --mode sync, not to {values['mode']}: give --mode sync, "
            "or no --backup-workers"
        ]
    if values.get("plane") == "collective":
        return ["--backup-workers cannot be with --plane collective, which adds up all gradients"]
    return []


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    digits = values["dataset"] == "digits"
    if values["batch_size"] is None:
        values["batch_size"] = 32 if digits else 64
    if values["epochs"] is None and values["steps"] is None:
        values["epochs"] = 20 if digits else 3
    if values["lr"] is None:
        values["lr"] = _LR[values["optimizer"]]
    if values["collective_timeout"] is None:
        values["collective_timeout"] = 30.0
    if values["optimizer"] == "sgd" and values["momentum"] is None:
        values["momentum"] = 0.9
    return values
