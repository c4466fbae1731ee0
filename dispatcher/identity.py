"""Deduplication ids: 128 random bits drawn when a dispatcher opens, and a counter.

Never drawn at import: forked children and restored snapshots would share them, and the service would
swallow *different* messages as duplicates of each other. For the same reason whoever was open when the
process forked is told so in the child, and refuses to work there, or begins anew.
"""

from __future__ import annotations

import os
import secrets
import weakref
from itertools import chain, count, cycle, repeat
from operator import add
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


ENDINGS: Final = [f"{number:02x}" for number in range(256)]
"""The last digits of an id, in turn."""


class Forkable(Protocol):
    """Something that must not go on in a forked child, or begin anew there."""

    def after_fork(self) -> None:
        """Called in the child."""
        ...


_open: weakref.WeakSet[Forkable] = weakref.WeakSet()


def id_source(prefix: str = "") -> Callable[[], str]:
    """A function that gives a fresh id at each call, in any thread.

    Only C code runs in a call: that costs a third of a format string, and threads cannot come in between.
    """
    beginnings = map(f"{prefix}{secrets.token_hex(16)}-%x".__mod__, count())
    each_repeated = chain.from_iterable(map(repeat, beginnings, repeat(len(ENDINGS))))
    return map(add, each_repeated, cycle(ENDINGS)).__next__


def watch(opened: Forkable) -> None:
    """Have `opened` told if this process forks."""
    _open.add(opened)


def unwatch(closed: Forkable) -> None:
    """It is closed; a fork is none of its business any more."""
    _open.discard(closed)


def _after_fork() -> None:
    told = list(_open)
    _open.clear()  # first: who goes on in the child watches again
    for opened in told:
        opened.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
