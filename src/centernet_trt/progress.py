"""Progress, the type of the callbacks that long work reports to."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps of the phase; 0 where unknown), possibly from other threads."""
