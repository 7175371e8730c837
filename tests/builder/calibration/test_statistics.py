"""The two passes: what they find, that it does not depend on batches or order, and what they refuse."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from helpers.tiny_centernet import tiny_spec
from onnx import ModelProto

from centernet_trt.builder.calibration.images import CalibrationImages, images_from
from centernet_trt.builder.calibration.statistics import (
    Simulation,
    batches,
    collect_histograms,
    collect_statistics,
    with_outputs,
)
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.errors import CalibrationError, ModelError
from centernet_trt.runtime.spec import FixedSize, Stretch

SPEC = tiny_spec().input
TENSORS = ("x", "r0", "r1", "n2", "v")


def network() -> ModelProto:
    model = fold_batch_norm(graphs.small_centernet())
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], ("h", "w"), strict=True):
        dim.dim_param = name
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim[2:]:
            dim.ClearField("dim_value")
    refresh_shapes(model)
    return model


def pictures(count: int = 9, seed: int = 0) -> CalibrationImages:
    rng = np.random.default_rng(seed)
    return images_from(
        [rng.integers(0, 256, (20 + 30 * (row % 2), 40, 3), dtype=np.uint8) for row in range(count)]
    )


def scan(images: CalibrationImages, batch: int) -> dict[str, tuple[bytes, bytes, bytes]]:
    model = network()
    found = collect_statistics(model, SPEC, images.images, TENSORS, batch=batch)
    amax = {name: float(one.amax.max()) for name, one in found.items()}
    histograms = collect_histograms(model, SPEC, images.images, amax, batch=batch)
    return {
        name: (found[name].amax.tobytes(), found[name].mean.tobytes(), histograms[name].counts.tobytes())
        for name in TENSORS
    }


def test_the_result_does_not_depend_on_batch_or_order() -> None:
    images = pictures()
    expected = scan(images, 1)
    for batch in (4, 7):
        assert scan(images, batch) == expected
    shuffled = images.subset(np.random.default_rng(5).permutation(len(images)).tolist())
    assert scan(shuffled, 1) == expected
    assert scan(shuffled, 4) == expected


def test_another_image_changes_the_result() -> None:
    images = pictures()
    assert scan(images.subset(range(8)), 1) != scan(images, 1)


def test_statistics_are_those_of_the_tensors() -> None:
    model, images = network(), pictures(5)
    tensors = ["r0", "v"]
    found = collect_statistics(model, SPEC, images.images, tensors)
    values: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for batch in batches(images.images, SPEC):
        for name, array in run_model(with_outputs(model, tensors), {"x": batch.tensor}, mode="fast").items():
            values[name].append(array[0])
    for name, one in found.items():
        largest = np.max([np.abs(v).max(axis=(1, 2)) for v in values[name]], axis=0)
        np.testing.assert_allclose(one.amax, largest, rtol=1e-5)
        np.testing.assert_allclose(
            one.mean, np.mean([v.mean(axis=(1, 2)) for v in values[name]], axis=0), rtol=1e-4, atol=1e-6
        )


def test_histograms_count_every_value_of_the_input() -> None:
    images = pictures(4)
    (histogram,) = collect_histograms(network(), SPEC, images.images, {"x": 1.0}).values()
    pixels = np.concatenate([batch.tensor.ravel() for batch in batches(images.images, SPEC)])
    expected, _ = np.histogram(np.abs(pixels.astype(np.float64)), bins=2048, range=(0, 1))
    assert histogram.counts.sum() == pixels.size
    # A value on an edge may fall to either side: fp32 and float64 differ there.
    assert np.abs(histogram.counts.cumsum() - expected.cumsum()).max() <= 0.001 * pixels.size


@pytest.mark.parametrize(("kind", "operator"), [("NaN", "Log"), ("infinite", "Reciprocal")])
def test_what_is_not_finite_is_named_with_its_image(kind: str, operator: str) -> None:
    """The third image has one black pixel; (0 - 0.5 / 255) has no logarithm, and 0 no reciprocal."""
    nodes = [
        graphs.Node("Sub", ["x", "shift"], ["shifted"]),
        graphs.Node(operator, ["shifted"], ["bad"]),
        graphs.Node("Relu", ["bad"], ["out"]),
    ]
    shift = np.array(0.5 / 255 if kind == "NaN" else 0, np.float32)
    model = graphs.model(nodes, ["out"], {"shift": shift}, inputs={"x": ["n", 3, "h", "w"]})
    refresh_shapes(model)
    rng = np.random.default_rng(0)
    # Stretched, for keep_res would add black pixels of its own.
    spec = tiny_spec().input.model_copy(update={"size": FixedSize(width=64, height=64), "resize": Stretch()})
    arrays = [rng.integers(1, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    arrays[2][5, 5] = 0
    with pytest.raises(CalibrationError, match=f"tensor 'bad' is {kind} in 3 of 12288 values on image 2"):
        collect_statistics(model, spec, images_from(arrays).images, ["bad"], batch=3)


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="computes 'r9'"):
        collect_statistics(network(), SPEC, pictures(4).images, ["r9"])


def test_quantisation_is_simulated_as_onnx_defines_it() -> None:
    """ONNX Runtime's own integer kernels would round the sum of products; a plain Q/DQ graph must not."""
    weight = graphs.normal(4, 3, 3, 3)
    scale = np.array(0.01, np.float32)
    nodes = [
        graphs.Node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        graphs.Node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        graphs.Node("Conv", ["d", "w"], ["c"], pads=[1] * 4),
        graphs.Node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        graphs.Node("DequantizeLinear", ["cq", "s", "z"], ["out"]),
    ]
    model = graphs.model(nodes, ["out"], {"s": scale, "z": np.array(0, np.int8), "w": weight})
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)
    found = Simulation(model).run(x)["out"]
    step = np.clip(np.rint(x / scale), -128, 127) * scale
    plain = graphs.model([graphs.Node("Conv", ["x", "w"], ["c"], pads=[1] * 4)], ["c"], {"w": weight})
    conv = run_model(plain, {"x": step.astype(np.float32)})["c"]
    expected = np.clip(np.rint(conv / scale), -128, 127) * scale
    assert np.mean(np.abs(found - expected) > 1e-6) < 0.002  # ties may fall either way


@pytest.mark.slow
@pytest.mark.shared
def test_memory_does_not_grow_with_the_number_of_images(shared: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from centernet_trt.builder.calibration.images import find_images
from centernet_trt.builder.prepare import Silence
from centernet_trt.builder.int8.quantise import Int8Options, calibrate
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants
from centernet_trt.builder.graph.io import keep_heads
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.runtime.presets import read_spec
assets, count = Path(sys.argv[1]), int(sys.argv[2])
spec = read_spec("ttf-ltrb")
model = keep_heads(load_model(assets / "mb3_centernet_coco/mb3_centernet.onnx"), spec.heads.tensors)
model = fold_batch_norm(fold_constants(constants_to_initializers(model)))
refresh_shapes(model)
images = find_images(assets / "coco128_train2017/images").subset(range(count))
calibrate(model, spec.input, images, Int8Options(calibration=images), Silence())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peak = {}
    for count in (8, 128):
        command = [sys.executable, "-c", code, str(shared / "assets"), str(count)]
        peak[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak[128] <= 1.3 * peak[8], peak
