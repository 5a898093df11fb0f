"""Who may answer, who takes over, who is let in: the rules of a shard on two servers."""

from __future__ import annotations

import pytest

from psrpc.core.replication import NEAR, Backup, Primary, Reign
from psrpc.errors import ProtocolError

PAIR = Reign(3, primary=1, backup=2)
ALONE = Reign(3, primary=1)


def primary(reign: Reign = PAIR, last: int = 0) -> Primary[str]:
    """Server 1 as primary; its backup, if it has one, has all entries."""
    if reign.backup is None:
        return Primary(1, reign, last)
    made: Primary[str] = Primary(1, Reign(reign.epoch - 1, 1), last)
    made.follow(reign.backup, last)
    made.has(reign.backup, last)
    assert made.claim() == reign
    made.ruled(reign)
    return made


class Authority:
    """Holds one reign, which is changed by comparing and setting."""

    def __init__(self, reign: Reign) -> None:
        self.reign = reign

    def change(self, expected: Reign, wanted: Reign | None) -> Reign:
        assert wanted is not None
        if self.reign == expected:
            self.reign = wanted
        return self.reign


def test_an_answer_waits_for_the_backup() -> None:
    one = primary()
    number = one.append()
    one.keep("first")
    assert one.release() == []
    one.has(2, number)
    assert one.release() == ["first"]
    assert one.release() == []


def test_an_answer_depends_on_all_entries_before_it() -> None:
    """A push that was held is answered by a later one, and needs both."""
    one = primary()
    first, second = one.append(), one.append()
    one.keep("first")
    one.keep("second")
    one.has(2, first)
    assert one.release() == []
    one.has(2, second)
    assert one.release() == ["first", "second"]


def test_answers_without_a_new_entry_need_no_more() -> None:
    one = primary()
    one.has(2, one.append())
    one.keep("it")
    assert one.release() == ["it"]


def test_one_that_reigns_alone_answers_at_once() -> None:
    one = primary(ALONE)
    one.append()
    one.keep("it")
    assert one.release() == ["it"]
    assert one.claim() is None


def test_a_primary_that_lost_its_backup_answers_when_the_authority_lets_it() -> None:
    one, authority = primary(), Authority(PAIR)
    one.has(2, one.append())
    one.append()
    one.lose(2)
    one.keep("it")
    one.has(2, 2)
    assert one.release() == []
    claim = one.claim()
    assert claim == Reign(4, 1)
    assert one.claim() == claim, "it wants the same until it has an answer"
    assert one.release() == []
    one.ruled(authority.change(PAIR, claim))
    assert (one.reign, one.deposed, one.claim()) == (claim, False, None)
    assert one.release() == ["it"]


def test_of_both_that_claim_one_reigns() -> None:
    for first in (1, 2):
        one, other, authority = primary(), Backup(2), Authority(PAIR)
        other.copied(3, 0)
        one.append()
        one.keep("it")
        one.lose(2)
        claims = {1: one.claim(), 2: other.claim(PAIR)}
        authority.change(PAIR, claims[first])
        held = authority.change(PAIR, claims[3 - first])
        one.ruled(held)
        assert one.deposed is (first == 2)
        assert other.promoted(held) is (first == 2)
        assert one.release() == ([] if first == 2 else ["it"])


def test_a_deposed_primary_never_answers_again() -> None:
    one = primary()
    one.append()
    one.keep("it")
    one.ruled(Reign(4, 2))
    one.has(2, 5)
    assert one.release() == []
    assert one.claim() is None
    one.ruled(Reign(9, 1))
    assert one.deposed
    assert one.give_up() == ["it"]
    assert one.give_up() == []


def test_an_old_ruling_changes_nothing() -> None:
    one = primary()
    one.ruled(Reign(2, 7))
    assert (one.reign, one.deposed) == (PAIR, False)


