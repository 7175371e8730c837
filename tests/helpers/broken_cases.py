"""Graphs and files that cannot be built, each with the words that its error must have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.guess.spec import guess_spec
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.manifest import ShapeRange
from helpers import variants
from helpers.tiny_centernet import save_tiny_model, tiny_model, tiny_spec


def written(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.onnx").write_bytes(data)
        return folder / "model.onnx"

    return make


def changed(change: Callable[[onnx.ModelProto], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = tiny_model()
        change(model)
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"

    return make


def truncated(folder: Path) -> Path:
    path = save_tiny_model(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def weights_missing(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(tiny_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()
    return path


def batch_baked_in(model: onnx.ModelProto) -> None:
    """A reshape to one image in front of everything."""
    shape = numpy_helper.from_array(np.array([1, 3, 64, 96], dtype=np.int64), "shape")
    model.graph.initializer.append(shape)
    for node in model.graph.node:
        node.input[0] = "reshaped"
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["reshaped"], name="baked"), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 96), strict=True):
        dim.dim_value = value


def stray_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Convolution"


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "wh"
    model.graph.node[1].input[0] = "hm"


def wrong_weight_shape(model: onnx.ModelProto) -> None:
    bad = numpy_helper.from_array(np.zeros((2, 5, 4, 4), dtype=np.float32), "hm.weight")
    next(t for t in model.graph.initializer if t.name == "hm.weight").CopyFrom(bad)


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def three_dimensions(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[0]


def integer_image(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def two_images(model: onnx.ModelProto) -> None:
    other = helper.make_tensor_value_info("other", 1, ["n", 3, "h", "w"])
    model.graph.input.append(other)
    model.graph.node.append(helper.make_node("Add", ["image", "other"], ["sum"], name="sum"))
    model.graph.output.append(helper.make_tensor_value_info("sum", 1, ["n", 3, "h", "w"]))


def nan_weights(model: onnx.ModelProto) -> None:
    bad = numpy_helper.from_array(np.full(2, np.nan, dtype=np.float32), "wh.bias")
    next(t for t in model.graph.initializer if t.name == "wh.bias").CopyFrom(bad)


def nameless_heads(model: onnx.ModelProto) -> None:
    model.CopyFrom(variants.renamed({"hm": "1", "wh": "2", "reg": "3"}, "onnx_"))


PICTURE = cv2.imencode(".jpg", np.zeros((9, 9, 3), dtype=np.uint8))[1].tobytes()
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda folder: folder / "absent.onnx", "absent.onnx"),
    "a folder": (lambda folder: folder, "folder|directory"),
    "empty file": (written(b""), "empty"),
    "a picture": (written(PICTURE), "JPEG"),
    "a checkpoint": (written(b"PK\x03\x04" + bytes(200)), "zip archive"),
    "text": (written(b"hello, this is no model at all\n" * 9), "not an? (valid )?ONNX"),
    "truncated": (truncated, "truncated|damaged|not an? (valid )?ONNX"),
    "weights missing": (weights_missing, r"w\.bin"),
    "unknown operator": (changed(stray_operator), "Convolution"),
    "a cycle": (changed(cycle), "not a valid ONNX|sorted|cycle"),
    "weights of a wrong shape": (changed(wrong_weight_shape), "does not run on one image.*channels"),
    "no outputs": (changed(no_outputs), "output"),
    "opset 7": (changed(old_opset), "opset"),
    "three dimensions": (changed(three_dimensions), "(?i)4|rank|dimension|image|shape"),
    "integer image": (changed(integer_image), "(?i)uint8|float|type"),
    "two images": (changed(two_images), "other"),
    "batch baked in": (
        changed(batch_baked_in),
        "the batch of this graph is not dynamic|does not run on one image",
    ),
    "NaN weights": (changed(nan_weights), "'wh' is NaN or infinite"),
    "heads without names": (changed(nameless_heads), "does not say for certain"),
}


def error_of(name: str, folder: Path) -> CenterNetError | None:
    """What guessing and building a case raise, as the command line shows it; None when it is built."""
    path, side = BROKEN[name][0](folder), ShapeRange.of(32, 64, 128)
    options = BuildOptions(flavour="none", precision="fp16", height=side, width=side)
    try:
        guess_spec(load_model(path)).require_spec()
        build(path, tiny_spec(), folder / "bundle", options)
    except CenterNetError as error:
        return error
    return None
