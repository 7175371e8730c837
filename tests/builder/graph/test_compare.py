import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, model, normal, small_centernet
from onnx import ModelProto, TensorProto

from centernet_trt.builder.graph import shapes
from centernet_trt.builder.graph.compare import (
    check_dynamic_batch,
    compare_models,
    head_error,
    random_feeds,
    run_model,
)
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.errors import BackendError, ModelError
from centernet_trt.runtime.host.onnxruntime import round_every_tensor


def scaled(factor: float) -> ModelProto:
    return model([Node("Mul", ["x", "k"], ["y"])], ["y"], {"k": np.array(factor, np.float32)})


def test_errors_are_measured() -> None:
    feeds = {"x": np.full((1, 3, 16, 16), -2, np.float32)}
    error = compare_models(scaled(2), scaled(2.5), feeds)["y"]
    assert error.max_abs == 1.0
    assert error.max_rel == 0.25
    assert error.magnitude == 4.0
    assert error.shape == (1, 3, 16, 16)
    assert compare_models(scaled(2), scaled(2), feeds)["y"].max_abs == 0


def test_what_is_not_finite_must_agree() -> None:
    inf, nan = np.inf, np.nan
    same = np.array([inf, -inf, nan, 1.0])
    assert head_error("y", same, same).max_abs == 0
    for other in (
        [-inf, -inf, nan, 1.0],
        [inf, -inf, 0.0, 1.0],
        [inf, -inf, nan, nan],
        [1.0, -inf, nan, 1.0],
    ):
        assert head_error("y", same, np.array(other)).max_abs == inf
    assert head_error("y", np.zeros(2), np.ones(2)).max_rel == inf


def test_shapes_and_names_must_agree() -> None:
    pooled = model([Node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], ["y"])
    with pytest.raises(ModelError, match=r"expected shape \(1, 3, 16, 16\) .* got \(1, 3, 15, 15\)"):
        compare_models(scaled(1), pooled, shapes={"x": (1, 3, 16, 16)})
    other = model([Node("Relu", ["x"], ["z"])], ["z"])
    with pytest.raises(ModelError, match=r"\['z'\] are not outputs of the reference, which has \['y'\]"):
        compare_models(scaled(1), other, shapes={"x": (1, 3, 16, 16)})
    with pytest.raises(ModelError, match="dynamic shape"):
        compare_models(scaled(1), scaled(1))
    with pytest.raises(ModelError, match=r"not given: \['x'\]"):
        run_model(scaled(1), {})


def test_random_feeds_are_seeded_and_fit_fp16() -> None:
    a, b = (
        random_feeds(scaled(1), {"x": (1, 3, 4, 4)}, seed=seed, value_range=(0, 255))["x"] for seed in (1, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, a.astype(np.float16))
    assert a.max() > 200
    assert (random_feeds(scaled(1), {"x": (1, 3, 4, 4)}, seed=2)["x"] != a).any()


def test_a_model_that_onnx_runtime_refuses() -> None:
    odd = model([Node("Odd", ["x"], ["y"], domain="mine")], ["y"], domains=["mine"])
    with pytest.raises(BackendError, match="ONNX Runtime refuses"):
        run_model(odd, {"x": normal(1, 3, 16, 16)})
    with pytest.raises(BackendError, match="cannot run"):
        run_model(scaled(1), {"x": normal(1, 3, 5, 5)})


def test_models_beyond_the_protobuf_limit_run_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source, feeds = small_centernet(), {"x": normal(1, 3, 16, 16)}
    expected = run_model(source, feeds)
    monkeypatch.setattr(shapes, "PROTOBUF_LIMIT", 1000)
    assert shapes.serialised_size(source) > 1000
    np.testing.assert_array_equal(run_model(source, feeds)["hm"], expected["hm"])
    shapes.check(source, full=True)


def test_size_estimate_is_close() -> None:
    source = small_centernet()
    assert source.ByteSize() * 0.9 <= shapes.serialised_size(source) <= source.ByteSize() + 10_000


def half_chain() -> ModelProto:
    constants = {"two": np.array([2], np.float16), "half": np.array([0.5], np.float16)}
    nodes = [Node("Mul", ["x", "two"], ["a"]), Node("Mul", ["a", "half"], ["y"])]
    return model(nodes, {"y": [2]}, constants, inputs={"x": [2]}, kind=TensorProto.FLOAT16)


def test_faithful_rounds_between_nodes_where_fast_does_not() -> None:
    feeds = {"x": np.array([60000, 3], np.float16)}
    np.testing.assert_array_equal(run_model(half_chain(), feeds, mode="faithful")["y"], [np.inf, 3])
    np.testing.assert_array_equal(run_model(half_chain(), feeds, mode="fast")["y"], [60000, 3])


def node_by_node(source: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run each node as a model of its own, with the same kernels: its results must be stored as typed."""
    noted = onnx.shape_inference.infer_shapes(source)
    infos = {v.name: v for v in (*noted.graph.input, *noted.graph.value_info, *noted.graph.output)}
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    values = dict(feeds)
    for node in source.graph.node:
        names = [name for name in dict.fromkeys(node.input) if name and name not in constants]
        lone = onnx.helper.make_graph(
            [node],
            "lone",
            [infos[name] for name in names],
            [infos[name] for name in node.output],
            [constants[name] for name in node.input if name in constants],
        )
        made = onnx.helper.make_model(lone, opset_imports=source.opset_import, ir_version=10)
        values.update(run_model(made, {name: values[name] for name in names}, threads=1))
    return values


def test_faithful_equals_running_node_by_node() -> None:
    half = to_fp16(fold_batch_norm(small_centernet())).model
    feeds = {"x": normal(1, 3, 16, 16).astype(np.float16)}
    faithful, fast = run_model(half, feeds), run_model(half, feeds, mode="fast")
    alone = node_by_node(half, feeds)
    for name in ("hm", "wh"):
        np.testing.assert_array_equal(faithful[name], alone[name])
        assert (fast[name] != alone[name]).any()


def test_rounding_leaves_fp32_models_alone() -> None:
    source = small_centernet()
    nodes = len(source.graph.node)
    round_every_tensor(source)
    assert len(source.graph.node) == nodes


def test_a_dynamic_batch_passes() -> None:
    check_dynamic_batch(small_centernet(), "x", (3, 16, 16))


def batch_model(*nodes: onnx.NodeProto, **constants: np.ndarray) -> ModelProto:
    return model(list(nodes), ["y"], constants)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            batch_model(Node("Reshape", ["x", "s"], ["y"], name="flat"), s=np.array([1, 3, 16, 16])),
            ["runs at batch size 1 but not at 2", "likely because of flat"],
        ),
        (
            batch_model(Node("Reshape", ["x", "s"], ["y"], name="mixed"), s=np.array([1, -1, 16, 16])),
            ["has shape (1, 6, 16, 16) for two images", "mixed"],
        ),
        (
            model(
                [
                    Node("Constant", [], ["s"], value=onnx.numpy_helper.from_array(np.array([1, 3, 16, 16]))),
                    Node("Reshape", ["x", "s"], ["y"]),
                ],
                ["y"],
            ),
            ["Reshape/y"],
        ),
        (
            batch_model(
                Node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
                Node("Sub", ["x", "m"], ["y"], name="mean"),
            ),
            ["of a batch of two differs by", "expected at most"],
        ),
    ],
)
def test_a_baked_batch_is_found_and_the_node_named(source: ModelProto, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        check_dynamic_batch(source, "x", (3, 16, 16))
    for word in words:
        assert word in caught.value.message
    assert "dynamic" in caught.value.hint
