"""Back-offs amid a drain: the last attempt comes before its end."""

from __future__ import annotations

import pytest

from tests.core.rig import Extremes, Rig


@pytest.mark.parametrize(
    ("left", "due_in"), [(8.0, 7.0), (4.0, 3.0), (2.0, 1.5), (0.02, 0.015), (0.008, 0.01)]
)
def test_back_offs_of_a_drain(left: float, due_in: float) -> None:
    """The last attempt is a second before its end, or a quarter of what is left; never at once."""
    rig = Rig(rng=Extremes(), retry_base=1000, retry_max_delay=1000)
    rig.put(1)
    (batch,) = rig.poll()
    rig.engine.drain(rig.now + left, rig.now)
    rig.fail(batch, "connect")
    assert rig.engine.backoffs.next_at - rig.now == pytest.approx(due_in)


@pytest.mark.parametrize(("left", "due_in"), [(8.0, 7.0), (4.0, 3.0), (2.0, 1.5), (0.02, 0.015)])
def test_a_drain_clips_what_backs_off(left: float, due_in: float) -> None:
    """By the same rule; what is due earlier stays."""
    rig = Rig(rng=Extremes(), retry_base=1000, retry_max_delay=1000)
    rig.put(1)
    rig.fail(rig.poll()[0], "connect")
    rig.engine.drain(rig.now + left, rig.now)
    assert rig.engine.backoffs.next_at - rig.now == pytest.approx(due_in)
