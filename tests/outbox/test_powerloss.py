"""The power goes under a writer, where root and loop devices exist; the command does more rounds of it."""

from __future__ import annotations

import pytest

from tests.outbox.powerloss import losses, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"it wants {missing()}")


def test_nothing_that_was_acknowledged_is_lost() -> None:
    """And no row is damaged: at most the last transaction is not there."""
    found = list(losses(2, "full", seed=5))
    assert all(loss.acknowledged for loss in found)
    assert [(loss.lost, loss.damaged) for loss in found] == [(0, 0)] * 2


def test_a_store_that_does_not_sync_is_found_out() -> None:
    """The control."""
    (loss,) = losses(1, "off", seed=5)
    assert loss.lost
