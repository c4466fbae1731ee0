"""The fixed limit."""

from __future__ import annotations

import pytest

from dispatcher.core.limit import FixedLimit, Signal


@pytest.mark.parametrize("signal", ["ok", "overload", "timeout", "neutral"])
def test_a_fixed_limit_learns_nothing(signal: Signal) -> None:
    """Its value stays whatever is observed."""
    limit = FixedLimit(7)
    limit.observe(signal, started_at=0.0, now=1.0, was_reached=True)
    assert limit.value == 7
