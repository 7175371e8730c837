"""Equalised graphs compute the same to the last bit, and their channels fill their tensor's range."""

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from onnx import ModelProto

from centernet_trt.builder.calibration.statistics import with_outputs
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.int8.equalise import equalisable, equalise, replay

INPUT = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)


def uneven(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights whose output channels differ by factors up to 64."""
    made = graphs.normal(*shape, seed=seed)
    return (made * np.exp2(np.arange(shape[0]) % 7).reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


def network() -> ModelProto:
    """conv, ReLU, depthwise, hard-swish, 1x1, squeeze-excite gate, 1x1, deconv, concat: every way up a graph."""
    constants = {
        "w0": uneven(8, 3, 3, 3),
        "b0": graphs.normal(8),
        "w1": uneven(8, 1, 3, 3, seed=1),
        "b1": graphs.normal(8, seed=2),
        "three": np.array([3], np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "sixth": np.array([1 / 6], np.float32),
        "w2": uneven(6, 8, 1, 1, seed=3),
        "w3": graphs.normal(6, 6, 1, 1, seed=4),
        "w4": graphs.normal(4, 6, 1, 1, seed=5),
        "w5": uneven(4, 4, 2, 2, seed=6),
        "w6": uneven(6, 3, 4, 4, seed=7),
        "w7": graphs.normal(2, 10, 1, 1, seed=8),
    }
    node = graphs.Node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4, group=8),
        node("Mul", ["c1", "sixth"], ["h0"]),
        node("Add", ["c1", "three"], ["h1"]),
        node("Clip", ["h1", "zero", "six"], ["h2"]),
        node("Mul", ["h0", "h2"], ["hs"]),
        node("Conv", ["hs", "w2"], ["c2"]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["pool"]),
        node("Conv", ["pool", "w3"], ["g0"]),
        node("Sigmoid", ["g0"], ["gate"]),
        node("Mul", ["r2", "gate"], ["se"]),
        node("Conv", ["se", "w4"], ["c4"]),
        node("ConvTranspose", ["c4", "w5"], ["d0"], strides=[2, 2]),
        node("ConvTranspose", ["se", "w6"], ["d1"], strides=[2, 2], pads=[1] * 4, group=2),
        node("Concat", ["d0", "d1"], ["cat"], axis=1),
        node("LeakyRelu", ["cat"], ["l0"], alpha=0.1),
        node("Conv", ["l0", "w7"], ["out"]),
    ]
    model = graphs.model(nodes, ["out"], constants)
    refresh_shapes(model)
    return model


def ranges(model: ModelProto, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    found = run_model(with_outputs(model, names), {"x": INPUT}, mode="fast")
    return {name: np.abs(value).max(axis=(0, 2, 3)).astype(np.float64) for name, value in found.items()}


def test_tensors_that_only_convolutions_read_are_found() -> None:
    # `se` has a ConvTranspose among its readers and `r2` the pool: neither may change alone. `pool` hangs on r2.
    assert equalisable(network()) == ("r0", "hs", "l0")


def test_the_output_stays_to_the_last_bit() -> None:
    model = network()
    names = equalisable(model)
    made, exponents = equalise(model, ranges(model, names))
    assert set(exponents) == set(names)
    assert all(any(value) for value in exponents.values())
    for mode in ("fast", "faithful"):
        before = run_model(model, {"x": INPUT}, mode=mode)["out"]
        np.testing.assert_array_equal(run_model(made, {"x": INPUT}, mode=mode)["out"], before)


def test_channels_fill_the_range_in_front_of_a_depthwise_convolution() -> None:
    model = network()
    before = ranges(model, ("r0",))["r0"]
    made, exponents = equalise(model, {"r0": before})
    after = ranges(made, ("r0",))["r0"]
    assert before.min() < 0.1 * before.max()
    assert after.max() == before.max()
    assert after.min() > 0.5 * after.max()
    np.testing.assert_allclose(after, before * np.exp2(exponents["r0"]), rtol=1e-6)


def test_dense_convolutions_share_the_loss_between_values_and_weights() -> None:
    model = network()
    before = ranges(model, ("hs",))["hs"]
    after = ranges(equalise(model, {"hs": before})[0], ("hs",))["hs"]
    assert np.ptp(np.log2(after)) < np.ptp(np.log2(before))


def test_a_gate_takes_a_multiplication_of_its_own() -> None:
    nodes = [
        graphs.Node("Relu", ["x"], ["r"]),
        graphs.Node("GlobalAveragePool", ["r"], ["p"]),
        graphs.Node("Sigmoid", ["p"], ["s"]),
        graphs.Node("Mul", ["r", "s"], ["m"]),
        graphs.Node("Conv", ["m", "w"], ["out"], group=3, pads=[1] * 4),
    ]
    model = graphs.model(nodes, ["out"], {"w": graphs.normal(3, 1, 3, 3)})
    refresh_shapes(model)
    assert equalisable(model) == ("m",)
    made, exponents = equalise(model, {"m": np.array([1.0, 0.25, 0.125])})
    assert exponents == {"m": (0, 2, 3)}
    assert graphs.op_types(made).count("Mul") == 2
    np.testing.assert_array_equal(run_model(made, {"x": INPUT})["out"], run_model(model, {"x": INPUT})["out"])


def test_a_replay_gives_the_same_graph() -> None:
    model = network()
    made, exponents = equalise(model, ranges(model, equalisable(model)))
    assert replay(model, exponents) == made


@pytest.mark.parametrize("values", [np.zeros(8), np.full(8, 3.0)])
def test_nothing_to_equalise_changes_nothing(values: np.ndarray) -> None:
    model = network()
    made, exponents = equalise(model, {"r0": values})
    assert exponents == {}
    assert made.graph.node == model.graph.node
