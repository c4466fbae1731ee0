"""What the sidecar says in the log of requests that it refuses: a line a status now and then, not one each.

It reads the counters as they pass, so that no request costs anything for it. What the upstream answered
through the proxy is not the sidecar's own refusal. Called by the daemon's beat.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from dispatcher.repeats import Repeats

if TYPE_CHECKING:
    from dispatcher.sidecar.counters import IntakeCounters

LOUD: Final = frozenset({401, 403, 429})
"""Below 500, what an operator can mend; the rest are mistakes of single callers."""

logger: Final = logging.getLogger("dispatcher.sidecar")


class RefusalNews:
    """Tells of refused requests, by the counters of the intake."""

    def __init__(self, counters: IntakeCounters) -> None:
        self._counters = counters
        self._repeats = Repeats(logger, "")
        self._seen: dict[tuple[str, int], int] = {}

    def look(self, now: float) -> None:
        """Tell what was refused since the last time, and what is due; `now` is of any one clock."""
        refused: dict[int, list[tuple[str, int]]] = {}
        for (route, status), count in self._counters.requests.items():
            new = count - self._seen.get((route, status), 0)
            if new and status >= 400 and route != "proxy":
                self._seen[route, status] = count
                refused.setdefault(status, []).append((route, new))
        for status, routes in refused.items():
            count = sum(new for _, new in routes)
            names = ", ".join(route for route, _ in routes)
            words = f"{count:,} requests ({names}) were answered {status}"
            level = logging.WARNING if status in LOUD or status >= 500 else logging.INFO
            self._repeats.failed(f"requests answered {status}", words, now, count=count, level=level)
        self._repeats.tell(now)

    def close(self, now: float) -> None:
        """Nothing more is answered: tell what is left."""
        self.look(now)
        self._repeats.close(now)
