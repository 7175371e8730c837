"""Ranges of tensors over images: what is counted, and what must stay fp32."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_centernet import tiny_model, tiny_spec

from centernet_trt.builder.calibration.images import images_of
from centernet_trt.builder.fp16_ranges import TensorRange, measure_ranges, nodes_beyond_fp16, range_of
from centernet_trt.builder.inference import refresh_shapes
from centernet_trt.calib_data import FOLDER
from centernet_trt.errors import ModelError
from centernet_trt.runtime.presets import spec_from_mapping


@given(values=hnp.arrays(np.float32, 30, elements=st.floats(-2e5, 2e5, width=32)))
def test_range_of_counts_what_rounding_to_fp16_shows(values: np.ndarray) -> None:  # type: ignore[type-arg]
    found = range_of(values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    assert found.overflowing == np.isinf(half).sum()
    assert found.largest == np.abs(values).max()
    assert found.subnormal == ((np.abs(values) < 2.0**-14) & (values != 0)).sum()
    assert found.values == 30


def test_every_tensor_is_measured_over_all_images() -> None:
    model = tiny_model()
    refresh_shapes(model)
    images = images_of(FOLDER)
    steps: list[tuple[int, int]] = []
    ranges = measure_ranges(model, tuple(images), tiny_spec().input, lambda *step: steps.append(step))
    assert set(ranges) == {"hm", "wh", "reg"}
    assert ranges["reg"].largest == 0.75
    # wh is 8 * mean + 1 of pixels 0..1.
    assert 5 < ranges["wh"].largest <= 9
    assert steps[-1] == (len(images), len(images))
    cells = 0
    for image in images:
        height, width = image.read().shape[:2]
        cells += ((height | 31) + 1) // 4 * (((width | 31) + 1) // 4)
    assert ranges["hm"].values == 2 * cells


def test_readers_and_makers_of_large_tensors_stay() -> None:
    model = tiny_model()
    model.graph.node.append(onnx.helper.make_node("Relu", ["hm"], ["after"], name="after"))
    small, large = TensorRange(100.0, 0, 0, 10), TensorRange(50_000.0, 0, 0, 10)
    kept = nodes_beyond_fp16(model, {"hm": large, "wh": small, "after": small})
    assert set(kept) == {"hm", "after"}
    assert "reaches 5e+04" in kept["after"]
    with pytest.raises(ModelError, match="head 'hm' reaches 7e"):
        nodes_beyond_fp16(model, {"hm": TensorRange(70_000.0, 3, 0, 10)})


def test_a_network_that_is_nan_already_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    bias = next(t for t in model.graph.initializer if t.name == "wh.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan, 0], dtype=np.float32), "wh.bias"))
    refresh_shapes(model)
    spec = spec_from_mapping(tiny_spec().model_dump())
    with pytest.raises(ModelError, match=r"'wh' is NaN or infinite on astronaut\.jpg"):
        measure_ranges(model, tuple(images_of(FOLDER)), spec.input)
