"""res_18, resdcn_18 and mmdet's neck written a second time in PyTorch, at sizes that the stored references lack.

PyTorch is no dependency: these tests are skipped where it is missing. The deformable convolution is written out, corner
by corner, in float64.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from centernet_trt.builder.architectures.registry import ARCHITECTURES
from centernet_trt.builder.deformable_lowering import lower_deform_conv
from centernet_trt.builder.export import export_model, random_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is no dependency")

Array = NDArray[Any]


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

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def conv(self, x: Any, name: str, stride: int = 1) -> Any:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias")
        return torch.nn.functional.conv2d(x, weight, bias, stride, weight.shape[2] // 2)

    def deconv(self, x: Any, name: str) -> Any:
        return torch.nn.functional.conv_transpose2d(x, self.weights[f"{name}.weight"], None, 2, 1)

    def bn(self, x: Any, name: str) -> Any:
        mean, var, weight, bias = (
            self.weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias)

    def dcn(self, x: Any, name: str, offsets: str) -> Any:
        first, second, mask = torch.chunk(self.conv(x, f"{name}.{offsets}"), 3, 1)
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return deform_conv(x, torch.cat((first, second), 1), mask.sigmoid(), weight, bias)

    def block(self, x: Any, name: str, stride: int) -> Any:
        y = self.bn(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        y = self.bn(self.conv(y, f"{name}.conv2"), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.bn(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (x + y).relu()

    def resnet_18(self, x: Any, prefix: str) -> Any:
        x = self.bn(self.conv(x, f"{prefix}conv1", 2), f"{prefix}bn1").relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = self.block(x, f"{prefix}layer{stage}.0", 1 if stage == 1 else 2)
            x = self.block(x, f"{prefix}layer{stage}.1", 1)
        return x

    def head(self, x: Any, name: str) -> Any:
        return self.conv(self.conv(x, f"{name}.0").relu(), f"{name}.2")


def forward(name: str, net: Torch, x: Any) -> dict[str, Any]:
    if name.startswith("mmdet"):
        x = net.resnet_18(x, "backbone.")
        for index in range(6):
            layer = f"neck.deconv_layers.{index}"
            if index % 2:
                x = net.deconv(x, f"{layer}.conv")
            elif name == "mmdet_r18":
                x = net.conv(x, f"{layer}.conv")
            else:
                x = net.dcn(x, f"{layer}.conv", "conv_offset")
            x = net.bn(x, f"{layer}.bn").relu()
        heads = {"center_heatmap": "heatmap_head", "wh": "wh_head", "offset": "offset_head"}
        found = {head: net.head(x, f"bbox_head.{layer}") for head, layer in heads.items()}
        found["center_heatmap"] = found["center_heatmap"].sigmoid()
        return found
    x = net.resnet_18(x, "")
    for first in (0, 3, 6) if name == "res_18" else (0, 6, 12):
        if name == "resdcn_18":
            x = net.dcn(x, f"deconv_layers.{first}", "conv_offset_mask")
            x = net.bn(x, f"deconv_layers.{first + 1}").relu()
        last = first if name == "res_18" else first + 3
        x = net.bn(net.deconv(x, f"deconv_layers.{last}"), f"deconv_layers.{last + 1}").relu()
    return {head: net.head(x, head) for head in ("hm", "wh", "reg")}


@pytest.mark.parametrize("name", ["res_18", "resdcn_18", "mmdet_r18", "mmdet_r18_dcnv2"])
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 160, 96), (1, 32, 224)])
def test_other_sizes_batches_and_classes(name: str, batch: int, height: int, width: int) -> None:
    weights = random_weights(ARCHITECTURES[name].network(20).parameters, seed=3)
    image = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
    wanted = forward(name, Torch(weights), torch.from_numpy(image).double())
    model = export_model(name, weights, classes=20)
    for made in (model, lower_deform_conv(export_model(name, weights, classes=20, fold_bn=True))):
        session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(list(wanted), {"input": image})
        for value, (head, exact) in zip(found, wanted.items(), strict=True):
            exact = exact.numpy()
            assert value.shape == exact.shape
            assert np.abs(value - exact).max() < 1e-5 * np.abs(exact).max(), head


def test_a_checkpoint_saved_by_torch(tmp_path: Path) -> None:
    weights = random_weights(ARCHITECTURES["res_18"].network().parameters)
    path = tmp_path / "ctdet.pth"
    state = {f"module.{name}": torch.from_numpy(value) for name, value in weights.items()}
    for zipped in (True, False):
        torch.save({"epoch": 140, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
        assert export_model("res_18", path).graph == export_model("res_18", weights).graph
