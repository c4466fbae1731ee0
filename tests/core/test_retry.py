"""The verdict table, the back-off's arithmetic, the heap of groups."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from dispatcher.core import retry
from dispatcher.core.batch import Failure, Reply
from dispatcher.core.retry import Backoffs, Group, Verdict, backoff, describe, judge, retry_after
from tests.core.rig import Extremes

TABLE = [
    *((status, Verdict.DELIVERED, "accepted") for status in (200, 201, 202, 299)),
    *((status, Verdict.SPLIT, "not_accepted") for status in (400, 403, 404, 405, 409, 410, 412, 413, 422)),
    *((status, Verdict.HALT, "not_accepted") for status in (301, 302, 307, 308, 401)),
    (429, Verdict.RETRY, "not_accepted"),
    *((status, Verdict.RETRY, "unknown") for status in (408, 500, 502, 503, 504, 599)),
]


@pytest.mark.parametrize(("status", "verdict", "certainty"), TABLE)
def test_statuses(status: int, verdict: Verdict, certainty: str) -> None:
    """Each status of PROTOCOL's table, and the neighbours it does not name."""
    ruling = judge(Reply(status, b"{}"))
    assert (ruling.verdict, ruling.certainty) == (verdict, certainty)


@pytest.mark.parametrize(
    ("kind", "certainty"),
    [("connect", "not_sent"), ("disconnect", "unknown"), ("timeout", "unknown"), ("reply", "unknown")],
)
def test_failures(kind: str, certainty: str) -> None:
    """Only a connection that was never made proves that nothing was sent."""
    ruling = judge(Failure(kind, "", "unknown"))
    assert (ruling.verdict, ruling.certainty) == (Verdict.RETRY, certainty)


def test_only_refusals_of_messages_prove_where_the_culprit_is() -> None:
    """A half that passes says nothing of the other where a size, a count or a firewall refused."""
    assert {
        status for status in (400, 403, 404, 405, 409, 412, 413, 422) if judge(Reply(status, b"")).infers
    } == {
        400,
        404,
        409,
        422,
    }


def test_a_size_in_a_500() -> None:
    """A 500 that says `maxMessageSize` is a refusal for size."""
    ruling = judge(Reply(500, b'{"error":"over maxMessageSize"}'))
    assert (ruling.verdict, ruling.infers, ruling.certainty) == (Verdict.SPLIT, False, "not_accepted")


def test_503_with_a_pause_was_not_taken() -> None:
    """With Retry-After it is a throttle, without it the outcome is unknown."""
    ruling = judge(Reply(503, b"", {"retry-after": "2"}))
    assert (ruling.certainty, ruling.is_throttle) == ("not_accepted", True)
    assert not judge(Reply(503, b"")).is_throttle


def test_what_may_be_systemic() -> None:
    """403, 404 and 405 may be the URL's fault; a 400 is a message's."""
    assert [judge(Reply(status, b"")).may_be_systemic for status in (403, 404, 405, 400)] == [True] * 3 + [
        False
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        ("0.5", 0.5),
        ("9999", 60.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("nan", 0.0),
        ("inf", 60.0),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    """Seconds are believed up to a minute; anything else is as if nothing had been said."""
    assert retry_after(Reply(429, b"", {"retry-after": text})) == seconds


def test_the_ceiling_doubles_up_to_its_bound() -> None:
    """0.05, 0.1, 0.2 … 20 s, whatever the number of failures."""
    ceilings = [backoff(Extremes(), 0.05, 20.0, failures) for failures in (0, 1, 2, 3, 9, 10, 10_000)]
    assert ceilings == [0.05, 0.05, 0.1, 0.2, 12.8, 20.0, 20.0]


def test_full_jitter() -> None:
    """Delays are drawn from 0 to the ceiling, evenly."""
    rng = Random(3)
    delays = [backoff(rng, 1.0, 20.0, 3) for _ in range(4000)]
    assert min(delays) < 0.05
    assert max(delays) > 3.95
    assert mean(delays) == pytest.approx(2.0, rel=0.05)


def test_groups_come_when_due() -> None:
    """Earliest first, in order of arrival where they are due together, none before its time."""
    heap = Backoffs()
    assert heap.next_at == float("inf")
    groups = [Group(at, []) for at in (3.0, 1.0, 2.0, 1.0)]
    for group in groups:
        heap.add(group)
    assert heap.next_at == 1.0
    assert heap.pop_due(0.999) is None
    assert [heap.pop_due(2.5) for _ in range(4)] == [groups[1], groups[3], groups[2], None]
    assert list(heap) == [groups[0]]


def test_a_drain_brings_groups_forward() -> None:
    """What was due later is due at the bound; what was due earlier stays."""
    heap = Backoffs()
    for at in (1.0, 50.0, 30.0):
        heap.add(Group(at, []))
    heap.clip(10.0)
    assert sorted(group.due_at for group in heap) == [1.0, 10.0, 10.0]
    assert [group.due_at for group in heap.clear()] == [1.0, 10.0, 10.0]
    assert heap.next_at == float("inf")


def test_an_attempt_is_described_on_one_short_line() -> None:
    """Status and the service's words, without line breaks and control characters, bounded."""
    assert describe(Reply(400, b'{"error":"bad\\n  thing"}')) == "400 bad thing"
    assert describe(Reply(502, b"<html>\x00" + b"x" * 5000)).startswith("502 <html>?xxx")
    assert len(describe(Reply(502, b"x" * 5000))) < 350
    assert describe(Failure("timeout", "no answer in 10 s", "unknown")) == "no answer in 10 s"
    assert retry.describe(Reply(500, b"")) == "500"
