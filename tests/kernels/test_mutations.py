"""Planted faults: each must make a named test fail. The fences are in test_ptx.py, which compiles them away itself."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.cpu_build import ROOT, compiler
from helpers.cpu_kernels import CpuMachine, HarnessError
from helpers.kernel_runs import IDENTITY, DecodeRun
from helpers.official_heads import OFFICIAL, official_heads


@dataclass(frozen=True)
class Fault:
    """Replace the `nth` occurrence of `old` in a source file; `caught_by` is the test that must then fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    nth: int = 0
    sanitized: bool = False
    quick: bool = False


BARRIER = "__syncthreads();"
DECODE, PREPROCESS = "test_decode.py::", "test_preprocess.py::"
ORDER, HELD_BACK = DECODE + "test_order_and_ties", DECODE + "test_one_thread_held_back_at_every_barrier"
MANY_UNITS = DECODE + "test_a_block_that_works_through_many_units"
MANY_ROWS = DECODE + "test_noise_of_1024_rows"
POLICY = PREPROCESS + "test_every_policy"

FAULTS = [
    # Every barrier of the sources is here: test_every_barrier_has_its_mutant counts them.
    Fault("no barrier after clearing the histogram", "select.cuh", BARRIER, ";", ORDER, 0),
    Fault("no barrier after counting digits", "select.cuh", BARRIER, ";", ORDER, 1),
    Fault("no barrier after choosing the digit", "select.cuh", BARRIER, ";", ORDER, 2),
    Fault("no barrier between reading and writing in place", "select.cuh", BARRIER, ";", ORDER, 3),
    Fault("no barrier at the end of a cut", "select.cuh", BARRIER, ";", ORDER, 4),
    Fault("no barrier after reading the count", "select.cuh", BARRIER, ";", MANY_UNITS, 5),
    Fault("no barrier between ranking and placing", "select.cuh", BARRIER, ";", ORDER, 6),
    Fault("no barrier after placing", "select.cuh", BARRIER, ";", ORDER, 7),
    Fault("no barrier before sorting", "select.cuh", BARRIER, ";", MANY_ROWS, 8),
    Fault("no barrier between sorting steps", "select.cuh", BARRIER, ";", MANY_ROWS, 9),
    Fault("no barrier after taking room in the list", "decode.cu", BARRIER, ";", ORDER, 0),
    Fault("no barrier between keys and ticket", "decode.cu", BARRIER, ";", HELD_BACK, 1, quick=True),
    Fault("no barrier after the ticket", "decode.cu", BARRIER, ";", HELD_BACK, 2),
    Fault("no barrier before the counters are reset", "decode.cu", BARRIER, ";", ORDER, 3),
    Fault("no barrier after the counters are reset", "decode.cu", BARRIER, ";", ORDER, 4),
    Fault("no barrier after the level is set", "decode.cu", BARRIER, ";", ORDER, 5),
    Fault("no barrier before the tile is used", "preprocess.cu", BARRIER, ";", POLICY, 0),
    # Selection
    Fault("ties go to the larger index", "select.cuh", "(Key)(0xffffffffu - index)", "(Key)index", ORDER, quick=True),
    Fault("-0.0 below +0.0", "select.cuh", "value == 0.0f ? 0.0f : value", "value", ORDER),
    Fault("the level itself is dropped", "select.cuh", "< level) pending", "<= level) pending", ORDER),
    Fault("the k-th key is lost", "select.cuh", "wanted -= s.above", "wanted -= s.above + 1", ORDER),
    Fault("a key past the buffer", "select.cuh", "slot < capacity; pending", "slot <= capacity; pending",
          DECODE + "test_equal_values_at_the_cut_go_to_the_smaller_index", sanitized=True),
    Fault("a full buffer drops keys", "select.cuh", "if (!more) return;", "return;",
          DECODE + "test_equal_values_at_the_cut_go_to_the_smaller_index"),
    Fault("ranked the wrong way", "select.cuh", "keys[i] > mine", "keys[i] < mine", ORDER),
    Fault("sorted the wrong way", "select.cuh", "(a < b) == descending", "(a > b) == descending", MANY_ROWS),
    # Decode
    Fault("keys counter not reset", "decode.cu", "counters[0] = 0;", ";", ORDER, quick=True),
    Fault("blocks counter not reset", "decode.cu", "counters[1] = 0;", ";", ORDER),
    Fault("the first block merges", "decode.cu", "== gridDim.x - 1;", "== 0;", HELD_BACK),
    Fault("no halo above", "decode.cu", "load_row(map, y + r - 1,", "load_row(map, y + r,", ORDER, quick=True),
    Fault("no neighbour at the vector's edge", "decode.cu", "load_cell(map, y, x + i - 1,", "load_cell(map, y, x + i,",
          ORDER),
    Fault("the threshold itself is dropped", "decode.cu", "value >= level &&", "value > level &&",
          DECODE + "test_a_threshold_keeps_exactly_the_scores_at_or_above_it"),
    Fault("first forgets the cell before", "decode.cu", "fmaxf(up[i + 2], mid[i])", "up[i + 2]", ORDER),
    Fault("16-byte loads of unaligned rows", "decode.cu", "&& ((size_t)from & 15) == 0", "",
          DECODE + "test_alignment", sanitized=True),
    Fault("rows read past the map's width", "decode.cu", "if (x + i < width) row.set", "row.set", ORDER),
    Fault("k of the plan instead of the image's", "decode.cu", "image.top_k < p.rows ? image.top_k : p.rows", "p.rows",
          DECODE + "test_replay_with_other_images"),
    # Boxes
    Fault("one affine for the whole batch", "boxes.cuh", "(value - shift) / scale", "(scale > 0 ? value - shift : 0)",
          DECODE + "test_golden"),
    Fault("rows past the count keep garbage", "boxes.cuh", "int label = -1;", "int label = 0;", ORDER),
    # Preprocess
    Fault("pixel centres forgotten", "preprocess.cu", "half_pixel ? 0.5 : 0.0", "half_pixel ? 0.0 : 0.0", POLICY),
    Fault("truncated instead of rounded", "preprocess.cu", "__float2int_rn(", "(int)(", POLICY),
    Fault("pitch taken for the width", "preprocess.cu", "(size_t)image.pitch", "(size_t)(3 * image.width)", POLICY),
    Fault("red and blue swapped", "preprocess.cu", "p.rgb ? level[2 - c] : level[c]", "p.rgb ? level[c] : level[2 - c]",
          POLICY),
]  # fmt: skip
BARRIERS = {"select.cuh": 10, "decode.cu": 6, "preprocess.cu": 1, "boxes.cuh": 0}


