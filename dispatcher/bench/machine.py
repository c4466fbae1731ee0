"""What a run cost: processor time and memory of this process, and of another one where the system tells."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

_KIB: Final = 1024


class Effort(Struct, frozen=True):
    """Processor seconds by now."""

    at: float
    own: float
    upstream: float | None = None
    """`None` where the upstream is not ours, or the system does not tell."""

    @classmethod
    def now(cls, upstream_pid: int | None = None) -> Effort:
        """Read it."""
        other = None if upstream_pid is None else cpu_seconds(upstream_pid)
        return cls(time.monotonic(), time.process_time(), other)


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process, from Linux's `/proc`; `None` elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def peak_memory_bytes() -> int | None:
    """The most memory this process has had resident; `None` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * _KIB


def description(loop: str) -> dict[str, Any]:
    """The machine, without its name."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "loop": loop,
    }
