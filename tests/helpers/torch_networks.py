"""The seed networks written a second time, in PyTorch and float64: the oracle of any size, batch and class count.

They follow the official modules (`models/networks/*.py` of CenterNet, mmdetection's `CTResNetNeck`) and find their way by
the weights that there are, not by tables of channels. The deformable convolution is written out, corner by corner.
PyTorch is no dependency: import this module after `pytest.importorskip("torch")`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Array = NDArray[Any]


def torch_heads(name: str, weights: Mapping[str, Array], image: Array) -> dict[str, Array]:
    """The outputs of architecture `name` for a (batch, 3, height, width) image, in float64."""
    net = Torch(weights)
    with torch.no_grad():
        x = torch.from_numpy(image).double()
        return {head: value.numpy() for head, value in _forward(name, net, x).items()}


def deform_conv(x: Any, offset: Any, mask: Any, weight: Any, bias: Any) -> Any:
    """DCNv2, 3x3, stride 1, padding 1: each tap samples its four corners, those outside count as 0."""
    batch, channels, height, width = x.shape
    flat = x.reshape(batch, channels, -1)
    rows = torch.arange(height, dtype=x.dtype).reshape(1, -1, 1)
    columns = torch.arange(width, dtype=x.dtype).reshape(1, 1, -1)
    total = torch.zeros(batch, weight.shape[0], height, width, dtype=x.dtype)
    for tap in range(9):
        y = rows + tap // 3 - 1 + offset[:, 2 * tap]
        z = columns + tap % 3 - 1 + offset[:, 2 * tap + 1]
        sample = torch.zeros_like(x)
        for corner_y in (y.floor(), y.floor() + 1):
            for corner_x in (z.floor(), z.floor() + 1):
                share = (1 - (y - corner_y).abs()) * (1 - (z - corner_x).abs())
                inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
                place = (corner_y.clamp(0, height - 1) * width + corner_x.clamp(0, width - 1)).long()
                index = place.reshape(batch, 1, -1).expand(-1, channels, -1)
                value = flat.gather(2, index).reshape(x.shape)
                sample = sample + value * (share * inside)[:, None]
        kernel = weight[:, :, tap // 3, tap % 3]
        total = total + torch.einsum("oc,bchw->bohw", kernel, sample * mask[:, tap : tap + 1])
    return total if bias is None else total + bias.reshape(1, -1, 1, 1)


class Torch:
    """Runs layers by their checkpoint names."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.weights

    def conv(self, x: Any, name: str, stride: int = 1) -> Any:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2)

    def deconv(self, x: Any, name: str) -> Any:
        return F.conv_transpose2d(x, self.weights[f"{name}.weight"], None, 2, 1)

    def bn(self, x: Any, name: str) -> Any:
        mean, var, weight, bias = (
            self.weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def dcn(self, x: Any, name: str, offsets: str = "conv_offset_mask") -> Any:
        first, second, mask = torch.chunk(self.conv(x, f"{name}.{offsets}"), 3, 1)
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return deform_conv(x, torch.cat((first, second), 1), mask.sigmoid(), weight, bias)

    def head(self, x: Any, name: str) -> Any:
        return self.conv(self.conv(x, f"{name}.0").relu(), f"{name}.2")


def _forward(name: str, net: Torch, x: Any) -> dict[str, Any]:
    if name.startswith("mmdet"):
        return _mmdet(net, x, dcn=name.endswith("dcnv2"))
    if name == "dla_34":
        return {head: net.head(y, head) for y in [_dla_features(net, x)] for head in ("hm", "wh", "reg")}
    if name == "hourglass":
        return _hourglass(net, x)
    x = _resnet(net, x, "")
    for first in (0, 3, 6) if name.startswith("res_") else (0, 6, 12):
        last = first
        if name.startswith("resdcn_"):
            x = net.bn(net.dcn(x, f"deconv_layers.{first}"), f"deconv_layers.{first + 1}").relu()
            last = first + 3
        x = net.bn(net.deconv(x, f"deconv_layers.{last}"), f"deconv_layers.{last + 1}").relu()
    return {head: net.head(x, head) for head in ("hm", "wh", "reg")}


# ResNets ---------------------------------------------------------------------------------------------------------------


def _resnet(net: Torch, x: Any, prefix: str) -> Any:
    x = net.bn(net.conv(x, f"{prefix}conv1", 2), f"{prefix}bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        index = 0
        while net.has(f"{prefix}layer{stage}.{index}.conv1"):
            x = _block(net, x, f"{prefix}layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1)
            index += 1
    return x


def _block(net: Torch, x: Any, name: str, stride: int) -> Any:
    """Basic block or bottleneck; the stride is on the first 3x3."""
    layers = [index for index in (1, 2, 3) if net.has(f"{name}.conv{index}")]
    strided = 2 if len(layers) == 3 else 1
    y = x
    for index in layers:
        y = net.bn(net.conv(y, f"{name}.conv{index}", stride if index == strided else 1), f"{name}.bn{index}")
        if index != layers[-1]:
            y = y.relu()
    if net.has(f"{name}.downsample.0"):
        x = net.bn(net.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    return (x + y).relu()


def _mmdet(net: Torch, x: Any, *, dcn: bool) -> dict[str, Any]:
    x = _resnet(net, x, "backbone.")
    for index in range(6):
        layer = f"neck.deconv_layers.{index}"
        if index % 2:
            x = net.deconv(x, f"{layer}.conv")
        elif dcn:
            x = net.dcn(x, f"{layer}.conv", "conv_offset")
        else:
            x = net.conv(x, f"{layer}.conv")
        x = net.bn(x, f"{layer}.bn").relu()
    heads = {"center_heatmap": "heatmap_head", "wh": "wh_head", "offset": "offset_head"}
    found = {head: net.head(x, f"bbox_head.{layer}") for head, layer in heads.items()}
    found["center_heatmap"] = found["center_heatmap"].sigmoid()
    return found


# DLA-34 ----------------------------------------------------------------------------------------------------------------


def _dla_features(net: Torch, x: Any) -> Any:
    levels = []
    x = net.bn(net.conv(x, "base.base_layer.0"), "base.base_layer.1").relu()
    for level, stride in ((0, 1), (1, 2)):
        x = net.bn(net.conv(x, f"base.level{level}.0", stride), f"base.level{level}.1").relu()
        levels.append(x)
    for level in (2, 3, 4, 5):
        x = _tree(net, x, f"base.level{level}", 2, [], level_root=level > 2)
        levels.append(x)
    # DLAUp changes its list in place, and so does the IDAUp behind it.
    out = [levels[-1]]
    for step, start in enumerate((4, 3, 2)):
        _ida_up(net, levels, f"dla_up.ida_{step}", start)
        out.insert(0, levels[-1])
    last = out[:3]
    _ida_up(net, last, "ida_up", 0)
    return last[-1]


def _tree(
    net: Torch,
    x: Any,
    name: str,
    stride: int,
    children: list[Any],
    *,
    level_root: bool = False,
    given: Any = None,
) -> Any:
    """`Tree.forward`, and `BasicBlock.forward` where the name is a block's; `given` is its argument `residual`."""
    if net.has(f"{name}.conv1"):
        y = net.bn(net.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        y = net.bn(net.conv(y, f"{name}.conv2"), f"{name}.bn2")
        return (y + (x if given is None else given)).relu()
    bottom = F.max_pool2d(x, stride, stride) if stride > 1 else x
    residual = bottom
    if net.has(f"{name}.project.0"):
        residual = net.bn(net.conv(bottom, f"{name}.project.0"), f"{name}.project.1")
    children = [*children, bottom] if level_root else list(children)
    first = _tree(net, x, f"{name}.tree1", stride, [], given=residual)
    if not net.has(f"{name}.root.conv"):
        return _tree(net, first, f"{name}.tree2", 1, [*children, first])
    second = _tree(net, first, f"{name}.tree2", 1, [])
    joined = torch.cat([second, first, *children], 1)
    return net.bn(net.conv(joined, f"{name}.root.conv"), f"{name}.root.bn").relu()


def _ida_up(net: Torch, layers: list[Any], name: str, start: int) -> None:
    for index in range(start + 1, len(layers)):
        here = index - start
        up = net.weights[f"{name}.up_{here}.weight"]
        factor = up.shape[2] // 2
        y = _deform(net, layers[index], f"{name}.proj_{here}")
        y = F.conv_transpose2d(y, up, None, factor, factor // 2, 0, up.shape[0])
        layers[index] = _deform(net, y + layers[index - 1], f"{name}.node_{here}")


def _deform(net: Torch, x: Any, name: str) -> Any:
    return net.bn(net.dcn(x, f"{name}.conv"), f"{name}.actf.0").relu()


# Hourglass-104 ---------------------------------------------------------------------------------------------------------


def _hourglass(net: Torch, x: Any) -> dict[str, Any]:
    inter = _residual(net, _convolution(net, x, "pre.0", 2), "pre.1", 2)
    for stack in (0, 1):
        cnv = _convolution(net, _kp_module(net, inter, f"kps.{stack}"), f"cnvs.{stack}")
        if stack == 0:
            merged = net.bn(net.conv(inter, "inters_.0.0"), "inters_.0.1")
            merged = merged + net.bn(net.conv(cnv, "cnvs_.0.0"), "cnvs_.0.1")
            inter = _residual(net, merged.relu(), "inters.0")
    return {
        head: net.conv(net.conv(cnv, f"{head}.1.0.conv").relu(), f"{head}.1.1")
        for head in ("hm", "wh", "reg")
    }


def _kp_module(net: Torch, x: Any, name: str) -> Any:
    up1 = _residuals(net, x, f"{name}.up1")
    low = _residuals(net, x, f"{name}.low1", 2)
    if net.has(f"{name}.low2.0.conv1"):
        low = _residuals(net, low, f"{name}.low2")
    else:
        low = _kp_module(net, low, f"{name}.low2")
    low = _residuals(net, low, f"{name}.low3")
    return up1 + F.interpolate(low, scale_factor=2, mode="nearest")


def _residuals(net: Torch, x: Any, name: str, stride: int = 1) -> Any:
    index = 0
    while net.has(f"{name}.{index}.conv1"):
        x = _residual(net, x, f"{name}.{index}", 1 if index else stride)
        index += 1
    return x


def _residual(net: Torch, x: Any, name: str, stride: int = 1) -> Any:
    y = net.bn(net.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
    y = net.bn(net.conv(y, f"{name}.conv2"), f"{name}.bn2")
    if net.has(f"{name}.skip.0"):
        x = net.bn(net.conv(x, f"{name}.skip.0", stride), f"{name}.skip.1")
    return (x + y).relu()


def _convolution(net: Torch, x: Any, name: str, stride: int = 1) -> Any:
    return net.bn(net.conv(x, f"{name}.conv", stride), f"{name}.bn").relu()


def relative_error(found: Array, wanted: Array) -> float:
    """Of the largest magnitude."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
