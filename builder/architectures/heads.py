"""The official heads: for each output a 3x3 convolution, ReLU, and a 1x1 convolution."""

from collections.abc import Mapping

from centernet_trt.builder.architectures.network import Network, Tensor

__all__ = ["official_heads"]


def official_heads(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int) -> None:
    """Add one output a head, named as the head, (N, channels, H, W), raw (the heatmap: logits).

    `head_conv` is the width between the two convolutions; 0 stands for a single 1x1 convolution, as in the
    official code.
    """
    for name, channels in heads.items():
        if not head_conv:
            # Node `hm` and output `hm`: parameters hm.weight and hm.bias.
            net.outputs.append(net.conv(x, name, channels, 1, bias=True))
            continue
        y = net.relu(net.conv(x, f"{name}.0", head_conv, 3, bias=True), f"{name}.1")
        net.outputs.append(net.conv(y, f"{name}.2", channels, 1, bias=True, output=name))
