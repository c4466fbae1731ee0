"""Tries every attack on two real sidecars, prints what came of each, and exits 1 if one of them was wrong."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dispatcher.sidecar.settings import ServeSettings
from tests.sidecar.attacks import bounds, identity, messages, reach
from tests.sidecar.attacks.stage import CALLER, OTHER, OWNER, Report, raise_descriptors, stage
from tests.sidecar.daemon_support import environment


async def attack_all() -> Report:
    """Everything that is tried, some of it at the same time."""
    report = Report()
    raise_descriptors()
    identity.attack_reprs(report)
    with TemporaryDirectory() as folder:
        await asyncio.gather(
            identity.attack_start(report),
            _attack_usual(report, Path(folder)),
            _attack_small(report),
            _attack_open(report),
        )
    return report


async def _attack_usual(report: Report, folder: Path) -> None:
    """The usual bounds; every secret comes from a file; the log is JSON."""
    token, tokens = folder / "token", folder / "tokens"
    token.write_text(f"{OWNER}\n")
    tokens.write_text(f"# callers\n{CALLER}\n\n{OTHER}\n")
    files = {"DISPATCHER_TOKEN_FILE": str(token), "DISPATCHER_SERVE_TOKENS_FILE": str(tokens)}
    # (Less patience than usual: one connection too many waits for that long.)
    env = environment(None, None, **files, DISPATCHER_SERVE_PATIENCE="1")
    async with stage(report, env=env) as one:
        await identity.attack(one)
        await messages.attack(one)
        await reach.attack(one)
        await bounds.attack_crowds(one, ServeSettings().max_connections)
        await identity.attack_secrets(one, env)
        await reach.attack_redirected_batch(one)
        identity.look_at_log(one)


async def _attack_small(report: Report) -> None:
    """Small bounds; every secret comes from the environment; the log is text."""
    env = environment(None, OWNER, DISPATCHER_SERVE_TOKENS=f"{CALLER},{OTHER}", **bounds.SMALL)
    async with stage(report, "--serve-log-format", "text", env=env) as one:
        await bounds.attack(one)
        await identity.attack_secrets(one, env)


async def _attack_open(report: Report) -> None:
    """No authentication, on loopback."""
    async with stage(report, "--serve-authentication", "none", env=environment(None, OWNER)) as one:
        await identity.attack_open(one)


def conclude(report: Report) -> int:
    """Print it all; the exit code."""
    for line in sorted(report.lines, key=lambda line: line.group):
        print(line)
    print(f"{len(report.lines)} tried, {len(report.wrong)} wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(conclude(asyncio.run(attack_all())))
