"""Ranges of tensors over images: what is counted, and what must stay fp32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_centernet import tiny_model, tiny_spec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from centernet_trt.builder.calibration import fp16_ranges
from centernet_trt.builder.calibration.fp16_ranges import (
    SAMPLE,
    TensorRange,
    affordable,
    measure_ranges,
    nodes_beyond_fp16,
    underflow_notes,
)
from centernet_trt.builder.calibration.images import find_images
from centernet_trt.builder.calibration.statistics import Simulation
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.calib_data import FOLDER
from centernet_trt.errors import ModelError
from centernet_trt.runtime.presets import spec_from_mapping


def one_relu() -> onnx.ModelProto:
    """y = -x, (1, 3, 8, 8), so that every value of the input is counted as it is."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"], name="y")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 8, 8])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    refresh_shapes(model)
    return model


floats = st.floats(-2e5, 2e5, width=32)
BORDERS = [
    65519,
    -65519,
    65520,
    -65520,
    65504,
    0,
    -0.0,
    6.2e-5,
    6.1e-5,
    6e-5,
    -1e-8,
    1,
    2e5,
    -7e-5,
    1e-40,
    6.103515625e-5,
]


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, (1, 3, 8, 8), elements=floats))
@example(values=np.resize(np.array(BORDERS[:-5], np.float32), (1, 3, 8, 8)))
@example(values=np.resize(np.array(BORDERS, np.float32), (1, 3, 8, 8)))
@example(values=np.full((1, 3, 8, 8), 65519, np.float32))
def test_counts_what_rounding_to_fp16_shows(values: Any) -> None:
    counted = Simulation(fp16_ranges._with_counters(one_relu(), ["y"]), in_order=True).run(values)
    seen = fp16_ranges._seen(counted, "y")
    assert seen is not None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    assert seen.overflows == np.isinf(half).any()
    assert seen.largest == np.abs(values).max()
    sample = values.ravel()[::SAMPLE]
    assert seen.subnormal == ((np.abs(sample) < 2.0**-14) & (sample != 0)).sum()
    assert seen.looked_at == len(sample) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 17, 191])
def test_no_number_goes_unseen(bad: float, place: int) -> None:
    values = np.ones((1, 3, 8, 8), np.float32)
    values.flat[place] = bad
    counted = Simulation(fp16_ranges._with_counters(one_relu(), ["y"]), in_order=True).run(values)
    assert fp16_ranges._seen(counted, "y") is None


def test_every_tensor_is_measured_over_all_images() -> None:
    model = tiny_model()
    refresh_shapes(model)
    images = find_images(FOLDER)
    steps: list[tuple[int, int]] = []
    ranges = measure_ranges(model, tuple(images), tiny_spec().input, lambda *step: steps.append(step))
    assert set(ranges) == {"hm", "wh", "reg"}
    assert ranges["reg"].largest == 0.75
    # wh is 8 * mean + 1 of pixels 0..1.
    assert 5 < ranges["wh"].largest <= 9
    assert steps[-1] == (len(images), len(images))
    looked_at = 0
    for image in images:
        height, width = image.read().shape[:2]
        cells = ((height | 31) + 1) // 4 * (((width | 31) + 1) // 4)
        looked_at += -(-2 * cells // SAMPLE)
    assert ranges["hm"].looked_at == looked_at


def test_readers_and_makers_of_large_tensors_stay() -> None:
    model = tiny_model()
    model.graph.node.append(onnx.helper.make_node("Relu", ["hm"], ["after"], name="after"))
    small, large = TensorRange(100.0), TensorRange(50_000.0)
    kept = nodes_beyond_fp16(model, {"hm": large, "wh": small, "after": small})
    assert set(kept) == {"hm", "after"}
    assert "reaches 5e+04" in kept["after"]
    with pytest.raises(ModelError, match="head 'hm' reaches 7e"):
        nodes_beyond_fp16(model, {"hm": TensorRange(70_000.0)})


def test_a_network_that_is_nan_already_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    bias = next(t for t in model.graph.initializer if t.name == "wh.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan, 0], dtype=np.float32), "wh.bias"))
    refresh_shapes(model)
    spec = spec_from_mapping(tiny_spec().model_dump())
    with pytest.raises(ModelError, match=r"'wh' is NaN or infinite on astronaut\.jpg"):
        measure_ranges(model, tuple(find_images(FOLDER)), spec.input)


def test_images_within_the_work() -> None:
    """The tiny network: 6 channels of 3x4x4 weights on 128x128 cells."""
    each = 6 * 48 * 128 * 128
    images = find_images(FOLDER).images
    assert affordable(tiny_model(), images, None) == images
    assert affordable(tiny_model(), images, 1e12) == images
    assert affordable(tiny_model(), images, 3.5 * each) == images[:3]
    assert affordable(tiny_model(), images, 1) == images[:2]
    fixed = tiny_model()
    fixed.graph.input.append(onnx.helper.make_tensor_value_info("other", 1, [1]))
    assert affordable(fixed, images, 1) == images  # cannot be counted


def test_values_that_fade_are_noted() -> None:
    ranges = {"a": TensorRange(1.0, 60, 100), "b": TensorRange(1.0, 90, 100), "c": TensorRange(1.0, 50, 100)}
    (note,) = underflow_notes(ranges)
    assert "in 2 of 3 tensors" in note
    assert note.endswith("in b, 90%")
    assert underflow_notes({"c": ranges["c"], "none": TensorRange()}) == []


def test_tensors_of_small_values_only_stay_with_makers_and_readers() -> None:
    model = tiny_model()
    model.graph.node.append(onnx.helper.make_node("Relu", ["hm"], ["after"], name="after"))
    usual, small, zero = TensorRange(100.0), TensorRange(2e-5), TensorRange(0.0)
    kept = nodes_beyond_fp16(model, {"hm": small, "wh": usual, "reg": zero, "after": usual})
    assert set(kept) == {"hm", "after"}
    assert "reaches 2e-05" in kept["hm"]


@pytest.mark.parametrize(("largest", "stays"), [(100.0, False), (300.0, True), (5e-3, True), (0.1, False)])
def test_the_squares_that_a_norm_sums_count(largest: float, stays: bool) -> None:
    model = tiny_model()
    model.graph.node.append(onnx.helper.make_node("ReduceL2", ["hm"], ["norm"], name="norm", axes=[1]))
    kept = nodes_beyond_fp16(model, {"hm": TensorRange(50.0), "norm": TensorRange(largest)})
    assert set(kept) == ({"norm"} if stays else set())
