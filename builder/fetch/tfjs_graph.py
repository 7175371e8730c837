"""Convert the nodes of a TensorFlow.js graph to ONNX: NHWC becomes NCHW, SAME padding becomes pads."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from centernet_trt._version import __version__
from centernet_trt.builder.graph.edit import IR_VERSION, OPSET
from centernet_trt.builder.graph.shapes import check
from centernet_trt.errors import ModelError

__all__ = ["TfjsConverter"]

Array = NDArray[Any]

_ACTIVATIONS = ("Relu", "Relu6")


@dataclass(frozen=True)
class _Value:
    """A tensor of the ONNX graph; in TensorFlow (batch, height, width, channels)."""

    name: str
    channels: int
    height: int
    width: int


@dataclass
class TfjsConverter:
    """Converts nodes on demand, each once.

    Attributes:
        nodes: the graph's nodes by name.
        weights: its constants by name.
        input_name: of the image input.
        output_names: reserved for the outputs; nodes of these names are renamed.
        made: converted values by node name.
        onnx_nodes: converted nodes, in order.
        constants: initialisers of the ONNX graph.
        input: the image, once its placeholder was converted.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Array]
    input_name: str
    output_names: frozenset[str] = frozenset()
    made: dict[str, _Value] = field(default_factory=dict)
    onnx_nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    input: _Value | None = None

    def value(self, name: str) -> _Value:
        """Convert a node and its ancestors, without recursion, since graphs are deep."""
        queue, expanded = [name], set[str]()
        while queue:
            top = queue[-1]
            waiting = [i for i in self._inputs(top) if i not in self.made and i not in self.weights]
            if top in self.made or not waiting:
                queue.pop()
                if top not in self.made:
                    self.made[top] = self._convert(self.nodes[top])
            elif expanded.intersection(waiting):
                raise ModelError(f"the graph has a cycle through {top!r}", "get the file again")
            else:
                expanded.add(top)
                queue.extend(waiting)
        return self.made[name]

    def model(self, outputs: Mapping[str, _Value], name: str) -> ModelProto:
        """Assemble the ONNX model from the converted nodes."""
        if self.input is None:
            raise ModelError("the outputs do not depend on an input", "give nodes that depend on the image")
        for output, made in outputs.items():
            self.onnx_nodes.append(helper.make_node("Identity", [made.name], [output], f"output/{output}"))
        graph = helper.make_graph(
            self.onnx_nodes,
            name,
            [_declared(self.input_name, self.input)],
            [_declared(output, made) for output, made in outputs.items()],
            [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in self.constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="centernet-trt",
            producer_version=__version__,
        )
        check(model, full=True)
        return model

    def _inputs(self, name: str) -> list[str]:
        if name not in self.nodes:
            raise ModelError(
                f"the graph refers to a node {name!r} that it does not have", "get the file again"
            )
        # "^name" is a control dependency, "name:0" the first output.
        named = (i for i in self.nodes[name].get("input", []) if not i.startswith("^"))
        return [i.removesuffix(":0") for i in named]

    def _convert(self, node: Mapping[str, Any]) -> _Value:
        kind, name = node["op"], node["name"]
        inputs = self._inputs(name)
        if kind == "Placeholder":
            return self._placeholder(node)
        if kind in ("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"):
            return self._convolution(node, inputs)
        if kind in ("Add", "AddV2", "Mul", "Sub", "RealDiv"):
            return self._arithmetic(kind, name, inputs)
        if kind == "ConcatV2":
            return self._concat(name, inputs)
        if kind in ("Identity", "Relu", "Relu6", "Sigmoid", "Mean", "ResizeBilinear"):
            x = self.made[inputs[0]]
            if kind == "Identity":
                return x
            if kind == "Mean":
                return self._mean(node, x, inputs)
            if kind == "ResizeBilinear":
                return self._resize(node, x, inputs)
            return self._activation(kind, name, x)
        raise ModelError(
            f"node {name!r} is a {kind}, which cannot be converted",
            "give outputs before it; decoding and suppression belong to the runtime",
        )

    def _add(self, kind: str, name: str, inputs: Sequence[str], like: _Value, **attributes: Any) -> _Value:
        tensor = self._free(name)
        self.onnx_nodes.append(helper.make_node(kind, list(inputs), [tensor], name, **attributes))
        return _Value(tensor, like.channels, like.height, like.width)

    def _constant(self, name: str, value: Array) -> str:
        name = self._free(name)
        self.constants[name] = value
        return name

    def _free(self, name: str) -> str:
        """A tensor name that does not collide with the input and the outputs."""
        return f"{name}/inner" if name == self.input_name or name in self.output_names else name

    def _weight(self, name: str, rank: int | None = None) -> Array:
        value = self.weights.get(name)
        if value is None or (rank is not None and value.ndim != rank):
            found = "no weight" if value is None else f"shape {list(value.shape)}"
            raise ModelError(
                f"{name!r}: expected a weight of rank {rank or 'any'}, got {found}", "get the files again"
            )
        return value

    def _placeholder(self, node: Mapping[str, Any]) -> _Value:
        dims = node.get("attr", {}).get("shape", {}).get("shape", {}).get("dim", [])
        sizes = [int(dim.get("size", -1)) for dim in dims]
        if len(sizes) != 4 or min(sizes[1:]) < 1:
            raise ModelError(
                f"input {node['name']!r}: expected the shape (batch, height, width, channels), all but the batch "
                f"fixed, got {sizes}",
                "convert the model with a fixed input size",
            )
        if self.input is not None:
            raise ModelError("expected one input, got several", "give a graph with one image input")
        self.input = _Value(self.input_name, sizes[3], sizes[1], sizes[2])
        return self.input

    def _convolution(self, node: Mapping[str, Any], inputs: list[str]) -> _Value:
        name, attr = node["name"], node.get("attr", {})
        x, weight = self.made[inputs[0]], self._weight(inputs[1], 4)
        if _text(attr, "data_format", "NHWC") != "NHWC":
            raise ModelError(f"{name!r} is not in NHWC", "convert the model with the default layout")
        strides, dilations = _spatial(attr, "strides"), _spatial(attr, "dilations")
        kernel = weight.shape[:2]
        depthwise = "Depthwise" in node["op"]
        if depthwise:
            # (kh, kw, C, multiplier) -> (C * multiplier, 1, kh, kw)
            flat = weight.transpose(2, 3, 0, 1).reshape(-1, 1, *kernel)
        else:
            flat = weight.transpose(3, 2, 0, 1)
        pads, height, width = _padding(name, _text(attr, "padding", ""), x, kernel, strides, dilations)
        steps = [_decode(s) for s in attr.get("fused_ops", {}).get("list", {}).get("s", [])]
        bias = steps[:1] == ["BiasAdd"]
        activations = steps[1:] if bias else steps
        if len(activations) > 1 or any(step not in _ACTIVATIONS for step in activations):
            raise ModelError(
                f"{name!r}: expected a fused bias and Relu or Relu6, got {steps}",
                "convert the model without fusion",
            )
        operands = [x.name, self._constant(inputs[1], flat)]
        if bias:
            operands.append(self._constant(inputs[2], self._weight(inputs[2], 1)))
        made = self._add(
            "Conv",
            f"{name}/conv" if activations else name,
            operands,
            _Value("", flat.shape[0], height, width),
            kernel_shape=list(kernel),
            strides=list(strides),
            dilations=list(dilations),
            pads=pads,
            group=x.channels if depthwise else 1,
        )
        return self._activation(activations[0], name, made) if activations else made

    def _activation(self, kind: str, name: str, x: _Value) -> _Value:
        if kind != "Relu6":
            return self._add(kind, name, [x.name], x)
        bounds = [
            self._constant(f"relu6.{what}", np.array(v, np.float32)) for what, v in (("low", 0), ("high", 6))
        ]
        return self._add("Clip", name, [x.name, *bounds], x)

    def _arithmetic(self, kind: str, name: str, inputs: list[str]) -> _Value:
        kind = {"AddV2": "Add", "RealDiv": "Div"}.get(kind, kind)
        values = [self.made[i] for i in inputs if i in self.made]
        if not values:
            raise ModelError(
                f"{name!r} computes with constants only", "run TensorFlow's constant folding first"
            )
        operands = [self.made[i].name if i in self.made else self._broadcast(i) for i in inputs]
        channels, height, width = (
            max(getattr(v, f) for v in values) for f in ("channels", "height", "width")
        )
        return self._add(kind, name, operands, _Value("", channels, height, width))

    def _broadcast(self, name: str) -> str:
        """A constant operand of an image: a number, or one per channel in its last dimension."""
        value = self._weight(name)
        if value.ndim and value.size > 1:
            if value.size != value.shape[-1]:
                raise ModelError(
                    f"constant {name!r}: expected one number per channel, got shape {list(value.shape)}",
                    "this broadcast cannot be converted",
                )
            return self._constant(name, value.reshape(-1, 1, 1))
        return self._constant(name, value.reshape(()))

    def _concat(self, name: str, inputs: list[str]) -> _Value:
        parts, axis = [self.made[i] for i in inputs[:-1]], int(self._weight(inputs[-1]).item())
        if axis not in (3, -1):
            raise ModelError(
                f"{name!r}: expected concatenation along the channels (axis 3), got axis {axis}",
                "this concatenation cannot be converted",
            )
        channels = sum(part.channels for part in parts)
        like = _Value("", channels, parts[0].height, parts[0].width)
        return self._add("Concat", name, [part.name for part in parts], like, axis=1)

    def _mean(self, node: Mapping[str, Any], x: _Value, inputs: list[str]) -> _Value:
        axes = sorted(int(a) % 4 for a in self._weight(inputs[1]).reshape(-1))
        if axes != [1, 2] or not node.get("attr", {}).get("keep_dims", {}).get("b"):
            raise ModelError(
                f"{node['name']!r}: expected the mean over height and width with keep_dims, got axes {axes}",
                "this mean cannot be converted",
            )
        return self._add("GlobalAveragePool", node["name"], [x.name], _Value("", x.channels, 1, 1))

    def _resize(self, node: Mapping[str, Any], x: _Value, inputs: list[str]) -> _Value:
        attr = node.get("attr", {})
        height, width = (int(n) for n in self._weight(inputs[1], 1))
        flags = {flag: bool(attr.get(flag, {}).get("b")) for flag in ("align_corners", "half_pixel_centers")}
        if flags["align_corners"] or height % x.height or width % x.width:
            raise ModelError(
                f"{node['name']!r}: expected an integer factor without align_corners, got {flags} from {x.height} x "
                f"{x.width} to {height} x {width}",
                "this resize cannot be converted",
            )
        scales = np.array([1, 1, height // x.height, width // x.width], np.float32)
        mode = "half_pixel" if flags["half_pixel_centers"] else "asymmetric"
        operands = [x.name, "", self._constant(f"{node['name']}/scales", scales)]
        like = _Value("", x.channels, height, width)
        return self._add(
            "Resize", node["name"], operands, like, mode="linear", coordinate_transformation_mode=mode
        )


def _declared(name: str, value: _Value) -> ValueInfoProto:
    shape: list[str | int] = ["batch", value.channels, value.height, value.width]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _decode(text: object) -> str:
    """Decode a string, which is base64 in the JSON form of a graph."""
    try:
        return base64.b64decode(str(text), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ModelError(f"attribute {text!r} is not base64 text", "get the file again") from error


def _text(attr: Mapping[str, Any], name: str, default: str) -> str:
    text = attr.get(name, {}).get("s")
    return default if text is None else _decode(text)


def _spatial(attr: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Height and width of an NHWC list; 1 if it is missing."""
    values = [int(v) for v in attr.get(name, {}).get("list", {}).get("i", [])]
    return (values[1], values[2]) if len(values) == 4 else (1, 1)


def _padding(
    name: str, kind: str, x: _Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], int, int]:
    """ONNX pads (top, left, bottom, right), and the output's height and width.

    SAME: the output has ceil(size / stride); the padding is split in two, and an odd cell goes to the end.
    """
    if kind not in ("SAME", "VALID"):
        raise ModelError(
            f"{name!r}: expected padding SAME or VALID, got {kind!r}", "explicit padding cannot be converted"
        )
    begins, ends, sizes = [], [], []
    for size, k, stride, dilation in zip((x.height, x.width), kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        out = -(-size // stride) if kind == "SAME" else (size - reach) // stride + 1
        lacking = max(0, (out - 1) * stride + reach - size) if kind == "SAME" else 0
        begins.append(lacking // 2)
        ends.append(lacking - lacking // 2)
        sizes.append(out)
    return begins + ends, sizes[0], sizes[1]
