"""Who is not there is said, and nothing is left of the attempt."""

from __future__ import annotations

import gc

import pytest

from psrpc.actors import doors
from psrpc.errors import AddressError
from tests.processes import free_port


def test_who_is_not_there_leaves_no_socket() -> None:
    """An open socket that is collected is a warning, which here is an error."""
    for where in (f"{doors.UNIX}psrpc-nobody", f"127.0.0.1:{free_port()}"):
        with pytest.raises(AddressError, match="nobody answers at"):
            doors.dial(f"{doors.NO_TOKEN}@{where}")
    gc.collect()
