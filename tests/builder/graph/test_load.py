import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, bn, bn_constants, model, normal, op_types, small_centernet
from onnx import TensorProto, helper, numpy_helper

from centernet_trt.builder.graph.compare import random_feeds, run_model
from centernet_trt.builder.graph.edit import main_opset
from centernet_trt.builder.graph.load import FOREIGN_DOMAIN, load_model
from centernet_trt.errors import ModelError


def save(made: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_good_model_comes_back_named_and_equal(tmp_path: Path) -> None:
    source = small_centernet()
    loaded = load_model(save(source, tmp_path / "m.onnx"))
    names = [node.name for node in loaded.graph.node]
    assert len(set(names)) == len(names)
    assert names[:2] == ["Identity/x1", "stem"]
    assert "Conv/wh_raw" in names
    feeds = random_feeds(source, {"x": (2, 3, 16, 16)})
    for name, value in run_model(source, feeds).items():
        np.testing.assert_array_equal(run_model(loaded, feeds)[name], value)


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "there is no file")


def test_a_folder_lists_the_models_inside(tmp_path: Path) -> None:
    save(small_centernet(), tmp_path / "inside.onnx")
    refused(tmp_path, "is a folder", "inside.onnx")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(99), "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG"),
        (b"hello, this is a text\n", "text"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"ftrt" + bytes(60), "TensorRT engine"),
        (bytes(range(256)), "not an ONNX file"),
        (b"\x08\x08", "IR version or opset"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, word)


def test_a_pth_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    refused(path, "PyTorch", "torch.onnx.export")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_told(tmp_path: Path, share: float) -> None:
    whole = small_centernet().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "truncated")


def external(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save_model(small_centernet(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    loaded = load_model(external(tmp_path))
    np.testing.assert_array_equal(
        numpy_helper.to_array(next(t for t in loaded.graph.initializer if t.name == "w0")), normal(8, 3, 3, 3)
    )


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    refused(path, "w.bin", "is missing")


def test_truncated_external_data_is_told(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:50])
    refused(path, "w.bin", "truncated")


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    made = small_centernet()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../evil.bin")
    (tmp_path / "evil.bin").write_bytes(bytes(10_000))
    (tmp_path / "sub").mkdir()
    refused(save(made, tmp_path / "sub" / "m.onnx"), "external weights")


def test_no_outputs(tmp_path: Path) -> None:
    made = small_centernet()
    del made.graph.output[:]
    refused(save(made, tmp_path / "m.onnx"), "no outputs")


def test_no_inputs(tmp_path: Path) -> None:
    made = model([Node("Relu", ["c"], ["y"])], ["y"], {"c": normal(1, 1, 1, 1)}, inputs={})
    refused(save(made, tmp_path / "m.onnx"), "no inputs")


def test_outputs_that_depend_on_no_input(tmp_path: Path) -> None:
    made = model([Node("Relu", ["c"], ["y"])], ["y"], {"c": normal(1, 1, 1, 1)})
    refused(save(made, tmp_path / "m.onnx"), "expected outputs that depend on an input")


@pytest.mark.parametrize("opset", [8, 999])
def test_opsets_out_of_range(tmp_path: Path, opset: int) -> None:
    made = model([Node("Relu", ["x"], ["y"])], ["y"], valid=False, opset=opset)
    refused(save(made, tmp_path / "m.onnx"), "expected opset 9 to", f"got {opset} in")


def test_an_invalid_graph(tmp_path: Path) -> None:
    made = model([Node("Relu", ["nobody"], ["y"])], ["y"], valid=False)
    refused(save(made, tmp_path / "m.onnx"), "not a valid ONNX model", "nobody")


def test_old_graphs_are_raised_and_keep_their_outputs(tmp_path: Path) -> None:
    constants = {"w": normal(4, 3, 3, 3), **bn_constants("n", 4)}
    nodes = [
        Node("Conv", ["x", "w"], ["c"]),
        bn("c", "d", "n"),
        Node("Clip", ["d"], ["y"], min=-1.0, max=1.0),
    ]
    made = model(nodes, ["y"], constants, opset=9, ir=4)
    # As old exporters did: constants are inputs too, and a stray input that nothing uses.
    for name, value in constants.items():
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    made.graph.input.append(helper.make_tensor_value_info("num_batches_tracked", TensorProto.INT64, []))
    made.graph.initializer.append(numpy_helper.from_array(np.array(3), "num_batches_tracked"))
    loaded = load_model(save(made, tmp_path / "m.onnx"))
    assert main_opset(loaded) == 19
    assert [value.name for value in loaded.graph.input] == ["x"]
    assert "num_batches_tracked" not in {tensor.name for tensor in loaded.graph.initializer}
    feeds = {"x": normal(2, 3, 16, 16, scale=2)}
    np.testing.assert_allclose(run_model(loaded, feeds)["y"], run_model(made, feeds)["y"], rtol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 1.6])
@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizes_keep_their_pixels(
    tmp_path: Path, mode: str, scale: float, operator: str, opset: int
) -> None:
    constants = {"s": np.array([1, 1, scale, scale], np.float32)}
    made = model([Node(operator, ["x", "s"], ["y"], mode=mode)], ["y"], constants, opset=opset)
    loaded = load_model(save(made, tmp_path / "m.onnx"))
    assert op_types(loaded)[-1] == "Resize"
    feeds = {"x": normal(1, 3, 16, 16)}
    np.testing.assert_allclose(run_model(loaded, feeds)["y"], run_model(made, feeds)["y"], atol=1e-6)


def test_what_cannot_be_raised_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_version(made: onnx.ModelProto, target: int) -> onnx.ModelProto:
        if target == 13:
            made = onnx.ModelProto.FromString(made.SerializeToString())
            made.graph.output[0].name = made.graph.node[0].output[0] = "other"
            return made
        raise RuntimeError(f"no adapter to {target}")

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert_version)
    made = model([Node("Relu", ["x"], ["y"])], ["y"], opset=9, ir=4)
    refused(
        save(made, tmp_path / "m.onnx"),
        "expected opset 13 or newer, got 9 in",
        "to 19: no adapter to 19; to 17: no adapter to 17; to 13: the converter renames",
    )


def test_foreign_operators_pass_only_when_named(tmp_path: Path) -> None:
    nodes = [Node("Conv", ["x", "w"], ["c"]), Node("DCNv2", ["c"], ["d"]), Node("Relu", ["d"], ["y"])]
    made = model(nodes, ["y"], {"w": normal(4, 3, 3, 3)}, opset=11, valid=False)
    path = save(made, tmp_path / "m.onnx")
    refused(path, "DCNv2")
    loaded = load_model(path, foreign_ops=["DCNv2"])
    assert [node.domain for node in loaded.graph.node] == ["", FOREIGN_DOMAIN, ""]
    assert main_opset(loaded) == 19


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    made = model([Node("Twice", ["x"], ["y"], domain="mine")], ["y"], domains=["mine"], valid=False)
    made.functions.append(
        helper.make_function(
            "mine", "Twice", ["a"], ["b"], [Node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )
    loaded = load_model(save(made, tmp_path / "m.onnx"))
    assert op_types(loaded) == ["Add"]
    assert not loaded.functions
