"""Which cluster this process uses, if any."""

from __future__ import annotations

import threading
from typing import Any

lock = threading.RLock()
client: Any = None  # this process's client, once there is one
_address: str | None = None


def be_at(address: str) -> None:
    """From now on actors that this process makes or calls are those of this cluster."""
    global _address
    _address = address


def address() -> str | None:
    """The cluster that this process belongs to, if it was told one."""
    return _address
