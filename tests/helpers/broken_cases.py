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


def in_front(*nodes: onnx.NodeProto, opset: int = 17, **constants: Any) -> Callable[[Path], Path]:
    """Nodes between the image and the network, which make `y` of `image`."""

    def change(model: onnx.ModelProto) -> None:
        heads = list(model.graph.node)
        for node in heads:
            node.input[0] = "y"
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *heads])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )
        model.opset_import[0].version = opset
        for domain in {node.domain for node in nodes} - {""}:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return changed(change)


def image_type(kind: int) -> Callable[[Path], Path]:
    def change(model: onnx.ModelProto) -> None:
        in_front_of_all = helper.make_node("Cast", ["image"], ["y"], to=1)
        heads = list(model.graph.node)
        for node in heads:
            node.input[0] = "y"
        del model.graph.node[:]
        model.graph.node.extend([in_front_of_all, *heads])
        model.graph.input[0].type.tensor_type.elem_type = kind

    return changed(change)


def weights_of(kind: int) -> Callable[[Path], Path]:
    """The network in another type, between casts."""

    def change(model: onnx.ModelProto) -> None:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
        heads = list(model.graph.node)
        casts = []
        for node in heads:
            node.input[0] = "y"
            casts.append(helper.make_node("Cast", [f"{node.output[0]}_raw"], [node.output[0]], to=1))
            node.output[0] = f"{node.output[0]}_raw"
        del model.graph.node[:]
        model.graph.node.extend([helper.make_node("Cast", ["image"], ["y"], to=kind), *heads, *casts])

    return changed(change)


def fused_heads(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.op_type, node.domain = "FusedConv", "com.microsoft"
        node.attribute.append(helper.make_attribute("activation", "Relu"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def blocked_layout(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.domain = "com.microsoft.nchwc"
    model.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))


def batch_statistics() -> Callable[[Path], Path]:
    """A batch norm in training mode as exporters spell it out."""
    axes = np.array([0, 2, 3])
    return in_front(
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], name="statistics"),
        helper.make_node("Sub", ["image", "mean"], ["y"]),
        axes=axes,
        opset=19,
    )


def norm(*, training: bool, opset: int) -> Callable[[Path], Path]:
    extra = [] if not training else ["m", "v"] if opset > 13 else ["m", "v", "sm", "sv"]
    attributes = {"training_mode": 1} if training and opset > 13 else {}
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    node = helper.make_node(
        "BatchNormalization", ["image", "s", "b", "mu", "var"], ["y", *extra], name="norm", **attributes
    )
    return in_front(node, opset=opset, s=one, b=zero, mu=zero, var=one)


def condition_on_the_image() -> Callable[[Path], Path]:
    parts = {
        f"{what}_branch": helper.make_graph(
            [helper.make_node("Relu", ["image"], [what])],
            what,
            [],
            [helper.make_tensor_value_info(what, 1, None)],
        )
        for what in ("then", "else")
    }
    return in_front(
        helper.make_node("ReduceMax", ["image"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["condition"]),
        helper.make_node("If", ["condition"], ["y"], name="branch", **parts),
        limit=np.float32(0.5),
    )


def other_stride(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.attribute[0].ints[:] = [8, 8]


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
    "an image": (written(PICTURE), "JPEG"),
    "a checkpoint": (written(b"PK\x03\x04" + bytes(200)), "zip archive"),
    "text": (written(b"hello, this is no model at all\n" * 9), "not an? (valid )?ONNX"),
    "truncated": (truncated, "truncated|damaged|not an? (valid )?ONNX"),
    "weights missing": (weights_missing, r"w\.bin"),
    "unknown operator": (
        changed(stray_operator),
        "operators that ONNX does not define: .* 'hm' .Convolution",
    ),
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
    "training mode": (norm(training=True, opset=17), "exported in training mode: 'norm' .BatchNorm"),
    "training mode, old opset": (
        norm(training=True, opset=11),
        "exported in training mode: 'norm' .BatchNorm",
    ),
    "dropout in training mode": (
        in_front(
            helper.make_node("Dropout", ["image", "ratio", "train"], ["y"], name="drop"),
            ratio=np.float32(0.5),
            train=np.array(True),
        ),
        "exported in training mode: 'drop' .Dropout",
    ),
    "random numbers": (
        in_front(
            helper.make_node("RandomNormalLike", ["image"], ["noise"], name="noise"),
            helper.make_node("Add", ["image", "noise"], ["y"]),
        ),
        "exported in training mode: 'noise' .RandomNormalLike",
    ),
    "batch statistics": (batch_statistics(), "differs by .*: statistics reduce over the batch"),
    "optimised by ONNX Runtime": (changed(fused_heads), "operators of ONNX Runtime alone.*FusedConv.*'wh'"),
    "blocked layout of ONNX Runtime": (
        changed(blocked_layout),
        "operators of ONNX Runtime alone.*com.microsoft.nchwc.Conv",
    ),
    "operator of a newer opset": (
        in_front(
            helper.make_node("LayerNormalization", ["image", "scale"], ["y"], name="norm"),
            scale=np.ones(96, np.float32),
            opset=13,
        ),
        "'norm' .LayerNormalization. is an operator of opset 17, but the graph imports opset 13",
    ),
    "a TensorRT plugin": (
        in_front(helper.make_node("InstanceNormalization_TRT", ["image"], ["y"], name="norm")),
        "TensorRT plugins .* 'norm' .InstanceNormalization_TRT",
    ),
    "a generic plugin": (
        in_front(helper.make_node("Plugin", ["image"], ["y"], name="act", domain="trt")),
        "TensorRT plugins .* 'act' .trt.Plugin",
    ),
    "an operator of PyTorch": (
        in_front(helper.make_node("ATen", ["image"], ["y"], name="a", domain="org.pytorch.aten")),
        "operators of PyTorch .* 'a' .org.pytorch.aten.ATen",
    ),
    "an operator of mmcv": (
        in_front(helper.make_node("MMCVRoIAlign", ["image"], ["y"], name="roi", domain="mmcv")),
        "operators of mmcv .* 'roi' .mmcv.MMCVRoIAlign",
    ),
    "an operator of a vendor": (
        in_front(helper.make_node("Swish", ["image"], ["y"], name="act", domain="acme.ops")),
        "operators of the domain acme.ops that ONNX does not define.* 'act' .acme.ops.Swish",
    ),
    "float64 image": (image_type(onnx.TensorProto.DOUBLE), "expected float, got DOUBLE"),
    "bfloat16 image": (image_type(onnx.TensorProto.BFLOAT16), "expected float, got BFLOAT16"),
    "int64 image": (image_type(onnx.TensorProto.INT64), "expected float, got INT64"),
    "float64 weights": (
        weights_of(onnx.TensorProto.DOUBLE),
        "expected weights of float32 or float16, got DOUBLE .'hm.weight'",
    ),
    "types that do not agree": (
        in_front(
            helper.make_node("Cast", ["image"], ["half"], to=10),
            helper.make_node("Add", ["half", "image"], ["y"], name="add"),
        ),
        "inconsistent type",
    ),
    "a condition on the image": (
        condition_on_the_image(),
        "control flow that depends on its input: 'branch' .If",
    ),
    "another stride": (changed(other_stride), "spec's stride 4, got 8x8"),
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
