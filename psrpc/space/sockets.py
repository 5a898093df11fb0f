"""Sockets of a space: their options, and the addresses of owners."""

from __future__ import annotations

import socket
from typing import NamedTuple

from psrpc import addresses
from psrpc.errors import AddressError, UsageError

_CONNECT_S = 10.0


class Address(NamedTuple):
    """Where an owner listens, and its secret."""

    secret: str
    host: str
    port: int

    @property
    def shown(self) -> str:
        """Without the secret."""
        return f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Read secret@host:port. Raises UsageError."""
    secret, at, place = text.rpartition("@")
    host, colon, port = place.rpartition(":")
    if not (at and colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(
            "the address of a tuple space must be secret@host:port, as its SpaceServer.address says"
        )
    return Address(secret, host, int(port))


def keep_alive(sock: socket.socket) -> None:
    """Small frames go at once, and a peer that the network cuts off is noticed."""
    addresses.keep_alive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connect(address: Address) -> socket.socket:
    """A blocking socket to an owner. Raises AddressError if nobody listens there, in 10 s."""
    try:
        sock = socket.create_connection((address.host, address.port), _CONNECT_S)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"no tuple space at {address.shown}: {error}") from error
    sock.settimeout(None)
    keep_alive(sock)
    return sock
