"""How the programs run their loop: uvloop where it is installed, asyncio elsewhere; and their collector.

The library imposes neither on a program that embeds it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

GC_THRESHOLD: Final = 50_000
"""Objects made between two collections: a wave of messages is no garbage, and looking at it costs a sixth."""


def spare_collector() -> None:
    """Have the garbage collector look less often, and never again at what is there already.

    Its full collections walk over all that was imported, tens of milliseconds each time, and free nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, if it can be imported."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run_in_loop(main: Coroutine[None, None, T]) -> T:
    """Run a program's main coroutine to its end."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)
