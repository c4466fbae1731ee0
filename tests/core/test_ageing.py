"""A suspended machine: its monotonic clock stood still, the service's deduplication window did not."""

from __future__ import annotations

import pytest

from dispatcher.core.setback import SAFE_SECONDS
from dispatcher.errors import OutcomeUnknown
from dispatcher.message import Receipt
from tests.core.rig import Rig


def test_what_was_out_while_the_machine_slept_is_older() -> None:
    """Its answer is lost with the sleep: repeating it is not safe any more, so it is not repeated."""
    rig = Rig(deliver_within=86_400)
    (entry,) = rig.put(1)
    (batch,) = rig.poll()
    rig.engine.age(SAFE_SECONDS)
    rig.fail(batch, "disconnect")
    rig.advance(0.1)
    assert isinstance(entry.outcome, OutcomeUnknown)
    assert len(rig.started) == 1


def test_what_backs_off_while_the_machine_sleeps_is_older() -> None:
    """The same for what had failed before."""
    rig = Rig(deliver_within=86_400, retry_base=100.0, retry_max_delay=1_000.0)
    (entry,) = rig.put(1)
    rig.fail(rig.poll()[0], "disconnect")
    rig.engine.age(SAFE_SECONDS)
    rig.poll()
    assert isinstance(entry.outcome, OutcomeUnknown)


def test_a_short_sleep_only_brings_the_end_of_the_window_nearer() -> None:
    """What is left of the window is still used."""
    rig = Rig(deliver_within=86_400)
    (entry,) = rig.put(1)
    rig.fail(rig.poll()[0], "disconnect")
    rig.engine.age(SAFE_SECONDS / 2)
    rig.ok(rig.next())
    assert isinstance(entry.outcome, Receipt)
    assert not entry.outcome.duplicate_possible


@pytest.mark.parametrize("kind", ["connect", "refused"])
def test_what_certainly_was_not_taken_is_repeated_all_the_same(kind: str) -> None:
    """The window matters to unknown outcomes only."""
    rig = Rig(deliver_within=86_400)
    (entry,) = rig.put(1)
    batch = rig.poll()[0]
    rig.fail(batch, "connect") if kind == "connect" else rig.refuse(batch, 429)
    rig.engine.age(SAFE_SECONDS)
    rig.ok(rig.next())
    assert isinstance(entry.outcome, Receipt)


def test_with_resend_it_is_repeated_and_marked() -> None:
    """`after_window="resend"`: delivered, and perhaps twice."""
    rig = Rig(deliver_within=86_400, after_window="resend")
    (entry,) = rig.put(1)
    rig.fail(rig.poll()[0], "disconnect")
    rig.engine.age(SAFE_SECONDS)
    rig.ok(rig.next())
    assert isinstance(entry.outcome, Receipt)
    assert entry.outcome.duplicate_possible
