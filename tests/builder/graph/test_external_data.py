"""Weights in files: the same graphs, bundles and errors as with weights in memory, and less memory."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, model, small_centernet
from helpers.tiny_centernet import save_tiny_model, tiny_spec
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.calibration.record import graph_hash
from centernet_trt.builder.graph import external_data, shapes
from centernet_trt.builder.graph.compare import compare_models
from centernet_trt.builder.graph.edit import as_array, initializers
from centernet_trt.builder.graph.external_data import external_weights
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.errors import ModelError


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every constant of 32 bytes and more in a file, whatever the model's size."""
    monkeypatch.setattr(external_data, "_LARGE", 1)
    monkeypatch.setattr(external_data, "_SMALLEST", 32)
    with external_weights():
        yield
    gc.collect()


def in_files(graph: ModelProto) -> list[TensorProto]:
    return [t for t in graph.graph.initializer if external_data_helper.uses_external_data(t)]


def same_constants(found: ModelProto, expected: ModelProto) -> None:
    one, other = initializers(found.graph), initializers(expected.graph)
    assert list(one) == list(other)
    for name, tensor in one.items():
        np.testing.assert_array_equal(as_array(tensor), as_array(other[name]))
        assert as_array(tensor).dtype == as_array(other[name]).dtype


def save(graph: ModelProto, path: Path, **options: Any) -> Path:
    onnx.save_model(graph, path, **options)
    return path


def external(path: Path) -> Path:
    graph = onnx.ModelProto()
    graph.CopyFrom(small_centernet())
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    return save(graph, path, **options)


def test_a_small_model_stays_in_memory(tmp_path: Path) -> None:
    with external_weights():
        loaded = load_model(save(small_centernet(), tmp_path / "m.onnx"))
    assert not in_files(loaded)
    assert external_data.data_folder(loaded) is None
    assert external_data.inline_weights(loaded) is loaded


@pytest.mark.parametrize("kind", ["whole", "external", "float_data", "half"])
def test_a_large_model_is_read_into_files(tmp_path: Path, outside: None, kind: str) -> None:
    source = small_centernet()
    if kind == "half":
        source = to_fp16(source).model
    if kind == "float_data":
        for tensor in source.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                values = as_array(tensor)
                tensor.ClearField("raw_data")
                tensor.float_data.extend(values.ravel().tolist())
    path = external(tmp_path / "m.onnx") if kind == "external" else save(source, tmp_path / "m.onnx")
    loaded = load_model(path)
    assert in_files(loaded)
    same_constants(loaded, source)
    assert loaded.ByteSize() < sum(as_array(t).nbytes for t in in_files(loaded))
    assert shapes.serialised_size(loaded) >= sum(as_array(t).nbytes for t in in_files(loaded))
    whole = external_data.inline_weights(loaded)
    assert not in_files(whole)
    same_constants(whole, source)
    assert graph_hash(loaded) == graph_hash(whole)
    with pytest.raises(ValueError, match="read-only"):
        as_array(in_files(loaded)[0])[...] = 0


@pytest.mark.parametrize(
    "chain", [fold_constants, fold_batch_norm, lambda m: to_fp16(fold_batch_norm(m)).model]
)
def test_passes_make_the_same_graph(tmp_path: Path, outside: None, chain: Any) -> None:
    loaded = load_model(save(small_centernet(), tmp_path / "m.onnx"))
    found, expected = chain(loaded), chain(external_data.inline_weights(loaded))
    assert in_files(found)
    # The copy in memory starts from the same graph; what is made new goes into files in either.
    whole = external_data.inline_weights(found)
    same_constants(whole, external_data.inline_weights(expected))
    assert whole.graph.node == expected.graph.node
    for error in compare_models(
        external_data.inline_weights(expected), found, shapes={"x": (2, 3, 16, 16)}
    ).values():
        assert error.max_abs == 0


def test_constants_of_nodes_go_out_too(tmp_path: Path, outside: None) -> None:
    value = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    nodes = [
        Node("Constant", [], ["c"], value=numpy_helper.from_array(value)),
        Node("Add", ["x", "c"], ["y"]),
    ]
    graph = model(nodes, ["y"], {"w": np.ones(8, np.float32)}, inputs={"x": [1, 3, 4, 4]})
    graph.graph.node.append(onnx.helper.make_node("Neg", ["w"], ["z"]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, [8]))
    made = constants_to_initializers(load_model(save(graph, tmp_path / "m.onnx")))
    assert {tensor.name for tensor in in_files(made)} == {"w", "c"}
    np.testing.assert_array_equal(as_array(initializers(made.graph)["c"]), value)


