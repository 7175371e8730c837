"""PyTorch's decode and pre-processing that the kernels are timed beside: the same answers as the host, on any device."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kernel_steps import official_spec, random_heads
from torch_baselines import (
    EAGER,
    decode_calls,
    preprocess_calls,
    sampling_grid,
    torch_decode,
)

from centernet_trt.errors import BackendError
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.preprocess import preprocess

SPEC = official_spec(3, 96, 64)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("torch", reason="PyTorch is not installed")

    def compile_nothing(function: Any) -> Any:
        raise RuntimeError("no compiler in this test")

    # Compiling takes a minute, and would be the same function.
    monkeypatch.setattr(found, "compile", lambda function: lambda *arguments: compile_nothing(function))
    return found


def decoding() -> Any:
    heads = {name: head.astype(np.float32) for name, head in random_heads(2, 3, 16, 24, seed=3).items()}
    heads["hm"] = np.random.default_rng(5).normal(-4, 2, heads["hm"].shape).astype(np.float32)  # without ties
    placements = [place(SPEC.input, 120, 61), place(SPEC.input, 120, 61)]
    return SimpleNamespace(
        heads=heads, placements=placements, k=20, wanted=lambda: decode(heads, SPEC, placements, top_k=20)
    )


def preparing() -> Any:
    images = np.random.default_rng(4).integers(0, 256, (2, 61, 120, 3), dtype=np.uint8)
    placements = [place(SPEC.input, 120, 61)] * 2
    mean, std = (np.array(values)[:, None, None] for values in (SPEC.input.mean, SPEC.input.std))
    return SimpleNamespace(
        images=images,
        placements=placements,
        spec=SPEC,
        wanted=lambda: preprocess(list(images), placements, SPEC.input, np.dtype(np.float16)),
        grey_levels=lambda tensor: (tensor.astype(np.float64) * std + mean) / SPEC.input.scale,
    )


def test_sampling_positions_are_those_of_the_placement() -> None:
    placement = place(SPEC.input, 120, 61)
    grid = sampling_grid(placement)
    assert grid.shape == (64, 96, 2)
    # align_corners: -1 and 1 are the centres of the first and last pixel.
    x, y = (grid[10, 20] + 1) / 2 * np.array([119, 60])
    np.testing.assert_allclose(
        [x * placement.scale_x + placement.shift_x, y * placement.scale_y + placement.shift_y],
        [20, 10],
        atol=1e-4,
    )


def test_decode(torch: Any) -> None:
    step = decoding()
    calls, notes = decode_calls(torch, step, "cpu")
    assert list(calls) == [EAGER]
    assert "no compiler in this test" in notes[0]
    rows = calls[EAGER]().numpy()
    for found, wanted in zip(rows, step.wanted(), strict=True):
        np.testing.assert_allclose(found[:, :4], wanted.xyxy, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(found[:, 4], wanted.score, rtol=1e-5)
        np.testing.assert_array_equal(found[:, 5], wanted.label)


def test_preprocess(torch: Any) -> None:
    step = preparing()
    calls, _ = preprocess_calls(torch, step, "cpu")
    assert calls[EAGER]().shape == (2, 3, 64, 96)
    step.images = step.images[::-1].copy()
    with pytest.raises(BackendError, match="grey levels from the host"):
        preprocess_calls(torch, step, "cpu")


def test_another_answer_is_not_timed(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(torch: Any, heads: Any, inverse: Any, k: int) -> Any:
        return torch_decode(torch, {**heads, "hm": heads["hm"] - 1}, inverse, k)

    monkeypatch.setattr("torch_baselines.torch_decode", wrong)
    with pytest.raises(BackendError, match="away from the host"):
        decode_calls(torch, decoding(), "cpu")
