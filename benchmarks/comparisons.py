"""Who is held to whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Comparison, against

_SYSTEMS = ("psrpc", "Ray", "DDP", "RPC tutorial")


def usual(names: Sequence[str], limit: str) -> list[Comparison]:
    """Every row by the limit, and by the rows of other systems that do the same.

    Synchronous rows (DDP's is one) have synchronous rivals, all others asynchronous ones.
    """
    systems = [name for name in names if name.startswith(_SYSTEMS)]
    sync = [name for name in systems if is_sync(name)]
    rest = [name for name in systems if not is_sync(name)]
    ours_sync = [name for name in sync if name.startswith("psrpc")]
    ours_rest = [name for name in rest if name.startswith("psrpc")]
    return [
        against(f"of {limit}", limit, names, percent=True),
        _by_mode("× Ray", sync, rest, "Ray"),
        against("× DDP", "DDP on Gloo", ours_sync),
        _by_mode("× RPC tutorial", ours_sync, ours_rest, "RPC tutorial"),
    ]


def is_sync(name: str) -> bool:
    """Whether a row's workers take each step together."""
    return name.startswith("DDP") or "sync" in name.partition(",")[0].split()


def _by_mode(title: str, sync: Sequence[str], rest: Sequence[str], rival: str) -> Comparison:
    pairs = dict.fromkeys(sync, f"{rival} sync") | dict.fromkeys(rest, f"{rival} async")
    return Comparison(title, pairs)
