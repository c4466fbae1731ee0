"""The JSON report, written and read: every round, with the method and the machine, but no name of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from benchmarks.report import Figures
from benchmarks.rows import Configuration
from benchmarks.rows_rounds import WARM_UP_SHARE, cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.rows import Round
    from benchmarks.rows_rounds import Contender, Plan

LIBRARIES: Final = (
    *("qstash-dispatcher", "aiohttp", "anyio", "msgspec", "orjson", "uvloop"),
    *("qstash", "httpx", "elasticsearch"),
)
FORMAT: Final = 1


def document(
    plan: Plan,
    played: Sequence[tuple[Configuration, Mapping[Contender, Sequence[Round]], Sequence[Figures]]],
    skipped: Mapping[str, str],
) -> bytes:
    """The whole report as JSON."""
    content = {
        "format": FORMAT,
        "method": method(plan),
        "machine": machine(),
        "skipped": dict(skipped),
        "configurations": [
            {
                "configuration": configuration,
                "rows": [
                    {"figures": one, "rounds": list(counted)}
                    for one, counted in zip(figures, rounds.values(), strict=True)
                ],
            }
            for configuration, rounds, figures in played
        ],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


class Measured(Struct, frozen=True):
    """One configuration of a report that was written."""

    configuration: Configuration
    figures: list[Figures]


def read(path: Path) -> tuple[str, list[Measured]]:
    """A report that was written: the machine in a few words, and what was measured."""
    content = msgspec.json.decode(path.read_bytes())
    return machine_words(content["machine"]), [
        Measured(
            msgspec.convert(one["configuration"], Configuration),
            [msgspec.convert(row["figures"], Figures) for row in one["rows"]],
        )
        for one in content["configurations"]
    ]


def machine_words(found: Mapping[str, Any]) -> str:
    """A machine of a report in a few words."""
    return f"{found['cpu']}, {found['cores']} cores, {found['python']}"


def method(plan: Plan) -> dict[str, Any]:
    """How it was measured."""
    return {
        "rounds": plan.rounds,
        "round_seconds": plan.seconds if plan.messages is None else None,
        "round_messages": plan.messages,
        "order": "interleaved, each row in a process of its own, each round begins with another row",
        "not_counted": f"one whole round, and {WARM_UP_SHARE:.0%} of each round's messages at its start",
        "timed": "from the first message to the last receipt; client opened and warmed up before",
        "collector": "frozen after the warm-up, threshold raised" if plan.spares_collector else "default",
        "cpu": "user and system time of the client's process",
        "ratios": "of the medians of messages a second, and of CPU time a message, under the same loop",
        "pinned": cores()[0] is not None,
        "upstream": "raw asyncio protocol in a process of its own; its idle share is in every round",
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
        "syslog-ng": _syslog_version(),
    }


def machine_line() -> str:
    """The same in a few words."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{cpu_model()}, {os.cpu_count()} cores, {name}"


def cpu_model() -> str:
    """The processor as it calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _syslog_version() -> str | None:
    program = shutil.which("syslog-ng")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].partition("(")[2].rstrip(")") or said.partition("\n")[0]
