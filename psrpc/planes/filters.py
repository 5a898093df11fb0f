"""Address filters in the kernel, for sockets that listen and that torch has made.

TensorPipe ends a process that is sent bytes it does not understand, and runs operators for whoever
asks. Before it sees any of that, the kernel drops the packets of all who are not on a list:
a classic BPF program on the socket (`SO_ATTACH_FILTER`, socket(7)). No privilege is needed.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection
from contextlib import suppress

from psrpc.forks import keep_from_children

SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here are into the IP header
_SOURCE = {4: 12, 6: 8}  # where an IP header has the source's address
_ALL = 0xFFFFFFFF
_MOST = 400  # addresses: a program has 4096 instructions, an address at most 9


def program(addresses: Collection[str], version: int) -> bytes:
    """A BPF program that admits packets from these addresses of IP `version` (4, 6) alone."""
    code: list[tuple[int, int, int, int]] = []
    for address in sorted(addresses)[:_MOST]:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if ip.version != version:
            continue
        words = struct.unpack(f"!{len(ip.packed) // 4}I", ip.packed)
        for index, word in enumerate(words):
            code.append((_LOAD, 0, 0, _NETWORK_HEADER + _SOURCE[version] + 4 * index))
            # To the next address: behind what is left of this one's loads, jumps and return.
            code.append((_JUMP_IF_EQUAL, 0, 2 * (len(words) - index - 1) + 1, word))
        code.append((_RETURN, 0, 0, _ALL))
    code.append((_RETURN, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*each) for each in code)


def attach(sock: socket.socket, addresses: Collection[str]) -> None:
    """Let only these addresses reach what `sock` listens for. Raises OSError where it cannot be.

    Connections that were made before stay.
    """
    code = program(addresses, 6 if sock.family == socket.AF_INET6 else 4)
    memory = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HP", len(code) // _INSTRUCTION.size, ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)


def listeners(port: int = 0) -> list[socket.socket]:
    """This process's TCP sockets that listen (at `port`), each as a descriptor of its own."""
    found: dict[str, socket.socket] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            inode = os.readlink(f"/proc/self/fd/{name}")
            if not inode.startswith("socket:") or inode in found:
                continue  # such as one that was put into this list, under its new number
            sock = socket.socket(fileno=os.dup(int(name)))
            if _listens(sock) and port in (0, sock.getsockname()[1]):
                found[inode] = keep_from_children(sock)
            else:
                sock.close()
    return list(found.values())


def _listens(sock: socket.socket) -> bool:
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )
