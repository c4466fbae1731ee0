"""Programs with an outbox are killed, begun again, and killed: ten rounds of what the command does longer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import Config, Dispatcher, Message
from dispatcher.testing import local_upstream
from tests.outbox.kill_child import URL
from tests.outbox.kill_programs import Library
from tests.outbox.kill_serve import Serve
from tests.outbox.kill_stage import Judge, Killed, Stored
from tests.outbox.kills import PROGRAMS, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dispatcher.testing import LocalUpstream
    from tests.outbox.kill_programs import Program

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
    assert finding.dead, "nothing was poisoned"


@pytest.mark.parametrize(
    "early", [partial(Library, mode="early"), partial(Serve, module="tests.outbox.kill_serve")]
)
async def test_a_store_that_answers_before_the_commit_is_found_out(
    tmp_path: Path, early: Callable[[Path, LocalUpstream], Program]
) -> None:
    """The control: the same harness says that messages are lost."""
    finding = await run(early, tmp_path, rounds=20, seed=2)
    assert "acknowledged, and neither delivered nor stored" in " ".join(finding.problems), finding


@pytest.mark.parametrize(
    ("sent", "killed", "words"),
    [
        (("one 1", "two 1"), {"handed_in": ["one 1"]}, "1 delivered, and handed in by nobody: two 1"),
        (("one 2", "one 1"), {}, "1 out of order in one, behind 'one 2': one 1"),
        (("one 1", "one 1"), {}, "1 accepted twice: one 1"),
        (("one 1",), {"acknowledged": {"one 2": "out_2"}}, "and neither delivered nor stored: one 2"),
        (("one 1",), {"acknowledged": {"one 1": "out_1"}}, "under another id than the acknowledged out_1"),
        ((), {"held": {"out_1": "one 1", "out_2": "one 1"}}, "1 stored twice: one 1"),
        ((), {"held": {"out_1": "two 1"}}, "1 stored, and handed in by nobody: two 1"),
        (
            (),
            {"held": {"out_1": "one 1"}, "acknowledged": {"one 1": "out_2"}},
            "1 stored under another id than was acknowledged: one 1",
        ),
        (
            (),
            {"held": {"out_1": "one 1"}, "acknowledged": {"one 1": "msg_1"}},
            "1 answered with the service's id, and not delivered: one 1",
        ),
        ((), {"delivered": {"out_1"}}, "1 settled as delivered, and unknown upstream: out_1"),
        ((), {"held": {"out_1": "one 1"}}, "1 left unsettled: one 1"),
        (
            (),
            {"held": {"out_1": "one 1"}, "acknowledged": {"one 1": "out_1"}, "dead": {"out_1"}},
            "1 dead, and not poisoned: one 1",
        ),
        (("one 1",), {"held": {"out_1": "one 1"}, "dead": {"out_1"}}, "dead, and delivered all the same"),
    ],
)
async def test_the_judge_sees_what_must_not_be(
    sent: tuple[str, ...], killed: dict[str, Any], words: str
) -> None:
    """Each of what it looks for, made by hand."""
    known: dict[str, Any] = {"held": {}, "dead": set(), "delivered": set(), "acknowledged": {}}
    known |= {"handed_in": ("one 1", "one 2"), **killed}
    stored = Stored(known["held"], known["dead"], known["delivered"], {})
    found = Killed("running", known["acknowledged"], known["handed_in"], stored)
    async with local_upstream() as upstream:
        async with Dispatcher(Config.load(env={}, token=upstream.token, url=upstream.url)) as dispatcher:
            for body in sent:
                await dispatcher.send(Message(URL, body=body, queue="one"))
        judge = Judge(upstream)
        judge.after_kill(found)
        judge.at_end(stored)
    assert words in " ".join(judge.problems)
