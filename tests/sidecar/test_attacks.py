"""All attacks, as `python -m tests.sidecar.attacks` tries them; and that a wrong verdict would be seen."""

from __future__ import annotations

import pytest

from tests.sidecar.attacks import __main__ as attacks
from tests.sidecar.attacks.stage import CALLER, OWNER, PUBLISH, Report, http, stage
from tests.sidecar.daemon_support import environment

pytestmark = pytest.mark.anyio
GROUPS = {"identity", "start", "secrets", "message", "reach", "injection", "elsewhere", "headers", "bounds"}
TRIED_MIN = 300


async def test_every_attack_is_refused_or_bounded() -> None:
    """Two real sidecars, one with small bounds; nothing got through, and what is allowed was not refused."""
    report = await attacks.attack_all()
    assert [str(line) for line in report.wrong] == []
    assert {line.group for line in report.lines} == GROUPS
    assert len(report.lines) > TRIED_MIN


async def test_a_wrong_verdict_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """What got through though it must not, no answer at all, a token where it must not be: exit 1."""
    report = Report()
    async with stage(report, env=environment(None, OWNER, DISPATCHER_SERVE_TOKENS=CALLER)) as one:
        await one.expect("identity", "a good token is refused", http(PUBLISH, body=b"x"), 401)
        await one.expect(
            "identity", "other words", http(PUBLISH, token="wrong", body=b"x"), 401, "no such words"
        )
        await one.expect("message", "nothing is answered", b"", 200)
        assert attacks.conclude(report) == 1
    assert len(report.wrong) == 3
    told = capsys.readouterr().out
    assert told.count("WRONG") == 3
    assert "no answer" in told
    assert attacks.conclude(Report()) == 0
