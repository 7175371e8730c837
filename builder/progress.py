"""Receive the progress of a build: BuildReporter."""

import sys
from pathlib import Path
from typing import Protocol

__all__ = ["BuildReporter", "Silence", "peak_memory"]


class BuildReporter(Protocol):
    """Receives the progress of a build, possibly from other threads."""

    def stage(self, name: str) -> None:
        """A stage begins: `graph`, `calibration`, `int8 search`, `write` or TensorRT's."""

    def step(self, name: str, done: int, total: int) -> None:
        """`done` of `total` steps of a pass or phase of the stage are done; `total` is 0 where unknown."""


class Silence:
    """A BuildReporter that ignores everything."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, name: str, done: int, total: int) -> None:
        """Steps are done."""


def peak_memory() -> int | None:
    """The largest resident memory of this process so far, in bytes; None if the system does not count it."""
    try:
        # Preferred to getrusage, whose figure survives exec and would be that of a larger parent process.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
