"""Where the time of a call goes: exclusive times of the functions that it passes through."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

DRIVER = "driver "
"""What the names of the driver's functions begin with."""


class Watch:
    """Exclusive times of functions: what is spent in another watched function is that one's."""

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        """Watch by a clock of nanoseconds."""
        self._now = now
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._within: list[int] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched under this name."""

        def watched(*arguments: Any, **named: Any) -> Any:
            within = self._within
            within.append(0)
            start = self._now()
            try:
                return function(*arguments, **named)
            finally:
                taken = self._now() - start
                self.spent[name] += taken - within.pop()
                self.calls[name] += 1
                if within:
                    within[-1] += taken

        return watched


class WatchedDriver:
    """A binding, or a maker of graphs, whose every call is watched as `driver NAME`."""

    def __init__(self, real: Any, watch: Watch) -> None:
        self._real, self._watch = real, watch

    def __getattr__(self, name: str) -> Any:
        found = self._watch.wrap(DRIVER + name, getattr(self._real, name))
        setattr(self, name, found)
        return found
