"""Runs the passes of a build: tells who listens, and keeps the time and the memory of each."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from onnx import ModelProto

from centernet_trt.runtime.manifest import PassRecord

__all__ = ["Passes", "Reporter", "Silence", "peak_memory"]

T = TypeVar("T")


class Reporter(Protocol):
    """Hears how a build goes on."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, name: str, done: int, total: int) -> None:
        """Part of the stage is done; `total` 0 where it is not known."""


class Silence:
    """Hears, and says nothing."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, name: str, done: int, total: int) -> None:
        """Part of the stage is done."""


class Passes:
    """Runs passes one by one; `records` has a row for each, `notes` what the user should know."""

    def __init__(self, reporter: Reporter) -> None:
        """Tell `reporter`."""
        self._reporter = reporter
        self.records: list[PassRecord] = []
        self.notes: list[str] = []

    def run(self, name: str, function: Callable[[], T]) -> T:
        """Run a pass; what it returns, a model or something that has one, says how many nodes there are now."""
        self._reporter.step(name, len(self.records), 0)
        start = time.perf_counter()
        result = function()
        seconds = round(time.perf_counter() - start, 4)
        model: Any = getattr(result, "model", result)
        nodes = len(model.graph.node) if isinstance(model, ModelProto) else self.records[-1].nodes
        self.records.append(PassRecord(name=name, seconds=seconds, nodes=nodes, peak_bytes=peak_memory()))
        return result


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes of resident pages; None where nobody counts it."""
    try:
        # Not getrusage where this is: its figure survives exec, and would be that of a larger process which started us.
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
