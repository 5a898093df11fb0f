"""How processes reach each other: Unix sockets of one user's on one host, or TCP with a token."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack

from psrpc.addresses import keep_alive
from psrpc.errors import AddressError

UNIX = "unix:"
TOKEN_BYTES = 32
NO_TOKEN = "0" * TOKEN_BYTES  # of Unix sockets, where the kernel says who comes
_PEER = struct.Struct("3i")
_SILENT_S = 20  # of another host's kernel: then the host is taken for dead


def listen(where: str, token: str) -> tuple[socket.socket, str]:
    """A listening socket, and the address that is dialled, TOKEN@WHERE. Raises AddressError."""
    if where.startswith(UNIX):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("\0" + where.removeprefix(UNIX))
        listener.listen(512)
    else:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        try:
            listener = socket.create_server((where, 0), family=family, backlog=512)
        except OSError as error:
            raise AddressError(f"cannot listen on {where} ({error.strerror})") from None
        where = f"{where}:{listener.getsockname()[1]}"
    listener.setblocking(False)
    return listener, f"{token}@{where}"


def accept(listener: socket.socket) -> socket.socket | None:
    """Who has come; None if it went again, or is another user's."""
    try:
        sock, _ = listener.accept()
    except OSError:
        return None
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock, _SILENT_S)
    elif not _is_ours(sock):
        sock.close()
        return None
    return sock


def dial(address: str) -> socket.socket:
    """A connection to who listens at TOKEN@WHERE. Raises AddressError if nobody does."""
    token, _, where = address.rpartition("@")
    host, _, port = where.rpartition(":")
    if not where.startswith(UNIX) and not (token and host and port.isdecimal()):
        raise AddressError(
            f"{where!r} is no address of a cluster: give what psrpc.init(...).address shows"
        )
    with ExitStack() as undo:
        try:
            if where.startswith(UNIX):
                sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                sock.connect("\0" + where.removeprefix(UNIX))
                if not _is_ours(sock):
                    raise OSError("it belongs to another user")
            else:
                sock = undo.enter_context(socket.create_connection((host, int(port)), 10.0))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keep_alive(sock, _SILENT_S)
            sock.settimeout(None)
            sock.sendall(token.encode())
        except (OSError, ValueError) as error:
            raise AddressError(f"nobody answers at {where} ({error})") from None
        undo.pop_all()
    return sock


def _is_ours(sock: socket.socket) -> bool:
    """Whether this user, or root, is at the other end; the kernel says so."""
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return _PEER.unpack(peer)[1] in (os.getuid(), 0)
