"""The rules of `psrpc/__init__.py`'s ROOMS, read from the sources without importing them.

Each check takes the package's sources as {path below psrpc: text} and returns one
sentence per violation; below each is shown to find a small violation of its own.
"""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LONGEST_FUNCTION = 60
LONGEST_FILE = 400
PACKAGE = "psrpc"
FACES = frozenset({"__init__", "__main__"})  # they import anything, nothing imports them
USERS = {"examples"}  # who use the package as others do
OUTSIDE_ROOMS = FACES | {"_version"}
PURE_ROOMS = frozenset({"core"})
IMPURE_IMPORTS = frozenset({"torch", "socket", "threading", "time", "asyncio", "os", "random"})
ENVIRONMENT_MODULE = "environment.py"
ENVIRONMENT_NAMES = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
ROOT = Path(__file__).resolve().parents[2]

Sources = dict[str, str]
Import = tuple[int, str]  # line, absolute dotted name; `from a import b` gives a.b


def read_package(folder: Path) -> Sources:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*.py"))}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def module_of(path: str) -> str:
    return ".".join([PACKAGE, *path.removesuffix(".py").split("/")]).removesuffix(".__init__")


def declared_rooms(sources: Sources) -> list[str]:
    for node in ast.parse(sources["__init__.py"]).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "ROOMS" for t in targets):
            return list(ast.literal_eval(node.value))
    raise AssertionError("psrpc/__init__.py has no ROOMS = (...)")


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import, wherever it stands, and importlib's when its argument is written out."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package[: len(package) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def rooms_are_listed(sources: Sources) -> list[str]:
    rooms = declared_rooms(sources)
    existing = {room_of(path) for path in sources} - OUTSIDE_ROOMS
    return [
        *(
            f"{room} is listed {rooms.count(room)} times"
            for room in sorted(set(rooms))
            if rooms.count(room) > 1
        ),
        *(f"{room} is not listed in ROOMS" for room in sorted(existing - set(rooms))),
        *(f"ROOMS lists {room}, which does not exist" for room in sorted(set(rooms) - existing)),
    ]


def imports_go_up(sources: Sources) -> list[str]:
    order = {room: place for place, room in enumerate(declared_rooms(sources))}
    unlisted = {room_of(path) for path in sources} - set(order)  # another check's matter
    problems = []
    for path, source in sources.items():
        room = room_of(path)
        if room in unlisted:
            continue
        for line, name in imports_of(path, source):
            top, _, below = name.partition(".")
            target = below.partition(".")[0]
            if top != PACKAGE or target == room or target in unlisted - FACES:
                continue
            if target not in order and room in USERS:
                continue
            if target not in order:
                problems.append(f"{path}:{line} imports {name} from the package's own face")
            elif order[target] > order[room]:
                problems.append(f"{path}:{line} imports {name}, a room below {room}")
    return problems


def rooms_have_no_cycles(sources: Sources) -> list[str]:
    modules = {module_of(path) for path in sources}
    graph = {}
    for path, source in sources.items():
        if room_of(path) in OUTSIDE_ROOMS:
            continue
        names = {name for _, name in imports_of(path, source)}
        found = {n if n in modules else n.rpartition(".")[0] for n in names}
        graph[module_of(path)] = found & modules
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return ["a cycle of imports: " + " <- ".join(error.args[1])]
    return []


def one_module_reads_the_environment(sources: Sources) -> list[str]:
    problems = []
    for path, source in sources.items():
        if path == ENVIRONMENT_MODULE:
            continue
        nodes = list(ast.walk(ast.parse(source)))
        aliases = {
            alias.asname or alias.name
            for node in nodes
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "os"
        }
        for node in nodes:
            match node:
                case ast.Attribute(value=ast.Name(id=base), attr=attr) if base in aliases:
                    names = {attr}
                case ast.ImportFrom(module="os"):
                    names = {alias.name for alias in node.names}
                case _:
                    continue
            problems += [f"{path}:{node.lineno} uses os.{n}" for n in names & ENVIRONMENT_NAMES]
    return problems


def pure_rooms_are_pure(sources: Sources) -> list[str]:
    return [
        f"{path}:{line} imports {name}, but {room_of(path)} is pure"
        for path, source in sources.items()
        if room_of(path) in PURE_ROOMS
        for line, name in imports_of(path, source)
        if name.partition(".")[0] in IMPURE_IMPORTS
    ]


def nothing_is_too_long(sources: Sources) -> list[str]:
    problems = []
    for path, source in sources.items():
        if (lines := len(source.splitlines())) > LONGEST_FILE:
            problems.append(f"{path} has {lines} lines, more than {LONGEST_FILE}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    problems.append(
                        f"{path}:{node.lineno} {node.name} has {lines} lines, "
                        f"more than {LONGEST_FUNCTION}"
                    )
    return problems