def test_an_old_opset_is_converted(tmp_path: Path, outside: None) -> None:
    nodes = [Node("Conv", ["x", "w"], ["a"]), Node("Upsample", ["a", "s"], ["y"], mode="nearest")]
    arrays = {"w": np.ones((4, 3, 1, 1), np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    graph = model(nodes, ["y"], arrays, inputs={"x": [1, 3, 4, 4]}, opset=9)
    loaded = load_model(save(graph, tmp_path / "m.onnx"))
    assert in_files(loaded)[0].name == "w"
    assert compare_models(graph, loaded)["y"].max_abs == 0


def test_saved_models_are_read_by_others(tmp_path: Path, outside: None) -> None:
    loaded = load_model(save(small_centernet(), tmp_path / "m.onnx"))
    with shapes.loadable(loaded) as source:
        assert isinstance(source, str)
        same_constants(onnx.load_model(source), small_centernet())
    assert not Path(source).exists()
    external_data.save_with_external_data(loaded, tmp_path / "out.onnx", "out.weights")
    same_constants(onnx.load_model(tmp_path / "out.onnx"), small_centernet())
    onnx.checker.check_model(tmp_path / "out.onnx")
    external_data.save_with_external_data(small_centernet(), tmp_path / "memory.onnx", "memory.weights")
    same_constants(onnx.load_model(tmp_path / "memory.onnx"), small_centernet())


def test_files_are_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "_LARGE", 1)
    monkeypatch.setattr(external_data, "_SMALLEST", 32)
    with external_weights():
        loaded = load_model(save(small_centernet(), tmp_path / "m.onnx"))
        folder = external_data.data_folder(loaded)
        with external_weights():  # an inner one changes nothing
            again = load_model(tmp_path / "m.onnx")
        same_constants(again, loaded)
    assert folder is not None
    assert not folder.exists()
    with pytest.raises(ModelError, match="which is missing"):
        as_array(in_files(loaded)[0])


def test_a_constant_of_the_wrong_size(tmp_path: Path, outside: None) -> None:
    graph = small_centernet()
    tensor = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = tensor.raw_data[:-4]
    with pytest.raises(
        ModelError, match=rf"constant {tensor.name!r} of shape .* expected \d+ bytes, got \d+"
    ):
        load_model(save(graph, tmp_path / "m.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("flavour", ["none", "rtx"])
def test_the_bundle_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, flavour: Any
) -> None:
    if flavour == "rtx":
        pytest.importorskip("tensorrt_rtx")
    source = save_tiny_model(tmp_path)
    options = BuildOptions(precision=precision, flavour=flavour)
    inside = build(source, tiny_spec(), tmp_path / "inside", options)
    monkeypatch.setattr(external_data, "_LARGE", 1)
    monkeypatch.setattr(external_data, "_SMALLEST", 32)
    outside = build(source, tiny_spec(), tmp_path / "outside", options)
    one, other = (onnx.load_model(bundle.model_path) for bundle in (inside, outside))
    assert not in_files(other)
    same_constants(one, other)
    assert one.graph.node == other.graph.node
    assert inside.manifest.comparison == outside.manifest.comparison
    assert [plan.bytes for plan in inside.manifest.plans] == [plan.bytes for plan in outside.manifest.plans]


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from centernet_trt.builder.graph.external_data import external_weights
with external_weights():
    print(*Path(tempfile.gettempdir()).glob("centernet-trt-weights-*"), flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_build_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(
        [*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout is not None
        alive = living.stdout.readline().strip()
        dead = subprocess.run([*command, "die"], capture_output=True, text=True, check=False).stdout.split()
        assert set(dead) > {alive}
        with external_weights():
            left = {str(path) for path in tmp_path.glob("centernet-trt-weights-*")}
            assert alive in left
            assert not left & (set(dead) - {alive})
        living.communicate("")
    with external_weights():
        assert len(list(tmp_path.glob("centernet-trt-weights-*"))) == 1


BUILD = """
import sys
from pathlib import Path
from helpers.tiny_centernet import tiny_spec
from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.prepare import peak_memory
from centernet_trt.runtime.manifest import ShapeRange
side, two = ShapeRange.of(32, 32, 32), ShapeRange.of(1, 1, 2)
folder = Path(sys.argv[1])
options = BuildOptions(
    precision=sys.argv[2], flavour="none", height=side, width=side, batch=two, calibration=folder / "pictures"
)
build(folder / "large.onnx", tiny_spec(), folder / sys.argv[2], options)
print(peak_memory())
"""


def large_model(folder: Path, channels: int = 24576) -> int:
    """Write a CenterNet with one convolution of 2.4 GB, all zeros in a sparse file; the size of its weights in bytes."""
    shapes = {"stem": [channels, 3, 4, 4], "body": [channels, channels, 1, 1]}
    shapes |= {head: [2, channels, 1, 1] for head in ("hm", "wh", "reg")}
    nodes = [
        Node("Conv", ["image", "stem.weight"], ["stem"], name="stem", strides=[4, 4]),
        Node("Conv", ["stem", "body.weight"], ["body"], name="body"),
        *(Node("Conv", ["body", f"{head}.weight"], [head], name=head) for head in ("hm", "wh", "reg")),
    ]
    tensors, size = [], 0
    for name, shape in shapes.items():
        length = 4 * int(np.prod(shape, dtype=np.int64))
        tensor = TensorProto(name=f"{name}.weight", dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "large.bin"), ("offset", str(size)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        size += length
    with (folder / "large.bin").open("wb") as file:
        file.truncate(size)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "large",
        [value("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [value(head, TensorProto.FLOAT, ["n", 2, None, None]) for head in ("hm", "wh", "reg")],
        tensors,
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (folder / "large.onnx").write_bytes(made.SerializeToString())
    return size


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_more_than_two_gigabytes(tmp_path: Path, precision: str) -> None:
    """Beyond what one protobuf message holds: built, and with at most three times the weights in memory."""
    size = large_model(tmp_path)
    assert size > 2**31
    (tmp_path / "pictures").mkdir()
    for number in range(4):  # small ones: a cell costs 604 million multiply-adds
        noise = np.random.default_rng(number).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), noise)
    command = [sys.executable, "-c", BUILD, str(tmp_path), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * size
    made = onnx.load_model(tmp_path / precision / "model.onnx", load_external_data=False)
    assert len(made.graph.node) == 5
    beside = tmp_path / precision / "model.weights"
    assert beside.exists() == (precision == "fp32")