def test_a_newcomer_is_waited_for_before_it_is_named() -> None:
    one, authority = primary(ALONE, last=5), Authority(ALONE)
    one.follow(2, 5)
    assert one.claim() is None, "it has no copy yet"
    one.append()
    one.keep("before")
    assert one.release() == ["before"]
    one.has(2, 5)
    assert one.claim() is None, "it lacks an entry whose answer was sent"
    one.append()
    one.keep("after")
    assert one.release() == [], "it is waited for from now on"
    one.has(2, 6)
    claim = one.claim()
    assert claim == Reign(4, 1, 2)
    assert one.release() == [], "the authority may have named it already"
    one.has(2, 7)
    assert one.release() == ["after"]
    one.ruled(authority.change(ALONE, claim))
    assert one.reign == claim
    one.append()
    one.keep("it")
    assert one.release() == []


def test_a_newcomer_that_is_far_behind_is_not_waited_for() -> None:
    one = primary(ALONE)
    one.follow(2, 0)
    one.has(2, 0)
    for _ in range(NEAR + 1):
        one.append()
    one.keep("it")
    assert one.claim() is None
    assert one.release() == ["it"]
    one.has(2, 1)
    assert one.claim() is None, "now it is near, and what was answered must come to it"
    one.keep("then")
    assert one.release() == []
    one.has(2, NEAR + 1)
    assert one.claim() == Reign(4, 1, 2)
    assert one.release() == ["then"]


def test_a_newcomer_that_dies_is_forgotten_or_dropped() -> None:
    one, authority = primary(ALONE), Authority(ALONE)
    one.follow(2, 0)
    one.lose(2)
    one.append()
    one.keep("it")
    assert one.claim() is None
    assert one.release() == ["it"]
    one.follow(3, 1)
    one.has(3, 0)
    one.claim()
    one.lose(3)
    assert one.claim() is None, "it was waited for, and not named yet"
    one.follow(4, 1)
    one.has(4, 1)
    claim = one.claim()
    one.lose(4)
    one.append()
    one.keep("then")
    assert one.release() == [], "the authority may name it at any moment"
    one.ruled(authority.change(ALONE, claim))
    assert one.claim() == Reign(5, 1)
    one.ruled(authority.change(Reign(4, 1, 4), one.claim()))
    assert one.release() == ["then"]


def test_one_that_was_named_is_no_newcomer() -> None:
    """It may be primary at any moment, with what it had before."""
    one = primary()
    one.lose(2)
    with pytest.raises(ProtocolError, match="server 2 was named"):
        one.follow(2, 0)
    newly = primary(ALONE)
    newly.follow(4, 0)
    newly.has(4, 0)
    newly.claim()
    newly.lose(4)
    with pytest.raises(ProtocolError, match="server 4 was named"):
        newly.follow(4, 0)


def test_a_copy_is_not_of_the_future() -> None:
    with pytest.raises(ProtocolError, match="there are 3"):
        primary(ALONE, last=3).follow(2, 4)


def test_a_backup_takes_entries_in_order() -> None:
    other = Backup(2)
    other.copied(3, 10)
    assert other.take(3, 11)
    assert other.take(4, 12), "its primary's new epoch, in which it is named"
    with pytest.raises(ProtocolError, match="entry 14 came after entry 12"):
        other.take(4, 14)


def test_a_backup_refuses_an_older_epoch() -> None:
    other = Backup(2)
    other.copied(3, 10)
    assert not other.take(2, 11)
    assert other.last == 10


def test_a_backup_that_claims_takes_nothing_more() -> None:
    other = Backup(2)
    other.copied(3, 10)
    assert other.claim(PAIR) == Reign(4, 2)
    assert not other.take(3, 11)
    assert not other.take(9, 11)
    assert other.last == 10


def test_one_that_is_not_named_may_not_claim() -> None:
    other = Backup(2)
    other.copied(3, 10)
    assert other.claim(ALONE) is None
    assert other.claim(Reign(3, 1, 5)) is None
    assert other.take(3, 11)
