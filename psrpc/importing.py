"""Objects that a user names as `package.module:callable`."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable

from psrpc.errors import PsrpcError

_LONGEST = 240


def is_path(name: str) -> bool:
    """Say whether `name` is meant as `module:callable`, not as the name of something built in."""
    return ":" in name


def find(path: str, kind: type[PsrpcError]) -> Callable[[], object]:
    """Import the module of `path` and return its callable, without calling it.

    `path` is `package.module:name`; the name may be dotted. The current folder
    is searched first, as `python -m` would. Blocks for as long as the import
    does. Everything that goes wrong is raised as a `kind` of one line that
    names `path`, with its cause chained.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise kind(f"{path!r} is not of the form 'package.module:callable'")
    loaded = _import(path, module, kind)
    try:
        target: object = functools.reduce(getattr, name.split("."), loaded)
    except Exception as error:
        raise kind(f"{path!r} cannot be used: {cause(error)}") from error
    if not callable(target):
        got = type(target).__name__
        raise kind(f"{path!r} is an object of type {got}; a function or a class is needed")
    return target


def call(path: str, kind: type[PsrpcError]) -> object:
    """Call what `path` names, without arguments, and return its result. Fails as `find` does."""
    target = find(path, kind)
    try:
        return target()
    except (Exception, SystemExit) as error:
        raise kind(f"{path!r} failed when it was called: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return the type of `error` and the first line of its text, for use in a one-line error."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _import(path: str, module: str, kind: type[PsrpcError]) -> object:
    _add_current_folder()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_about(error, module):
            text = f"there is no module {error.name!r} in {os.getcwd()} or on the import path"
        else:
            text = f"importing {module!r} failed: {cause(error)}"
        raise kind(f"{path!r} cannot be used: {text}") from error


def _is_about(error: ModuleNotFoundError, module: str) -> bool:
    """Say whether `module` itself, or a package around it, is what is missing."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")


def _add_current_folder() -> None:
    # It stays on the path, because the callable may import later, and so may
    # the processes that unpickle its samples. `python -P` forbids it.
    folder = os.getcwd()
    if not sys.flags.safe_path and "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    # A module written a moment ago can be missing from the finders' caches.
    importlib.invalidate_caches()
