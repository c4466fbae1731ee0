"""Programs with an outbox are killed, begun again, and killed: ten rounds of what the command does longer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.outbox.kill_programs import Library
from tests.outbox.kills import PROGRAMS, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
ROUNDS = 10


@pytest.mark.parametrize("program", PROGRAMS)
async def test_nothing_is_lost_doubled_or_reordered(tmp_path: Path, program: str) -> None:
    """Acknowledged ⊆ delivered ∪ stored after each killing; at the end delivered once, in order."""
    finding = await run(PROGRAMS[program], tmp_path, ROUNDS, seed=2)
    assert not finding.problems
    assert finding.phases.total() == ROUNDS
    assert len(finding.phases) >= 2, finding  # it did not always end in the same way
    assert finding.acknowledged > 1000
    assert finding.resent, "nothing came twice: this proves nothing about doubles"


async def test_a_store_that_answers_before_the_commit_is_found_out(tmp_path: Path) -> None:
    """The control: the same harness says that messages are lost."""
    finding = await run(partial(Library, mode="early"), tmp_path, rounds=40, seed=2)
    assert "acknowledged, and neither delivered nor stored" in " ".join(finding.problems), finding
