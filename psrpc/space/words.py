"""What clients and owners of a space say to each other: lists, as JSON has them.

A client's frame is a list of requests `[tag, Word, space, ...]`, an owner's one of replies
`[tag, Said, ...]`. Times are in seconds from when a request comes; None is without end.
"""

from __future__ import annotations

import hmac
from enum import IntEnum

MOST_TOKEN_BYTES = 1 << 10
NONCE_BYTES = 32


class Word(IntEnum):
    """What a client asks, and what comes behind the space's name.

    WRITE fields, ttl_s, first; READ pattern, wait_s; TAKE pattern, wait_s, leased, lease_s;
    ALL pattern, most; COUNT pattern; WITHDRAW the tag of a question; CONFIRM, GIVE_BACK a
    lease; RENEW lease, lease_s; WATCH pattern, changes; UNWATCH its tag; ABOUT.
    """

    WRITE = 0
    READ = 1
    TAKE = 2
    ALL = 3
    COUNT = 4
    WITHDRAW = 5
    CONFIRM = 6
    GIVE_BACK = 7
    RENEW = 8
    WATCH = 9
    UNWATCH = 10
    ABOUT = 11


class Said(IntEnum):
    """What an owner answers, and what comes behind it.

    DONE a value; GIVEN fields, lease, its time that is left; MISSED; ALL tuples; FAILED an
    error's name and text. Besides: HELD (a question that has to wait), so that a client need not
    wait with its next ones; SEEN a change and fields; BEHIND (a watcher who does not read, and is
    told no more).
    """

    DONE = 0
    GIVEN = 1
    MISSED = 2
    ALL = 3
    FAILED = 4
    SEEN = 5
    BEHIND = 6
    HELD = 7


def proof(secret: str, nonce: bytes) -> bytes:
    """What shows an owner that a client knows its secret, which is not sent."""
    return hmac.digest(secret.encode(), nonce, "sha256")
