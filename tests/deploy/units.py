"""The systemd units, read as systemd reads them: lists that grow, specifiers, time spans.

Only as much of the syntax as our units use; what it does not know is an error.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import TYPE_CHECKING, Final

from tests.deploy.tools import DEPLOY, ran

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SERVICE: Final = DEPLOY / "systemd" / "dispatcher.service"
SOCKET: Final = DEPLOY / "systemd" / "dispatcher.socket"
SECONDS: Final = {"s": 1, "min": 60}

Unit = dict[str, dict[str, list[str]]]
"""Section, key, values in order."""


def unit(path: Path) -> Unit:
    """A unit file."""
    sections: Unit = {}
    here: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text[0] == "[":
            here = sections.setdefault(text.strip("[]"), {})
            continue
        key, mark, value = text.partition("=")
        assert mark, f"{path}: {text}"
        assert not text.endswith("\\"), "continued lines are not read here"
        here.setdefault(key, []).append(value)
    return sections


def seconds(text: str) -> float:
    """A time span of one part."""
    found = re.fullmatch(r"(\d+)(s|min)", text)
    assert found, text
    return int(found[1]) * SECONDS[found[2]]


def filled(text: str, specifiers: Mapping[str, str]) -> str:
    """Specifiers replaced; one that is not given is an error."""
    return re.sub(r"%(.)", lambda found: specifiers[found[1]], text)


def environment(service: Unit, specifiers: Mapping[str, str]) -> dict[str, str]:
    """What the `Environment=` lines set."""
    words = [word for line in service["Service"]["Environment"] for word in shlex.split(line)]
    pairs = (filled(word, specifiers).partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def system_calls(service: Unit) -> set[str]:
    """The calls that `SystemCallFilter=` leaves, its sets as this machine's systemd knows them."""
    left: set[str] = set()
    for line in service["Service"]["SystemCallFilter"]:
        names = {name for word in line.lstrip("~").split() for name in members(word)}
        left = left - names if line.startswith("~") else left | names
    return left | members("@default")


@cache
def members(name: str) -> set[str]:
    """A call itself, or the calls of a set and of the sets in it."""
    if not name.startswith("@"):
        return {name}
    code, text = ran("systemd-analyze", "syscall-filter", name, "--no-pager")
    assert code == 0, text
    lines = [line.strip() for line in text.splitlines()]
    inner = [line for line in lines if line and line[0] != "#" and line != name]
    return {call for one in inner for call in members(one)}
