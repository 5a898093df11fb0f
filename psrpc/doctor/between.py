"""What the doctor measures between the hosts of a launch: the clocks, and the links.

One process of each host, its lowest rank, listens behind a door and visits the next host's, one
after the other, so that none measures another's traffic. Rank 0 collects what they have found.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from psrpc.doctor.findings import Finding, Level, bad, ok, warning
from psrpc.environment import Place
from psrpc.errors import PsrpcError
from psrpc.planes.doors import Door, knock, receive
from psrpc.rendezvous import Rendezvous
from psrpc.secret import Secret

PURPOSE = "doctor"
_ASK = struct.Struct("!cQ")
_TIME = struct.Struct("!d")
_CLOCK, _TAKE = b"c", b"t"
_ASKED = 20  # times, for the clock: the quickest answer counts
_FIRST_BYTES = 1 << 18
_MOST_BYTES = 1 << 27
_MEASURED_S = 0.5
_LIMIT_S = 60.0
_MEGA = 1e6
LATE_CLOCK_S = 1.0
SLOW_MB_S = 100.0
FAR_S = 0.005


def attend(sock: socket.socket) -> None:
    """Answer one who measures, until he hangs up."""
    with sock:
        sock.settimeout(_LIMIT_S)
        try:
            while True:
                kind, size = _ASK.unpack(receive(sock, _ASK.size, time.monotonic() + _LIMIT_S))
                left = min(size, _MOST_BYTES) if kind == _TAKE else 0
                while left:
                    left -= len(receive(sock, min(left, 1 << 16), time.monotonic() + _LIMIT_S))
                sock.sendall(_TIME.pack(time.time()))
        except (OSError, EOFError, struct.error):
            return


def clock_of(sock: socket.socket) -> tuple[float, float]:
    """How far the other's clock is ahead, and how long a word takes there and back, in seconds."""
    best = (0.0, _LIMIT_S)
    for _ in range(_ASKED):
        before, began_s = time.time(), time.monotonic()
        theirs = _asked(sock, _CLOCK, 0)
        took_s = time.monotonic() - began_s
        if took_s < best[1]:
            best = (theirs - (before + took_s / 2), took_s)
    return best


def speed_of(sock: socket.socket) -> float:
    """Megabytes a second to the other end, over half a second or so."""
    size = _FIRST_BYTES
    while True:
        began_s = time.monotonic()
        _asked(sock, _TAKE, size)
        took_s = time.monotonic() - began_s
        if took_s > _MEASURED_S / 2 or size == _MOST_BYTES:
            return size / took_s / _MEGA
        wanted = int(size * _MEASURED_S / max(took_s, 1e-4))
        size = min(max(wanted, 2 * size), _MOST_BYTES)


def _asked(sock: socket.socket, kind: bytes, size: int) -> float:
    sock.settimeout(_LIMIT_S)
    sock.sendall(_ASK.pack(kind, size))
    piece = memoryview(bytes(1 << 16))
    left = size
    while left:
        left -= sock.send(piece[: min(left, len(piece))])
    answer: float = _TIME.unpack(receive(sock, _TIME.size, time.monotonic() + _LIMIT_S))[0]
    return answer


def clock(ahead_s: float, took_s: float, other: str) -> Finding:
    """Judges the difference of two clocks. psrpc itself does not read them; logs are compared."""
    text = f"{other}'s is {abs(ahead_s):.3f} s {'ahead' if ahead_s > 0 else 'behind'}"
    text += f", to within {took_s / 2:.3f} s"
    if abs(ahead_s) > LATE_CLOCK_S + took_s:
        return warning("clock", text, "run chrony or ntpd on all hosts: logs cannot be compared")
    return ok("clock", text)


def link(mb_s: float, took_s: float, other: str) -> Finding:
    """Judges a link."""
    text = f"{mb_s:.0f} MB/s to {other}, {took_s * 1e3:.2f} ms there and back"
    if mb_s < SLOW_MB_S or took_s > FAR_S:
        return warning(
            "link",
            text,
            "is this the right interface? Over a slow link prefer larger batches, --mode async "
            "and --overlap",
        )
    return ok("link", text)


def unreached(other: str, where: str, why: str) -> Finding:
    """Says that one host cannot be reached from another."""
    return bad(
        "link",
        f"{other} cannot be reached at {where} ({why})",
        "let hosts of the job through the firewall at all ports, or choose the interface by which "
        "they reach each other",
    )


def measured(other: str, where: str, secret: Secret) -> list[Finding]:
    """What there is to say of the way to another host, whose door is at `where`."""
    host, _, port = where.rpartition(":")
    try:
        with knock(host, int(port), secret, PURPOSE) as sock:
            ahead_s, took_s = clock_of(sock)
            mb_s = speed_of(sock)
    except (OSError, EOFError, PsrpcError) as error:
        return [unreached(other, where, str(error))]
    return [clock(ahead_s, took_s, other), link(mb_s, took_s, other)]


def hosts_of(said: Sequence[str]) -> list[int]:
    """The lowest rank of each host, by the names that the ranks have said."""
    return [rank for rank, name in enumerate(said) if name not in said[:rank]]


def look_between(place: Place, listens: str, rendezvous: Rendezvous) -> list[Finding]:
    """Measure with all processes of a launch. Blocks; returns on rank 0 what all have found.

    `listens` is the address of this host that others are told; empty if there is none.
    """
    rank, name = place.rank, socket.gethostname()
    rendezvous.publish(f"doctor/host/{rank}", f"{name} {listens}")
    everybody = rendezvous.read([f"doctor/host/{each}" for each in range(place.world_size)])
    leaders = hosts_of(everybody)
    if rank not in leaders:
        return []
    door = Door(listens or "127.0.0.1", rendezvous.secret, PURPOSE, attend)
    door.start()
    try:
        rendezvous.publish(f"doctor/door/{rank}", f"{name} {listens}:{door.port}")
        turn = leaders.index(rank)
        following = leaders[(turn + 1) % len(leaders)]
        keys = [f"doctor/door/{following}"]
        keys += [f"doctor/found/{leaders[turn - 1]}"] if turn else []
        other, where = rendezvous.read(keys)[0].split()
        found = measured(other, where, rendezvous.secret) if following != rank else []
        found = [replace(each, host=name) for each in found]
        lines = json.dumps([{**asdict(each), "level": each.level.value} for each in found])
        rendezvous.publish(f"doctor/found/{rank}", lines)
        texts = rendezvous.read([f"doctor/found/{each}" for each in leaders])
    finally:
        door.close()
    if rank:
        return []
    return [
        Finding(**{**each, "level": Level(each["level"])})
        for text in texts
        for each in json.loads(text)
    ]
