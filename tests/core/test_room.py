"""Room: bounds, the line of those who wait, hysteresis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.room import Room, Ticket


def room(messages: int = 4, size_bytes: int = 100, resume_below: float = 0.75) -> Room[str]:
    return Room(messages, size_bytes, resume_below)


def test_both_bounds_hold() -> None:
    """Neither the count nor the bytes go past their bound."""
    one = room()
    assert [one.try_take(10) for _ in range(5)] == [True] * 4 + [False]
    other = room()
    assert [other.try_take(40) for _ in range(3)] == [True, True, False]
    assert (other.held_messages, other.held_bytes) == (2, 80)


def test_a_smaller_room_keeps_what_it_holds() -> None:
    """Nothing is taken until it is below the new bound; who waited is served by a larger one at once."""
    one = room()
    assert [one.try_take(10) for _ in range(4)] == [True] * 4
    one.resize(2, 100)
    one.release(2, 20)
    assert (one.held_messages, one.try_take(10), one.reserve(5, 50)) == (2, False, (0, 50))
    one.release(0, 50)
    one.wait("first", 10)
    assert one.grants() == []
    one.resize(8, 200)
    assert one.grants() == ["first"]
    assert [one.try_take(10) for _ in range(6)] == [True] * 5 + [False]


def test_waiters_are_served_in_their_order() -> None:
    """First come, first served; a later small one does not pass an earlier large one."""
    one = room()
    assert one.try_take(90)
    one.wait("large", 95)
    one.wait("small", 1)
    assert one.grants() == []
    one.release(1, 90)
    assert one.grants() == ["large", "small"]


def test_a_large_head_blocks_smaller_ones() -> None:
    """Fair: who waits for much is not starved by those who want little."""
    one = room(messages=10)
    assert one.try_take(30)
    assert one.try_take(20)
    one.wait("large", 80)
    one.wait("small", 1)
    one.release(1, 20)
    assert one.grants() == []
    one.release(1, 30)
    assert one.grants() == ["large", "small"]


def test_try_take_does_not_barge() -> None:
    """Where somebody waits, nobody takes room past them."""
    one = room()
    assert one.try_take(90)
    one.wait("large", 50)
    assert not one.try_take(1)


def test_hysteresis() -> None:
    """Once full, nobody is woken until what is held falls below the share; then all that fit are."""
    one = room(messages=8, size_bytes=1000)
    assert all(one.try_take(1) for _ in range(8))
    for name in "abc":
        one.wait(name, 1)
    one.release(2, 2)
    assert one.grants() == []  # 6 of 8 is not below three quarters
    one.release(1, 1)
    assert one.grants() == ["a", "b", "c"]


def test_hysteresis_in_bytes() -> None:
    """The bytes have the same mark."""
    one = room(messages=100, size_bytes=100)
    assert all(one.try_take(25) for _ in range(4))
    one.wait("a", 20)
    one.release(1, 25)
    assert one.grants() == []  # 75 is not below 75
    one.release(1, 25)
    assert one.grants() == ["a"]


def test_cancelling() -> None:
    """Who leaves the line is skipped, counts no more, and opens the way for those behind."""
    one = room()
    assert one.try_take(100)
    first, _ = one.wait("first", 100), one.wait("second", 5)
    assert one.waiting == 2
    one.cancel(first)
    one.cancel(first)
    assert one.waiting == 1
    one.release(1, 100)
    assert one.grants() == ["second"]
    assert (one.held_messages, one.held_bytes) == (1, 5)
    assert one.try_take(1)


def test_cancelling_after_the_grant_changes_nothing() -> None:
    """A granted ticket is out of the line; its room is given back by settling, once."""
    one = room()
    assert one.try_take(100)
    ticket = one.wait("a", 10)
    one.release(1, 100)
    assert one.grants() == ["a"]
    one.cancel(ticket)
    assert (one.waiting, one.held_messages) == (0, 1)


def test_cancelled_tickets_do_not_pile_up() -> None:
    """Behind a head that waits long, those who give up leave nothing behind."""
    one = room()
    assert one.try_take(100)
    one.wait("head", 100)
    for _ in range(10_000):
        one.cancel(one.wait("impatient", 1))
    assert len(one._line) < 200
    one.release(1, 100)
    assert one.grants() == ["head"]


def test_more_than_the_whole_room_is_granted_when_nothing_is_held() -> None:
    """A message whose encoding is larger than the room does not stop everything behind it for ever."""
    one = room(size_bytes=100)
    assert one.try_take(500)
    one.wait("huge", 500)
    one.wait("small", 1)
    assert one.grants() == []
    one.release(1, 500)
    assert one.grants() == ["huge"]
    one.release(1, 500)
    assert one.grants() == ["small"]


def test_releasing_more_than_was_taken_is_our_own_bug() -> None:
    """It is asserted."""
    with pytest.raises(AssertionError, match="more was released"):
        room().release(1, 0)


@given(
    st.lists(st.tuples(st.sampled_from(["take", "wait", "release", "cancel", "reserve"]), st.integers(1, 60)))
)
def test_bounds_and_order_hold_for_any_sequence(steps: list[tuple[str, int]]) -> None:
    """Whatever is asked in whatever order: bounds, arithmetic, order of service, nobody forgotten."""
    one: Room[int] = Room(5, 100, 0.75)
    held: list[int] = []
    line: list[tuple[int, int, Ticket[int]]] = []
    for index, (what, size) in enumerate(steps):
        if what == "take" and one.try_take(size):
            assert not line
            held.append(size)
        elif what == "reserve":
            reserved = one.reserve(size // 10, size)
            assert not line or reserved == (0, 0)
            if min(reserved):
                one.release(reserved[0] - 1, 0)
                held.append(reserved[1])
            else:
                one.release(*reserved)
        elif what == "wait":
            line.append((index, size, one.wait(index, size)))
        elif what == "release" and held:
            one.release(1, held.pop())
        elif what == "cancel" and line:
            one.cancel(line.pop(size % len(line))[2])
        for granted in one.grants():
            assert granted == line[0][0]
            held.append(line.pop(0)[1])
        assert (one.held_messages, one.held_bytes, one.waiting) == (len(held), sum(held), len(line))
        assert len(held) <= 5
        assert sum(held) <= 100
        assert held or not line


def test_reserving_takes_what_there_is() -> None:
    """Up to so many messages and bytes, never past a bound; what was not used is released."""
    one = room(4, 100)
    assert one.reserve(3, 60) == (3, 60)
    assert one.reserve(3, 60) == (1, 40)
    assert (one.held_messages, one.held_bytes) == (4, 100)
    assert one.reserve(3, 60) == (0, 0)
    one.release(2, 50)
    assert one.reserve(1, 500) == (1, 50)
    assert one.reserve(5, 1) == (1, 0)


def test_nothing_is_reserved_past_those_who_wait() -> None:
    """They were first; once they are served, there is what is left."""
    one = room(4, 100)
    assert one.try_take(100)
    one.wait("first", 10)
    one.release(1, 100)
    assert one.reserve(2, 20) == (0, 0)
    assert one.grants() == ["first"]
    assert one.reserve(9, 900) == (3, 90)


def test_reserving_where_one_message_is_above_the_whole_room() -> None:
    """There are no bytes left, and none are given back by asking."""
    one = room(4, 100)
    assert one.try_take(150)
    assert one.reserve(3, 10) == (3, 0)
    assert (one.held_messages, one.held_bytes) == (4, 150)
    assert room(4, 100).reserve(2, -5) == (2, 0)


def test_dismissing_sends_everyone_away_once() -> None:
    """Who had given up before is not named, and a late cancel counts nobody twice."""
    one = room()
    assert one.try_take(100)
    first, gone = one.wait("first", 1), one.wait("gone", 1)
    one.cancel(gone)
    assert one.dismiss() == ["first"]
    one.cancel(first)
    assert (one.waiting, one.dismiss(), one.held_messages) == (0, [], 1)