def _plant(fault: Fault, folder: Path) -> None:
    for source in (ROOT / "kernels").glob("*.cu*"):
        shutil.copy(source, folder)
    parts = (folder / fault.file).read_text().split(fault.old)
    assert len(parts) > fault.nth + 1, f"{fault.old!r} is no longer in {fault.file}"
    head, tail = fault.old.join(parts[: fault.nth + 1]), fault.old.join(parts[fault.nth + 1 :])
    (folder / fault.file).write_text(head + fault.new + tail)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[] if f.quick else [pytest.mark.slow]) for f in FAULTS],
)
def test_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("g++ is not installed: the kernels' sources cannot be run on the CPU")
    _plant(fault, tmp_path)
    environment = os.environ | {"CENTERNET_TRT_TEST_KERNELS": str(tmp_path)}
    if fault.sanitized:
        environment["CENTERNET_TRT_TEST_SANITIZED"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    target = str(ROOT / "tests" / "kernels" / fault.caught_by)
    done = subprocess.run(
        [*command, target], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if "skipped" in done.stdout and "failed" not in done.stdout:
        pytest.skip("the test that catches it was skipped")
    assert done.returncode == 1, f"not caught:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    # Caught by the test's own verdict, not by a mutant that does not compile.
    assert not re.search(r"\.(cuh?|h|cpp):\d+:\d+: (fatal )?error: ", done.stdout), done.stdout[-3000:]


def test_every_barrier_has_its_mutant() -> None:
    for file, count in BARRIERS.items():
        text = (ROOT / "kernels" / file).read_text()
        assert text.count(BARRIER) == count, f"{file}: give the new barrier a mutant"
        planted = {fault.nth for fault in FAULTS if fault.file == file and fault.old == BARRIER}
        assert planted == set(range(count))


@pytest.mark.parametrize("buffer", ["shared memory", "keys", "counters", "output", "heatmap"])
def test_a_buffer_that_is_too_small_is_reported(buffer: str) -> None:
    """AddressSanitizer sees a step of one element past the end of anything."""
    if compiler() is None:
        pytest.skip("g++ is not installed: the kernels' sources cannot be run on the CPU")
    machine = CpuMachine()
    heads = official_heads(np.zeros((1, 2, 24, 24), dtype=np.float32))
    run = DecodeRun(machine, heads, OFFICIAL, [IDENTITY], 0.0, 20, threads=64, list_keys=20, buffer_keys=32)
    machine.write(run.keys, b"\xff" * run.plan.key_bytes)
    shape = run.plan.shape
    if buffer == "shared memory":
        shape = replace(shape, shared_bytes=shape.shared_bytes - 8)
    else:
        address = {
            "keys": run.params.keys,
            "counters": run.params.counters,
            "output": run.params.score,
            "heatmap": run.params.heatmap,
        }[buffer]
        index = address >> 32 & 0xFFFF
        ends = {"output": run.layout.score + 4 * run.plan.rows}
        kept = machine._buffers[index][: ends.get(buffer)]
        machine._buffers[index] = kept[:-4]
    if buffer == "output":  # what lies after the scores gets memory of its own
        run.params.label = machine.allocate(4 * run.plan.rows)
    with pytest.raises(HarnessError, match=r"heap-buffer-overflow|an address outside every buffer"):
        machine.launch(run.plan.kernel, shape, run.params)
    machine.close()
