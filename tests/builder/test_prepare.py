import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_centernet import tiny_model

from centernet_trt.builder.prepare import Passes, Silence

GROW = """
import numpy as np
from centernet_trt.builder.prepare import peak_memory
before = peak_memory()
block = np.ones(200_000_000, np.uint8)
grown = peak_memory()
del block
print(before, grown, peak_memory())
"""


class Listener(Silence):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def step(self, name: str, done: int, total: int) -> None:
        self.steps.append((name, done, total))


def test_passes_are_timed_counted_and_told() -> None:
    heard = Listener()
    passes = Passes(heard)
    model = passes.run("first", tiny_model)
    wrapped = passes.run("second", lambda: SimpleNamespace(model=model))
    assert wrapped.model is model
    assert passes.run("third", lambda: "no model") == "no model"
    assert heard.steps == [("first", 0, 0), ("second", 1, 0), ("third", 2, 0)]
    assert [(row.name, row.nodes) for row in passes.records] == [("first", 3), ("second", 3), ("third", 3)]
    assert all(row.seconds >= 0 for row in passes.records)
    with pytest.raises(ZeroDivisionError):
        passes.run("fails", lambda: 1 / 0)
    assert len(passes.records) == 3


def test_the_peak_of_memory() -> None:
    """A block of 200 MB shows, and stays after it is freed; in a process of its own, started by a larger one."""
    larger = np.ones(300_000_000, np.uint8)
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    before, grown, after = map(int, done.stdout.split())
    assert 150e6 < grown - before < 230e6  # what importing had freed is used again
    assert abs(after - grown) < 1e6  # Linux counts in steps
    del larger
