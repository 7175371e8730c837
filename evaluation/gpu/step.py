"""A step of `steps`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A command with a time limit.

    Attributes:
        name: by which it is chosen.
        command: gives program and arguments when the step's turn has come: it may need what an earlier one made.
        limit: seconds.
        junit: where it writes its tests' outcomes, if it runs tests.
        why_not: why it cannot be run here; empty where it can.
    """

    name: str
    command: Callable[[], Sequence[str]]
    limit: float
    junit: Path | None = None
    why_not: str = ""
