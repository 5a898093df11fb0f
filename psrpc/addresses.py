"""This host's addresses, and which of them a job's other processes are told."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass

from psrpc.errors import AddressError, ConfigError

LOOPBACK = "127.0.0.1"
_SIOCGIFCONF = 0x8912  # asks the kernel for all interfaces that have an IPv4 address
_ENTRY_BYTES = 40  # one of its answers: 16 bytes of name, a socket address, padding
_ENTRIES = 512


def keep_alive(sock: socket.socket, silent_s: int = 60) -> None:
    """Let the kernel end a TCP connection whose other kernel says nothing for so long.

    A host that loses its power, or its network, does not say that it is gone. Processes may be
    silent for longer.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, silent_s // 3),
        (socket.TCP_KEEPINTVL, silent_s // 6),
        (socket.TCP_KEEPCNT, 4),
        (socket.TCP_USER_TIMEOUT, silent_s * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass(frozen=True)
class Interface:
    """A network interface of this host, and its IPv4 address."""

    name: str
    address: str

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it."""
        return is_loopback(self.address)


def is_loopback(address: str) -> bool:
    """Whether an address, not a name, is of the loopback interface."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0].strip("[]")).version == 6
    except ValueError:
        return False


def interfaces() -> list[Interface]:
    """All interfaces of this host (or network namespace) that have an IPv4 address."""
    room = array.array("B", bytes(_ENTRIES * _ENTRY_BYTES))
    question = struct.pack("iL", len(room), room.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        used, _ = struct.unpack("iL", fcntl.ioctl(probe, _SIOCGIFCONF, question))
    entries = [room[i : i + _ENTRY_BYTES].tobytes() for i in range(0, used, _ENTRY_BYTES)]
    return [
        Interface(entry[:16].split(b"\0", 1)[0].decode(), socket.inet_ntoa(entry[20:24]))
        for entry in entries
    ]


def chosen(wanted: str, found: list[Interface] | None = None) -> Interface:
    """The interface that the user names, or whose address that is.

    Raises ConfigError if there is none, and for an address that is its interface's second one,
    which torch would not use.
    """
    found = interfaces() if found is None else found
    first: dict[str, Interface] = {}
    for each in found:
        first.setdefault(each.name, each)
    if wanted in first:
        return first[wanted]
    match = next((each for each in found if each.address == wanted), None)
    if match is None and _is_ipv6(wanted):
        raise ConfigError(
            f"--interface {wanted} is an IPv6 address, and psrpc uses IPv4 only: give the name or "
            "the IPv4 address of an interface"
        )
    if match is None:
        known = ", ".join(f"{each.name} ({each.address})" for each in found) or "none"
        raise ConfigError(
            f"--interface {wanted} is neither a network interface of {socket.gethostname()} with "
            f"an IPv4 address nor the address of one; there are: {known}"
        )
    if first[match.name] != match:
        raise ConfigError(
            f"--interface {wanted} is the second address of {match.name}, and torch listens on "
            f"the first, {first[match.name].address}: give that, or a name of its own to this one "
            f"(ip addr add {wanted} label {match.name}:1 dev {match.name})"
        )
    return match


def alone(found: list[Interface] | None = None) -> Interface | None:
    """The one interface that other hosts can reach, if there is only one."""
    found = interfaces() if found is None else found
    others = [each for each in found if not each.loopback]
    return others[0] if len(others) == 1 else None


def with_address(address: str, found: list[Interface] | None = None) -> Interface | None:
    """The interface that has this address, if any; of IPv6 addresses none is known here."""
    found = interfaces() if found is None else found
    return next((each for each in found if each.address == address), None)


def resolve(host: str) -> str:
    """The first IPv4 address of a name, or the name itself where it has none."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return host


def store_address(host: str, wanted: str | None) -> str:
    """Where the store of a job on several hosts is that is to be found at `host`.

    On that host itself the name may stand for a loopback address (127.0.1.1); then it is the
    `wanted` interface's, or that of the only one that others can reach. Raises ConfigError if
    there are several.
    """
    address = resolve(host)
    if not is_loopback(address):
        return address
    own = chosen(wanted) if wanted else alone()
    if own is None:
        raise ConfigError(
            f"{host} is a loopback address on {socket.gethostname()}, which has several others: "
            "say with --interface which one the other hosts reach"
        )
    return own.address


def listen(address: str, port: int) -> socket.socket:
    """Listen on the wanted address only; a TCPStore by itself takes all of them.

    Raises AddressError if the port cannot be had.
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        family, kind, proto, _, where = found[0]
        listener = socket.socket(family, kind, proto)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(128)
            undo.pop_all()
    except OSError as error:
        raise AddressError(
            f"rank 0 cannot listen on {address}:{port} ({error.strerror or error}): choose another "
            "port (--master-port of torchrun, --port of psrpc train and psrpc launch)"
        ) from error
    return listener
