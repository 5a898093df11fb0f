"""A launcher's store in a test's own process, which outlives all that dies."""

from __future__ import annotations

from torch._C._distributed_c10d import TCPStore

from psrpc.addresses import listen


def keep_store() -> TCPStore:
    """Keep a store on loopback for as long as the result lives; its `port` is free.

    As psrpc's launchers do, on a socket of IPv4: on torch's own, which takes both kinds, the
    store asks a name server who it is that connects, and answers nobody until that has answered.
    """
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
