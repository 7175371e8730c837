"""Write a network as an ONNX graph, with the official heads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

__all__ = ["BATCH_NORM_EPSILON", "Network", "Tensor", "official_heads"]

# torch.nn.BatchNorm2d's default; no seed network sets another.
BATCH_NORM_EPSILON = 1e-5


class Tensor(NamedTuple):
    """A float32 tensor (N, channels, H, W) of the graph; H and W are dynamic."""

    name: str
    channels: int


class Network:
    """A network under construction: nodes in order, shapes of their parameters, and constants of no checkpoint.

    Every method that adds a layer takes its name in the checkpoint (`layer1.0.conv1`), which becomes the name of the
    node and of its output; its parameters are `NAME.weight`, `NAME.bias` and so on.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.outputs: list[Tensor] = []
        self._parameters: dict[str, tuple[int, ...]] = {}
        self._unused: set[str] = set()

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the checkpoint by name, including those that no node reads."""
        return dict(self._parameters)

    @property
    def unused(self) -> frozenset[str]:
        """Parameters of the checkpoint that the outputs do not need."""
        return frozenset(self._unused)

    def conv(
        self,
        x: Tensor,
        name: str,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = False,
        output: str = "",
    ) -> Tensor:
        """Square convolution, padded so that stride 1 keeps the size; weight (channels, x.channels, k, k)."""
        wanted = self._weights(name, (channels, x.channels, kernel, kernel), channels if bias else 0)
        pad = kernel // 2
        return self._add(
            "Conv",
            name,
            [x.name, *wanted],
            channels,
            output=output,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def deconv(
        self, x: Tensor, name: str, channels: int, kernel: int, stride: int, *, groups: int = 1
    ) -> Tensor:
        """Transposed convolution without bias that makes the size exactly `stride` times larger.

        Weight (x.channels, channels / groups, k, k). `kernel` is 2 * stride (or 4 at stride 2, the same): the
        padding that gives the exact factor is then stride / 2 on every side.
        """
        wanted = self._weights(name, (x.channels, channels // groups, kernel, kernel), 0)
        pad = (kernel - stride) // 2
        return self._add(
            "ConvTranspose",
            name,
            [x.name, *wanted],
            channels,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def deform_conv(self, x: Tensor, name: str, channels: int, offset_name: str, *, bias: bool) -> Tensor:
        """Modulated deformable convolution 3x3 (DCNv2), stride 1, padding 1, one offset group.

        `NAME.OFFSET_NAME` is a 3x3 convolution to 27 channels: 18 offsets, (dy, dx) for each tap, then the 9 logits of
        the mask. That is the layout of ONNX DeformConv.
        """
        raw = self.conv(x, f"{name}.{offset_name}", 27, 3, bias=True)
        offset, mask = f"{name}.offset", f"{name}.mask"
        sizes = self._constant("deform_conv.offset_and_mask_channels", np.array([18, 9], np.int64))
        self.nodes.append(
            helper.make_node("Split", [raw.name, sizes], [offset, f"{mask}.logits"], f"{name}.split", axis=1)
        )
        self._add("Sigmoid", mask, [f"{mask}.logits"], 9)
        weight, *biases = self._weights(name, (channels, x.channels, 3, 3), channels if bias else 0)
        return self._add(
            "DeformConv",
            name,
            [x.name, weight, offset, *(biases or [""]), mask],
            channels,
            kernel_shape=[3, 3],
            strides=[1, 1],
            pads=[1] * 4,
            dilations=[1, 1],
            group=1,
            offset_group=1,
        )

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        """Batch normalisation with running statistics: four tensors of x.channels."""
        leaves = [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
        self._parameters.update(dict.fromkeys(leaves, (x.channels,)))
        return self._add(
            "BatchNormalization", name, [x.name, *leaves], x.channels, epsilon=BATCH_NORM_EPSILON
        )

    def relu(self, x: Tensor, name: str) -> Tensor:
        """max(x, 0)."""
        return self._add("Relu", name, [x.name], x.channels)

    def sigmoid(self, x: Tensor, name: str, *, output: str = "") -> Tensor:
        """1 / (1 + exp(-x))."""
        return self._add("Sigmoid", name, [x.name], x.channels, output=output)

    def add(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Elementwise sum of two tensors of one shape."""
        assert a.channels == b.channels, (a, b)
        return self._add("Add", name, [a.name, b.name], a.channels)

    def concat(self, parts: Sequence[Tensor], name: str) -> Tensor:
        """Channels of all parts, in order."""
        return self._add("Concat", name, [p.name for p in parts], sum(p.channels for p in parts), axis=1)

    def max_pool(self, x: Tensor, name: str, kernel: int, stride: int, *, padding: int = 0) -> Tensor:
        """Square max pooling."""
        return self._add(
            "MaxPool",
            name,
            [x.name],
            x.channels,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding] * 4,
        )

    def upsample2(self, x: Tensor, name: str) -> Tensor:
        """Nearest-neighbour upsampling by two."""
        scales = self._constant("upsample2.scales", np.array([1, 1, 2, 2], np.float32))
        return self._add(
            "Resize",
            name,
            [x.name, "", scales],
            x.channels,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def declare_unused(self, other: "Network") -> None:
        """Add the parameters of a part that checkpoints have and the outputs do not need."""
        self._unused.update(other._parameters)
        self._parameters.update(other._parameters)

    def _weights(self, name: str, shape: tuple[int, ...], biases: int) -> list[str]:
        self._parameters[f"{name}.weight"] = shape
        if not biases:
            return [f"{name}.weight"]
        self._parameters[f"{name}.bias"] = (biases,)
        return [f"{name}.weight", f"{name}.bias"]

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants[name] = value
        return name

    def _add(
        self, kind: str, name: str, inputs: list[str], channels: int, *, output: str = "", **attributes: Any
    ) -> Tensor:
        made = Tensor(output or name, channels)
        self.nodes.append(helper.make_node(kind, inputs, [made.name], name, **attributes))
        return made


def official_heads(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int) -> None:
    """Add one output per head, of its name, (N, channels, H, W), without an activation (the heatmap: logits).

    `head_conv` is the width between the two convolutions; 0 means a single 1x1 convolution, as in the official code.
    """
    for name, channels in heads.items():
        if not head_conv:
            # Node `hm` and output `hm`: parameters hm.weight and hm.bias.
            net.outputs.append(net.conv(x, name, channels, 1, bias=True))
            continue
        y = net.relu(net.conv(x, f"{name}.0", head_conv, 3, bias=True), f"{name}.1")
        net.outputs.append(net.conv(y, f"{name}.2", channels, 1, bias=True, output=name))
