"""The ways to run psrpc that are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MODES = ("sync", "bounded", "async")


@dataclass(frozen=True)
class Variant:
    """A way to run psrpc: what `psrpc.run` is given for it, and the modes that know it.

    `autograd` says that it needs gradients that come about in a backward pass, `shards`
    that more servers than one make a difference to it.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] = MODES
    autograd: bool = False
    shards: bool = True


# Planes by their names: what "auto" is depends on the host.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("rpc", {"plane": "rpc"}),
        Variant("shm", {"plane": "shm"}),
        Variant("shm+overlap", {"plane": "shm", "overlap": True}, ("bounded", "async")),
        Variant("collective", {"plane": "collective"}, ("sync",)),
    )
}


def name_of(variant: str, mode: str, servers: int = 1) -> str:
    """What tables call it."""
    shown = {"bounded": "bounded 4"}.get(mode, mode)
    return f"psrpc {shown}, {variant}{'' if servers == 1 else f', {servers} servers'}"


def chosen(variants: Iterable[str], modes: Iterable[str]) -> list[tuple[Variant, str]]:
    """Every one of these variants in every one of these modes that it knows."""
    wanted = set(modes)
    return [
        (VARIANTS[name], mode)
        for name in variants
        for mode in VARIANTS[name].modes
        if mode in wanted
    ]
