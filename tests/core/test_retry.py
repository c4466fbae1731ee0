"""The verdict table, the back-off's arithmetic, the heap of groups."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from dispatcher.core import retry
from dispatcher.core.batch import Failure, Reply
from dispatcher.core.budget import Budget
from dispatcher.core.retry import Backoffs, Group, Verdict, backoff, describe, judge
from dispatcher.core.tally import CAUSES
from tests.core.rig import Extremes

D, R, S, H = Verdict.DELIVERED, Verdict.RETRY, Verdict.SPLIT, Verdict.HALT
FLAGS = ("infers", "is_of_size", "is_throttle", "is_suspicious", "may_be_systemic")
TABLE: list[tuple[object, Verdict, str, str, str, str]] = [
    # answer, verdict, certainty, signal, cause, flags
    *((status, D, "accepted", "ok", "accepted", "") for status in (200, 201, 202, 299)),
    *((status, H, "not_accepted", "neutral", "redirected", "") for status in (300, 301, 302, 307, 308, 399)),
    (400, S, "not_accepted", "neutral", "invalid", "infers"),
    (401, H, "not_accepted", "neutral", "token_refused", ""),
    (403, S, "not_accepted", "neutral", "forbidden", "may_be_systemic"),
    (404, S, "not_accepted", "neutral", "not_found", "infers may_be_systemic"),
    (405, S, "not_accepted", "neutral", "forbidden", "may_be_systemic"),
    (408, R, "unknown", "neutral", "server_error", "is_suspicious"),
    (409, S, "not_accepted", "neutral", "invalid", "infers"),
    (402, S, "not_accepted", "neutral", "forbidden", "may_be_systemic"),
    (410, S, "not_accepted", "neutral", "forbidden", "may_be_systemic"),
    (499, S, "not_accepted", "neutral", "forbidden", "may_be_systemic"),
    (412, S, "not_accepted", "neutral", "too_large", "is_of_size"),
    (413, S, "not_accepted", "neutral", "too_large", "is_of_size"),
    (422, S, "not_accepted", "neutral", "invalid", "infers"),
    (429, R, "not_accepted", "overload", "throttled", "is_throttle"),
    (500, R, "unknown", "neutral", "server_error", "is_suspicious"),
    (502, R, "unknown", "neutral", "server_error", "is_suspicious"),
    (503, R, "unknown", "overload", "server_error", ""),
    (504, R, "unknown", "overload", "server_error", "is_suspicious"),
    *((status, R, "unknown", "neutral", "server_error", "is_suspicious") for status in (100, 501, 507, 599)),
    ("connect", R, "not_sent", "timeout", "connect_failed", ""),
    ("disconnect", R, "unknown", "neutral", "disconnected", "is_suspicious"),
    ("timeout", R, "unknown", "timeout", "timed_out", "is_suspicious"),
    ("reply", R, "unknown", "neutral", "disconnected", ""),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "verdict", "certainty", "signal", "cause", "flags"), TABLE)
def test_the_whole_table(
    answer: object, verdict: Verdict, certainty: str, signal: str, cause: str, flags: str
) -> None:
    """Each answer of the protocol's table and its unnamed neighbours, with all that follows from it."""
    ruling = judge(Reply(answer, b"{}") if isinstance(answer, int) else Failure(str(answer), "", "unknown"))
    assert (ruling.verdict, ruling.certainty, ruling.signal, ruling.cause) == (
        verdict,
        certainty,
        signal,
        cause,
    )
    assert " ".join(flag for flag in FLAGS if getattr(ruling, flag)) == flags


def test_a_reply_that_does_not_match_is_unknown() -> None:
    """The ruling on a 2xx that cannot be read; no message is suspected for it."""
    ruling = retry.UNREADABLE
    assert (ruling.verdict, ruling.certainty, ruling.signal) == (R, "unknown", "neutral")
    assert (ruling.cause, ruling.is_suspicious) == ("unreadable_reply", False)


def test_each_cause_has_its_counter() -> None:
    """What is put back is counted under a word that the metrics know."""
    causes = {judge(Reply(status, b"")).cause for status in range(300, 600)}
    causes |= {judge(Failure(kind, "", "unknown")).cause for kind in retry.FAILURES}
    assert causes - {"invalid", "too_large"} <= {*CAUSES}
    assert retry.UNREADABLE.cause in CAUSES


def test_a_size_in_a_500() -> None:
    """A 500 that says `maxMessageSize` is a refusal for size."""
    ruling = judge(Reply(500, b'{"error":"over maxMessageSize"}'))
    assert (ruling.verdict, ruling.infers, ruling.certainty) == (Verdict.SPLIT, False, "not_accepted")
    assert (ruling.is_of_size, ruling.cause) == (True, "too_large")
    assert judge(Reply(502, b"maxMessageSize")).verdict is Verdict.RETRY


def test_503_with_a_pause_was_not_taken() -> None:
    """With Retry-After it is a throttle, without it the outcome is unknown."""
    ruling = judge(Reply(503, b"", {"retry-after": "2"}))
    assert (ruling.certainty, ruling.is_throttle) == ("not_accepted", True)
    assert not judge(Reply(503, b"")).is_throttle


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
    heap = Backoffs(Budget(500))
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
    heap = Backoffs(Budget(500))
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
