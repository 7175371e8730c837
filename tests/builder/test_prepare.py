import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_centernet import save_tiny_model, tiny_spec
from onnx import ModelProto

from centernet_trt.builder.options import BuildOptions
from centernet_trt.builder.pass_list import PASSES
from centernet_trt.builder.preparation import Pass, Preparation
from centernet_trt.builder.prepare import describe_passes, prepare, run_passes
from centernet_trt.builder.progress import Silence
from centernet_trt.runtime.manifest import ShapeRange

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


def preparation(reporter: Silence) -> Preparation:
    return Preparation(Path("none.onnx"), tiny_spec(), BuildOptions(), None, False, reporter)


def grow(state: Preparation) -> None:
    state.model = ModelProto.FromString(state.model.SerializeToString())
    state.model.graph.node.add(op_type="Relu")


def test_passes_are_timed_counted_and_reported() -> None:
    listener = Listener()
    state = preparation(listener)
    passes = (
        Pass("first", "", grow),
        Pass("skipped", "", grow, "never", lambda _: False),
        Pass("unrecorded", "", grow, recorded=False),
        Pass("second", "", lambda state: state.notes.append("looked")),
    )
    run_passes(state, passes)
    assert listener.steps == [("first", 0, 0), ("second", 1, 0)]
    assert [(row.name, row.nodes) for row in state.records] == [("first", 1), ("second", 2)]
    assert all(row.seconds >= 0 for row in state.records)
    assert state.notes == ["looked"]
    with pytest.raises(ZeroDivisionError):
        run_passes(state, (Pass("fails", "", lambda _: 1 / 0), *passes))  # type: ignore[arg-type, return-value]
    assert len(state.records) == 2


def test_a_pass_repeats_earlier_ones_while_its_condition_holds() -> None:
    state = preparation(Silence())
    passes = (
        Pass("once", "", grow),
        Pass("typed", "", grow),
        Pass("measured", "", lambda _: None),
        Pass("again", "", grow, "below 6 nodes", lambda s: len(s.model.graph.node) < 6, repeat_from="typed"),
        Pass("last", "", lambda _: None),
    )
    run_passes(state, passes)
    round_trip = ["typed", "measured", "again"]
    assert [row.name for row in state.records] == [
        "once",
        *round_trip,
        *round_trip,
        "typed",
        "measured",
        "last",
    ]


def test_the_pass_list_prints_itself() -> None:
    rows = describe_passes().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [one.name for one in PASSES]
    assert all(row.count("|") == 4 for row in rows)
    assert all(one.what and (one.when or one.applies(preparation(Silence()))) for one in PASSES)
    names = [one.name for one in PASSES]
    assert all(one.repeat_from in names for one in PASSES if one.repeat_from)


def test_the_passes_of_a_build_are_those_of_the_list(tmp_path: Path) -> None:
    options = BuildOptions("fp16", ShapeRange.parse("1"), ShapeRange.parse("64"), ShapeRange.parse("64"))
    prepared = prepare(save_tiny_model(tmp_path), tiny_spec(), options)
    found = [row.name for row in prepared.passes]
    assert found == [
        "load",
        "heads",
        "shapes",
        "fold constants",
        "fold batch norm",
        "fp16 ranges",
        "fp16",
        "compare",
        "limits",
    ]
    assert [name for name in dict.fromkeys(one.name for one in PASSES) if name in found] == found


def test_the_peak_of_memory() -> None:
    """A block of 200 MB shows, and stays after it is freed; in a process of its own, started by a larger one."""
    larger = np.ones(300_000_000, np.uint8)
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    before, grown, after = map(int, done.stdout.split())
    assert 150e6 < grown - before < 230e6  # what importing had freed is used again
    assert abs(after - grown) < 1e6  # Linux counts in steps
    del larger
