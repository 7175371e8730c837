"""The decode kernel, run on the CPU under sanitizers, against the NumPy oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cpu_kernels import NEVER, CpuMachine
from helpers.kernel_runs import IDENTITY, DecodeRun, check_decode
from helpers.kernel_strategies import CONTENTS, Case, cases, heatmap
from helpers.official_heads import OFFICIAL, official_heads
from hypothesis import HealthCheck, given, settings

from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.decode import stored_threshold
from centernet_trt.runtime.spec import InputSpec

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check_case(machine: CpuMachine, case: Case) -> None:
    machine.seed, machine.resident = case.seed, case.resident
    run = DecodeRun(
        machine, case.heads, case.spec, case.placements, case.threshold, case.top_k, **case.options
    )
    check_decode(run, case.heads)


@settings(max_examples=400, **RELAXED)
@given(case=cases())
def test_random_cases(sanitized: CpuMachine, case: Case) -> None:
    check_case(sanitized, case)


@pytest.mark.slow
@settings(max_examples=4000, **RELAXED)
@given(case=cases(max_side=70, max_k=300))
def test_thousands_of_random_cases(sanitized: CpuMachine, case: Case) -> None:
    check_case(sanitized, case)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("plateau", ["all", "first"])
def test_order_and_ties(sanitized: CpuMachine, content: str, dtype: Any, plateau: str) -> None:
    rng = np.random.default_rng(11)
    maps = heatmap(rng, content, (2, 3, 21, 27)).astype(dtype)
    spec = OFFICIAL.model_copy(update={"plateau": plateau})
    check_decode(DecodeRun(sanitized, official_heads(maps), spec, [IDENTITY] * 2, 0.0), official_heads(maps))


@pytest.mark.parametrize(
    ("shape", "k"),
    [
        ((1, 1, 1, 1), 5),
        ((1, 1, 1, 1), 1024),
        ((1, 2, 3, 4), 1024),
        ((2, 1, 200, 8), 1000),
        ((1, 5, 1, 300), 7),
    ],
)
def test_k_larger_than_the_map_and_odd_maps(
    sanitized: CpuMachine, shape: tuple[int, int, int, int], k: int
) -> None:
    heads = official_heads(np.random.default_rng(2).normal(size=shape).astype(np.float32))
    check_decode(DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY] * shape[0], 0.0, k), heads)


@pytest.mark.parametrize("value", [0.0, -0.0, -np.inf, np.inf, np.nan])
def test_constant_map_of_1024_rows(sanitized: CpuMachine, value: float) -> None:
    heads = official_heads(np.full((1, 4, 40, 48), value, dtype=np.float16))
    check_decode(DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.0, 1024), heads)


def test_noise_of_1024_rows(sanitized: CpuMachine) -> None:
    """More keys than threads: sorted, not ranked."""
    heads = official_heads(np.random.default_rng(15).normal(size=(1, 6, 60, 64)).astype(np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.0, 1024)
    found = run.launch()
    assert found.count[0] == 1024 > run.plan.shape.block[0]
    check_decode(run, heads, found)


@pytest.mark.parametrize("content", ["noise", "constant"])
def test_the_target_shape_on_the_grid_of_an_h100(plain: CpuMachine, content: str) -> None:
    heads = official_heads(heatmap(np.random.default_rng(16), content, (1, 80, 128, 128)).astype(np.float16))
    multiprocessors, plain.multiprocessors = plain.multiprocessors, 132
    try:
        run = DecodeRun(plain, heads, OFFICIAL, [IDENTITY], 0.0, 100)
    finally:
        plain.multiprocessors = multiprocessors
    assert run.plan.shape.grid == (107, 1, 1)
    check_decode(run, heads)


@pytest.mark.parametrize("skew", [0, 1, 4, 7])
@pytest.mark.parametrize("width", [31, 32, 33])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_alignment(sanitized: CpuMachine, skew: int, width: int, dtype: Any) -> None:
    heads = official_heads(np.random.default_rng(3).normal(size=(2, 2, 9, width)).astype(dtype))
    check_decode(DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY] * 2, 0.0, skew=skew), heads)


def test_equal_values_at_the_cut_go_to_the_smaller_index(sanitized: CpuMachine) -> None:
    """More ties than the buffer holds: every cut must drop the larger indices."""
    heads = official_heads(np.zeros((1, 2, 24, 24), dtype=np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.0, 10, threads=64, buffer_keys=32, list_keys=12)
    assert run.plan.shape.grid[0] > 1
    found = run.launch()
    check_decode(run, heads, found)
    np.testing.assert_allclose(found.xyxy[0, :, [0, 2]].mean(0) // 4, np.arange(10), atol=1)


def test_a_block_that_works_through_many_units(sanitized: CpuMachine) -> None:
    """One small block an image, so that every cut of its buffer is followed by more work."""
    maps = np.random.default_rng(12).normal(size=(10, 3, 40, 41)).astype(np.float16)
    heads = official_heads(maps)
    placements = [IDENTITY] * 10
    run = DecodeRun(sanitized, heads, OFFICIAL, placements, 0.0, 20, threads=32, list_keys=22, buffer_keys=40)
    assert run.plan.shape.grid == (1, 10, 1)
    check_decode(run, heads)


def test_same_bits_whatever_the_order(sanitized: CpuMachine) -> None:
    heads = official_heads(
        np.round(np.random.default_rng(4).normal(size=(2, 3, 32, 40)) * 4).astype(np.float16)
    )
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY] * 2, 0.0, 50, threads=32)
    first = run.launch()
    check_decode(run, heads, first)
    for resident in (1, 2, 3, 4, 5, 6) * 2:
        sanitized.resident = resident
        again = run.launch()
        for name in ("count", "xyxy", "score", "label"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    sanitized.resident = 1


def test_one_thread_held_back_at_every_barrier(sanitized: CpuMachine) -> None:
    """All other threads of all blocks run as far ahead as the barriers let them, from each barrier in turn."""
    heads = official_heads(np.random.default_rng(14).normal(size=(1, 3, 20, 40)).astype(np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.0, 20, threads=32, list_keys=28, buffer_keys=64)
    assert run.plan.shape.grid[0] > 2
    sanitized.resident = run.plan.shape.grid[0]
    try:
        for barrier in range(250):
            sanitized.sleep_at = barrier
            check_decode(run, heads)
    finally:
        sanitized.resident, sanitized.sleep_at = 1, NEVER


def test_replay_with_other_images(sanitized: CpuMachine) -> None:
    """What varies is in the descriptors: the same launch, as a graph replays it, with another threshold, k, affine."""
    heads = official_heads(np.random.default_rng(6).normal(size=(2, 2, 16, 16)).astype(np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY] * 2, 0.0, 40)
    check_decode(run, heads)
    run.threshold, run.top_k = 0.6, [3, 17]
    sanitized.write(run.images, run._descriptors())
    check_decode(run, heads)


def test_top_k_zero_gives_nothing(sanitized: CpuMachine) -> None:
    heads = official_heads(np.ones((2, 2, 16, 16), dtype=np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY] * 2, 0.0, [0, 5], rows=5)
    found = run.launch()
    assert found.count.tolist() == [0, 5]
    assert (found.label[0] == -1).all()


def test_after_an_aborted_launch_zeroed_counters_suffice(sanitized: CpuMachine) -> None:
    heads = official_heads(np.random.default_rng(7).normal(size=(1, 4, 32, 32)).astype(np.float32))
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.0, 20, threads=32)
    assert run.plan.shape.grid[0] > 3
    sanitized.abort_after = 2
    sanitized.launch(run.plan.kernel, run.plan.shape, run.params)
    sanitized.abort_after = NEVER
    assert sanitized.download(run.counters, run.plan.counter_bytes).any()
    sanitized.write(run.counters, bytes(run.plan.counter_bytes))
    check_decode(run, heads)
    check_decode(run, heads)


def test_a_threshold_keeps_exactly_the_scores_at_or_above_it(sanitized: CpuMachine) -> None:
    edge = np.float32(stored_threshold(0.5, "logits"))
    values = [edge, np.nextafter(edge, np.float32(-9)), np.nextafter(edge, np.float32(9)), np.float32(-5)]
    maps = np.full((1, 1, 9, 16), -9, dtype=np.float32)
    maps[0, 0, 4, [1, 5, 9, 13]] = values
    heads = official_heads(maps)
    run = DecodeRun(sanitized, heads, OFFICIAL, [IDENTITY], 0.5)
    found = run.launch()
    assert found.count[0] == 2
    check_decode(run, heads, found)


@pytest.mark.parametrize("key", ["2x80x128x128", "1x3x37x53", "3x1x200x8"])
@pytest.mark.shared
def test_golden(plain: CpuMachine, shared: Path, key: str) -> None:
    """The official PyTorch decode of seeded heads; reference/README.md says how they were drawn."""
    batch, classes, height, width = (int(side) for side in key.split("x"))
    r = np.random.default_rng([1, batch, classes, height, width])
    heads = {
        "hm": r.normal(-4, 2, (batch, classes, height, width)).astype(np.float32),
        "wh": r.uniform(1, 40, (batch, 2, height, width)).astype(np.float32),
        "reg": r.uniform(0, 1, (batch, 2, height, width)).astype(np.float32),
    }
    size = {"rule": "fixed", "width": 4 * width, "height": 4 * height}
    spec = OFFICIAL.model_copy(
        update={"input": InputSpec.model_validate({"size": size, "resize": {"policy": "fix_res"}})}
    )
    placement = place(spec.input, 640, 480)
    run = DecodeRun(plain, heads, spec, [placement] * batch, 0.0)
    found = run.launch()
    check_decode(run, heads, found)
    wanted = np.load(shared / "reference" / "decode.seed1.npz")[f"image_{key}"]
    np.testing.assert_array_equal(found.label, wanted[..., 5].astype(np.int32))
    np.testing.assert_allclose(found.score, wanted[..., 4], rtol=1e-5)
    np.testing.assert_allclose(found.xyxy, wanted[..., :4], rtol=1e-4, atol=2e-3)
