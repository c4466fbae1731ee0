"""What failures say: the whole text of each kind, since it is what a caller has to act on."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Reply
from dispatcher.errors import DeliveryError, Halted, MessageRejected, QuotaExhausted
from tests.core.rig import UNIX, Extremes, Rig, make_entry

TO = "the message to https://example.com/hook"


def failure(entry: object) -> DeliveryError:
    """Its outcome, which is one."""
    outcome = entry.outcome  # type: ignore[attr-defined]
    assert isinstance(outcome, DeliveryError)
    return outcome


def test_rejected() -> None:
    """With the status and the service's words."""
    rig = Rig()
    entries = rig.put(1)
    rig.refuse(rig.poll()[0], 422, "the delay is malformed")
    outcome = failure(entries[0])
    assert outcome.reason == f"{TO} was rejected with 422: the delay is malformed"
    assert isinstance(outcome, MessageRejected)
    assert outcome.status == 422


def test_rejected_as_an_error_entry() -> None:
    """After its last attempt: the status of the request was 200."""
    rig = Rig(retry_error_entry_attempts=1)
    entries = rig.put(2)
    rig.errors(rig.poll()[0], 1)
    outcome = failure(entries[1])
    assert outcome.reason == f"{TO} was rejected with 200: try again later"
    assert isinstance(outcome, MessageRejected)
    assert outcome.status == 200


def test_unknown_for_want_of_an_id() -> None:
    """It is not repeated, and why."""
    rig = Rig(deduplication="off")
    entries = rig.put(1, idempotent=False)
    rig.fail(rig.poll()[0])
    why = "without a deduplication id it is not repeated"
    assert failure(entries[0]).reason == f"{TO} may have been accepted; {why}"
    assert failure(entries[0]).certainty == "unknown"


def test_unknown_after_a_refused_batch() -> None:
    """It is not taken apart, and why."""
    rig = Rig(deduplication="off")
    entries = rig.put(2, idempotent=False)
    rig.refuse(rig.poll()[0], 400, "bad item")
    why = "its batch was refused with 400 (bad item), and without an id it is not repeated"
    assert failure(entries[0]).reason == f"{TO} may have been accepted; {why}"


def test_unknown_at_the_end_of_the_window() -> None:
    """Repeating it is no longer safe."""
    rig = Rig(rng=Extremes(), deliver_within=2000)
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    rig.engine.age(600.0)
    rig.poll()
    why = "its deduplication window ends and repeating it is no longer safe"
    assert failure(entries[0]).reason == f"{TO} may have been accepted; {why}"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"[{}]", "the reply's entry has neither a messageId nor an error"),
        (b'[[{"messageId":"a"}]]', "the reply's entry is an array, and the destination is no URL group"),
        (b"[[3]]", "the reply's entry for a URL group holds something that is not an object"),
        (b'[[{"url":"u"}]]', "the reply's entry for a URL group has no messageId at all"),
    ],
)  # fmt: skip
def test_unknown_for_an_entry_that_says_nothing(value: bytes, why: str) -> None:
    """What was strange about the reply."""
    rig = Rig(retry_error_entry_attempts=1)
    entries = rig.put(1)
    rig.answer(rig.poll()[0], Reply(200, value))
    assert failure(entries[0]).reason == f"{TO} may have been accepted; {why}"
    assert entries[0].attempts[0].outcome == f"error entry: {why}"


def test_a_groups_error_entry_names_each_endpoints_error() -> None:
    """All of them failed: not accepted, in the service's words."""
    rig = Rig(retry_error_entry_attempts=1)
    entries = rig.put(1, destination="subscribers")
    rig.answer(rig.poll()[0], Reply(200, b'[[{"url":"u","error":"down"},{"url":"v","error":"gone"}]]'))
    assert failure(entries[0]).reason == "the message to subscribers was rejected with 200: down; gone"


