"""How a cluster is, in lines for people; and which clusters of this user's run on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psrpc import environment
from psrpc.actors.client import Client
from psrpc.actors.doors import NO_TOKEN, UNIX
from psrpc.actors.head import HEAD_NAME
from psrpc.core.placement import Resources
from psrpc.errors import AddressError


def clusters_here() -> list[str]:
    """The addresses of the clusters of this host that only it can reach."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    names = {line.rpartition("@")[2] for line in sockets if f"@{HEAD_NAME}" in line}
    return [f"{NO_TOKEN}@{UNIX}{name}" for name in sorted(names)]


def ask(address: str) -> dict[str, Any]:
    """The status of the cluster at an address. Blocks; raises AddressError if none is there."""
    client = Client(address)
    try:
        client.start()
        return client.status()
    finally:
        client.close()


def lines(address: str | None = None) -> list[str]:
    """The status of the cluster at an address, given or in PSRPC_CLUSTER, or of all here. Blocks.

    Raises AddressError if none is at the address.
    """
    address = address or environment.cluster()
    if address is None:
        return lines_here()
    return lines_of(address.rpartition("@")[2], ask(address))


def lines_here() -> list[str]:
    """The status of every cluster of this user's that only this host can reach. Blocks."""
    lines: list[str] = []
    for address in clusters_here():
        try:
            lines += lines_of(address.rpartition(UNIX)[2], ask(address))
        except AddressError:
            continue  # another user's, or just ended
    return lines or [
        "no cluster of yours runs on this host, but maybe one with psrpc.init(listen=...): for "
        "that give its address, here or in PSRPC_CLUSTER"
    ]


def lines_of(title: str, status: dict[str, Any]) -> list[str]:
    """A cluster's status: a line for each node, and for each actor."""
    lines = [title]
    for node in status["nodes"]:
        state = "" if node["ready"] else " (starting)"
        whole, used = Resources(**node["whole"]), Resources(**node["used"])
        labels = "".join(f", {name}={value}" for name, value in node["labels"].items())
        lines.append(f"  {node['name']}{state}: {used} of {whole} in use{labels}")
    for actor in status["actors"]:
        name = f" {actor['name']!r}" if actor["name"] else ""
        where = f"on {actor['node']}, process {actor['pid']}"
        again = f", {actor['restarts']} restarts" if actor["restarts"] else ""
        lines.append(
            f"  {actor['title']}{name}: {actor['waits'] or actor['state'] + ' ' + where}{again}"
        )
    return lines