Check = Callable[[Sources], list[str]]
CHECKS: list[Check] = [
    rooms_are_listed,
    imports_go_up,
    rooms_have_no_cycles,
    one_module_reads_the_environment,
    pure_rooms_are_pure,
    nothing_is_too_long,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rule(check: Check) -> None:
    assert check(read_package(ROOT / PACKAGE)) == []


def small_package(**changes: str) -> Sources:
    """A package of four rooms without a fault; `core__gate="..."` replaces core/gate.py."""
    sources = {
        "__init__.py": "ROOMS: Final = ('errors', 'environment', 'core', 'cli')\nimport psrpc.cli",
        "__main__.py": "from psrpc.cli import main",
        "_version.py": "__version__ = '0'",
        "errors.py": "class PsrpcError(Exception): ...",
        "environment.py": "import os\nrank = os.environ.get('RANK')",
        "core/__init__.py": "",
        "core/gate.py": "from psrpc.errors import PsrpcError\nfrom . import ledger",
        "core/ledger.py": "from ..errors import PsrpcError\nimport dataclasses",
        "cli.py": "import time, os.path\nfrom psrpc._version import __version__\nimport psrpc.core",
    }
    known = {path.removesuffix(".py").replace("/", "__"): path for path in sources}
    for name, text in changes.items():
        sources[known.get(name, name.replace("__", "/") + ".py")] = text
    return sources


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_faultless_package_passes(check: Check) -> None:
    assert check(small_package()) == []


VIOLATIONS: list[tuple[Check, Sources, str]] = [
    (rooms_are_listed, small_package(wire=""), "wire is not listed"),
    (rooms_are_listed, small_package(planes__rpc=""), "planes is not listed"),
    (
        rooms_are_listed,
        small_package(__init__="ROOMS = ['errors', 'environment', 'core', 'cli', 'cli']"),
        "cli is listed 2 times",
    ),
    (
        rooms_are_listed,
        small_package(__init__="ROOMS = ('errors', 'environment', 'core', 'cli', 'wire')"),
        "wire, which does not exist",
    ),
    (imports_go_up, small_package(errors="import psrpc.cli"), "errors.py:1 imports psrpc.cli"),
    (imports_go_up, small_package(errors="from psrpc import cli"), "a room below errors"),
    (imports_go_up, small_package(errors="from . import cli"), "a room below errors"),
    (imports_go_up, small_package(core__gate="from ..cli import main"), "a room below core"),
    (imports_go_up, small_package(core____init__="from ..cli import main"), "a room below core"),
    (
        imports_go_up,
        small_package(errors="def f():\n    from psrpc.cli import main"),
        "errors.py:2",
    ),
    (imports_go_up, small_package(errors="if TYPE_CHECKING:\n    import psrpc.core.gate"), ":2"),
    (imports_go_up, small_package(errors="importlib.import_module('psrpc.cli')"), "errors.py:1"),
    (imports_go_up, small_package(cli="from psrpc import run"), "the package's own face"),
    (imports_go_up, small_package(cli="import psrpc"), "the package's own face"),
    (rooms_have_no_cycles, small_package(core__ledger="from . import gate"), "psrpc.core.gate"),
    (rooms_have_no_cycles, small_package(core__ledger="from .gate import Gate"), "psrpc.core.gate"),
    (one_module_reads_the_environment, small_package(cli="import os\nos.environ['A']"), "cli.py:2"),
    (
        one_module_reads_the_environment,
        small_package(cli="import os as o\no.getenv('A')"),
        "getenv",
    ),
    (one_module_reads_the_environment, small_package(cli="from os import environ as e"), "environ"),
    (pure_rooms_are_pure, small_package(core__gate="from time import monotonic"), "core is pure"),
    (pure_rooms_are_pure, small_package(core__gate="import torch.nn as nn"), "core/gate.py:1"),
    (nothing_is_too_long, small_package(cli="x = 1\n" * (LONGEST_FILE + 1)), "401 lines"),
    (
        nothing_is_too_long,
        small_package(cli="class A:\n    async def f():\n" + "        x = 1\n" * LONGEST_FUNCTION),
        "cli.py:2 f has 61 lines",
    ),
]


@pytest.mark.parametrize(("check", "sources", "expected"), VIOLATIONS)
def test_a_violation_is_found(check: Check, sources: Sources, expected: str) -> None:
    problems = check(sources)
    assert len(problems) == 1
    assert expected in problems[0]


def test_no_rooms_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no ROOMS"):
        declared_rooms({"__init__.py": "rooms = ()"})


# torch and numpy come first: what they do to logging is theirs.
IMPORT_PROBE = """
import json, logging, os, sys, threading
import numpy, torch, torch.distributed.rpc

def handlers():
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [f"{x.name}: {h!r}" for x in loggers for h in getattr(x, "handlers", ())
            if not isinstance(h, logging.NullHandler)]

def state():
    threads = [thread.name for thread in threading.enumerate()]
    return {"handlers": handlers(), "threads": threads, "environment": dict(os.environ)}

before = state()
import psrpc
assert not [name for name in psrpc.__all__ if getattr(psrpc, name) is None]
json.dump([before, state(), "torchvision" in sys.modules], sys.stdout)
"""


def test_importing_does_nothing() -> None:
    probe = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_PROBE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    before, after, torchvision_imported = json.loads(probe.stdout)
    assert after == before
    assert not torchvision_imported


TORCHLESS = """
import sys
import psrpc, psrpc.cli, psrpc.entities.command
psrpc.init, psrpc.Pool, psrpc.errors.UsageError
assert "torch" not in sys.modules
assert "Pool" in dir(psrpc)
psrpc.Worker
assert "torch" in sys.modules
try:
    psrpc.nothing
except AttributeError as error:
    print(error)
"""


def test_torch_is_imported_when_it_is_needed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TORCHLESS]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert said.stdout == "module 'psrpc' has no attribute 'nothing'\n"
