"""mmdetection's CenterNet: ResNet-18, a neck with or without DCNv2, a sigmoid inside the model.

Tensor names are those of mmdetection 2.x; 3.x kept them (its model zoo lists the same checkpoint files).
"""

from collections.abc import Mapping

from centernet_trt.builder.export.network import Network, Tensor
from centernet_trt.builder.export.resnet import backbone

__all__ = ["HEAD_NAMES", "mmdet"]

# Output of the graph -> layer of the checkpoint.
HEAD_NAMES: Mapping[str, str] = {"center_heatmap": "heatmap_head", "wh": "wh_head", "offset": "offset_head"}


def mmdet(
    net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int, *, depth: int, dcn: bool
) -> None:
    """Append the network; `center_heatmap` is a probability, the other outputs are raw."""
    x = backbone(net, x, depth, "backbone.")
    for stage, width in enumerate((256, 128, 64)):
        name = f"neck.deconv_layers.{2 * stage}"
        if dcn:
            x = net.deform_conv(x, f"{name}.conv", width, "conv_offset", bias=False)
        else:
            x = net.conv(x, f"{name}.conv", width, 3)
        x = _normalised(net, x, name)
        name = f"neck.deconv_layers.{2 * stage + 1}"
        x = _normalised(net, net.deconv(x, f"{name}.conv", width, 4, 2), name)
    for head, channels in heads.items():
        name = f"bbox_head.{HEAD_NAMES[head]}"
        y = net.relu(net.conv(x, f"{name}.0", head_conv, 3, bias=True), f"{name}.1")
        if head == "center_heatmap":
            y = net.conv(y, f"{name}.2", channels, 1, bias=True)
            net.outputs.append(net.sigmoid(y, f"{name}.sigmoid", output=head))
        else:
            net.outputs.append(net.conv(y, f"{name}.2", channels, 1, bias=True, output=head))


def _normalised(net: Network, x: Tensor, name: str) -> Tensor:
    return net.relu(net.batch_norm(x, f"{name}.bn"), f"{name}.activate")
