"""Planted faults: each must make a named test fail. Missing fences are planted by test_ptx.py."""

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
    """Replace the only occurrence of `old` in a source file; `caught_by` is the test that must then fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    sanitized: bool = False
    quick: bool = False


BARRIER = "__syncthreads();  // barrier: "  # and what it guarantees
DECODE, PREPROCESS = "test_decode.py::", "test_preprocess.py::"
ORDER, HELD_BACK = DECODE + "test_order_and_ties", DECODE + "test_one_thread_held_back_at_every_barrier"
MANY_UNITS = DECODE + "test_a_block_that_works_through_many_units"
MANY_ROWS = DECODE + "test_noise_of_1024_rows"
POLICY = PREPROCESS + "test_every_policy"


def no_barrier(file: str, guarantee: str, caught_by: str, quick: bool = False) -> Fault:
    """The barrier with this comment is missing."""
    return Fault(f"no barrier: {guarantee}", file, f"{BARRIER}{guarantee}\n", ";\n", caught_by, quick=quick)


FAULTS = [
    # Every barrier of the sources is here: test_every_barrier_has_its_mutant compares them.
    no_barrier("select.cuh", "histogram is zero", ORDER),
    no_barrier("select.cuh", "digits are counted", ORDER),
    no_barrier("select.cuh", "digit is chosen", ORDER),
    no_barrier("select.cuh", "keys of this round are read before any is written", ORDER),
    no_barrier("select.cuh", "cut is complete", ORDER),
    no_barrier("select.cuh", "all threads have read the count", MANY_UNITS),
    no_barrier("select.cuh", "all keys are ranked", ORDER),
    no_barrier("select.cuh", "keys are placed", ORDER),
    no_barrier("select.cuh", "padding is zero", MANY_ROWS),
    no_barrier("select.cuh", "sorting step is complete", MANY_ROWS),
    no_barrier("decode.cu", "base of the block in the list is known", ORDER),
    no_barrier("decode.cu", "keys are written before the ticket is drawn", HELD_BACK, quick=True),
    no_barrier("decode.cu", "ticket is drawn", HELD_BACK),
    no_barrier("decode.cu", "total is read before the counters are reset", ORDER),
    no_barrier("decode.cu", "selection is empty", ORDER),
    no_barrier("decode.cu", "level is set", ORDER),
    no_barrier("preprocess.cu", "tile is filled", POLICY),
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


def _plant(fault: Fault, folder: Path) -> None:
    for source in (ROOT / "kernels").glob("*.cu*"):
        shutil.copy(source, folder)
    text = (folder / fault.file).read_text()
    assert text.count(fault.old) == 1, f"expected {fault.old!r} once in {fault.file}"
    (folder / fault.file).write_text(text.replace(fault.old, fault.new))


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
    for source in (ROOT / "kernels").glob("*.cu*"):
        text = source.read_text()
        barriers = [f"{line.strip()}\n" for line in text.splitlines() if BARRIER in line]
        assert text.count("__syncthreads();") == len(barriers), (
            f"{source.name}: a barrier without its comment"
        )
        planted = [fault.old for fault in FAULTS if fault.file == source.name and BARRIER in fault.old]
        assert planted == barriers, f"{source.name}: give the new barrier a mutant"


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
