"""A mutant: a change of a few words in the core, made in its source text while a test runs."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    import pytest


class Change(Struct, frozen=True):
    """One place of a function's source."""

    owner: Any
    """The class or module."""
    name: str
    old: str
    new: str


class Mutant(Struct, frozen=True):
    """A deliberate fault and who has to notice it."""

    name: str
    by: tuple[str, ...]
    """Scenarios, or `machine`; each of them has to."""
    changes: tuple[Change, ...]


def apply(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the mutant in the core's place for one test."""
    for change in mutant.changes:
        target = inspect.getattr_static(change.owner, change.name)
        function = target.fget if isinstance(target, property) else target
        assert function is not None, f"{change.name} cannot be read"
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(change.old) == 1, f"{mutant.name}: {change.old!r} is not what it changes any more"
        changed = compile(
            "from __future__ import annotations\n" + source.replace(change.old, change.new),
            f"<{mutant.name}>",
            "exec",
        )
        made: dict[str, Any] = {}
        exec(changed, vars(sys.modules[function.__module__]), made)
        _install(change, target, made[change.name], monkeypatch)


def _install(change: Change, target: Any, replacement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if inspect.isclass(change.owner):
        monkeypatch.setattr(change.owner, change.name, replacement)
        return
    for name, module in list(sys.modules.items()):  # also where it was imported by its name
        if name.startswith("dispatcher.core") and getattr(module, change.name, None) is target:
            monkeypatch.setattr(module, change.name, replacement)


def one(name: str, by: str, owner: Any, function: str, old: str, new: str) -> Mutant:
    """A mutant of one change."""
    return Mutant(name, tuple(by.split()), (Change(owner, function, old, new),))