def test_expired() -> None:
    """How long it had."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    entries = rig.put(1, within=2.5)
    rig.advance(3.0)
    assert failure(entries[0]).reason == f"{TO} was not confirmed within 2.5 s"


def test_exhausted() -> None:
    """Its attempts are used up."""
    rig = Rig(retry_max_attempts=1)
    entries = rig.put(1)
    rig.fail(rig.poll()[0], "connect")
    assert failure(entries[0]).reason == f"{TO} was not confirmed by as many attempts as are allowed"


def test_quota() -> None:
    """For how long, and until when."""
    rig = Rig()
    entries = rig.put(1)
    rig.spend_quota(rig.poll()[0], 7200.0)
    outcome = failure(entries[0])
    assert outcome.reason == f"{TO} cannot wait: the daily quota is spent for another 7,200 s"
    assert isinstance(outcome, QuotaExhausted)
    assert outcome.reset_at == UNIX + 7200.0
    assert len(outcome.attempts) == 1


def test_halted() -> None:
    """With the status, the service's words, and since when."""
    rig = Rig()
    entries = rig.put(1)
    rig.refuse(rig.poll()[0], 401, "token revoked")
    rig.advance(4.0)
    late = rig.put(1)
    rig.poll()
    for entry, since in ((entries[0], 0.0), (late[0], 4.0)):
        outcome = failure(entry)
        assert "the upstream refuses this token or URL with 401: token revoked" in outcome.reason
        assert isinstance(outcome, Halted)
        assert outcome.status == 401
        assert outcome.since == pytest.approx(since)


def test_systemic() -> None:
    """The words of the third refusal are the halt's."""
    rig = Rig()
    entries = rig.put(20)
    rig.poll()
    rig.serve(lambda _: True, 403, "blocked by the firewall")
    assert "with 403: blocked by the firewall" in failure(entries[-1]).reason


@pytest.mark.parametrize(("status", "is_redirect"), [(300, True), (302, True), (399, True), (401, False)])
def test_redirects(status: int, is_redirect: bool) -> None:
    """Where to, if the service says so, and the cure."""
    rig = Rig()
    entries = rig.put(1)
    rig.refuse(rig.poll()[0], status, "moved")
    words = "it answers with a redirect; check the base URL" if is_redirect else "moved"
    assert failure(entries[0]).reason.endswith(f"with {status}: {words}")


def test_given_up() -> None:
    """Withdrawn, or at the end of a drain, or because the machinery died."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    entries = rig.put(3)
    rig.engine.withdraw(entries[0])
    assert failure(entries[0]).reason == f"{TO} was given up: it was withdrawn"
    rig.engine.drain(rig.now + 1.0, rig.now)
    rig.advance(2.0)
    assert failure(entries[1]).reason == f"{TO} was given up: the drain's deadline passed"
    other = Rig()
    (entry,) = other.put(1)
    other.engine.abandon("the pump has crashed")
    assert failure(entry).reason == f"{TO} was given up: the pump has crashed"


def test_the_message_can_be_sent_again() -> None:
    """With the id that makes that safe: ours filled in, the caller's as it was, none where there is none."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    ours = rig.put(1)[0]
    theirs = make_entry(identity="own", admitted_at=rig.now)
    theirs.message.deduplication_id = "own"
    plain = make_entry(idempotent=False, admitted_at=rig.now)
    for entry in (theirs, plain):
        assert rig.engine.room.try_take(len(entry.data))
        rig.engine.offer(entry)
    for entry in (ours, theirs, plain):
        assert rig.engine.withdraw(entry)
    assert failure(ours).message.deduplication_id == "id-1"
    assert ours.message.deduplication_id is None
    assert failure(theirs).message is theirs.message
    assert failure(plain).message is plain.message


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:pass@other.example:8443/path?token=1", " to https://other.example:8443"),
        ("http://other.example?token=1", " to http://other.example"),
        ("/v2/batch?token=1", ""),
        ("https:///path", ""),
        ("ht tp://host", ""),
        ("", ""),
    ],
)
def test_where_a_redirect_points(location: str, shown: str) -> None:
    """Its scheme and host; no user information, path or query."""
    rig = Rig()
    entries = rig.put(1)
    rig.answer(rig.poll()[0], Reply(307, b"", {"location": location}))
    assert failure(entries[0]).reason.endswith(f"it answers with a redirect{shown}; check the base URL")
