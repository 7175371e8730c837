"""ResNet-18/34/50/101, and the official CenterNets with this backbone: `res_N` and `resdcn_N`.

Sources: He et al. 2015 (the backbone, stride on the 3x3 of a bottleneck); Xiao et al. 2018 (three deconvolutions);
Zhou et al. 2019, section 5 and appendix (deformable convolutions before the deconvolutions, the heads).
"""

from collections.abc import Mapping, Sequence

from centernet_trt.builder.export.network import Network, Tensor, official_heads

__all__ = ["DEPTHS", "backbone", "basic_block", "res", "resdcn"]

# Blocks of each stage, and whether they are bottlenecks (1x1, 3x3, 1x1 to four times the width).
DEPTHS: Mapping[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
_WIDTHS = (64, 128, 256, 512)


def backbone(net: Network, x: Tensor, depth: int, prefix: str = "") -> Tensor:
    """ResNet without its classifier: (N, 3, H, W) to (N, 512 or 2048, H/32, W/32)."""
    blocks, bottleneck = DEPTHS[depth]
    x = net.conv(x, f"{prefix}conv1", 64, 7, stride=2)
    x = net.relu(net.batch_norm(x, f"{prefix}bn1"), f"{prefix}relu")
    x = net.max_pool(x, f"{prefix}maxpool", 3, 2, padding=1)
    block = _bottleneck if bottleneck else _downsampling_basic
    for stage, (count, width) in enumerate(zip(blocks, _WIDTHS, strict=True), 1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(net, x, f"{prefix}layer{stage}.{index}", width, stride)
    return x


def basic_block(net: Network, x: Tensor, name: str, width: int, stride: int, shortcut: Tensor) -> Tensor:
    """Two 3x3 convolutions (the first with the stride) plus the shortcut."""
    y = net.relu(
        net.batch_norm(net.conv(x, f"{name}.conv1", width, 3, stride=stride), f"{name}.bn1"), f"{name}.relu1"
    )
    y = net.batch_norm(net.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2")
    return net.relu(net.add(y, shortcut, f"{name}.add"), f"{name}.relu")


def _downsampling_basic(net: Network, x: Tensor, name: str, width: int, stride: int) -> Tensor:
    return basic_block(net, x, name, width, stride, _shortcut(net, x, name, width, stride))


def _bottleneck(net: Network, x: Tensor, name: str, width: int, stride: int) -> Tensor:
    shortcut = _shortcut(net, x, name, 4 * width, stride)
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"), f"{name}.relu1")
    y = net.relu(
        net.batch_norm(net.conv(y, f"{name}.conv2", width, 3, stride=stride), f"{name}.bn2"), f"{name}.relu2"
    )
    y = net.batch_norm(net.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
    return net.relu(net.add(y, shortcut, f"{name}.add"), f"{name}.relu")


def _shortcut(net: Network, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    if stride == 1 and x.channels == channels:
        return x
    y = net.conv(x, f"{name}.downsample.0", channels, 1, stride=stride)
    return net.batch_norm(y, f"{name}.downsample.1")


def res(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int, *, depth: int) -> None:
    """Official `res_N`: the backbone, three 4x4 deconvolutions to 256 channels, the heads."""
    x = backbone(net, x, depth)
    for index in (0, 3, 6):
        x = _normalised(net, net.deconv(x, f"deconv_layers.{index}", 256, 4, 2), index + 1)
    official_heads(net, x, heads, head_conv)


def resdcn(
    net: Network,
    x: Tensor,
    heads: Mapping[str, int],
    head_conv: int,
    *,
    depth: int,
    widths: Sequence[int] = (256, 128, 64),
) -> None:
    """Official `resdcn_N`: three stages of a deformable 3x3 with bias and a 4x4 deconvolution of the same width."""
    x = backbone(net, x, depth)
    for stage, width in enumerate(widths):
        first = 6 * stage
        x = net.deform_conv(x, f"deconv_layers.{first}", width, "conv_offset_mask", bias=True)
        x = _normalised(net, x, first + 1)
        x = net.deconv(x, f"deconv_layers.{first + 3}", width, 4, 2)
        x = _normalised(net, x, first + 4)
    official_heads(net, x, heads, head_conv)


def _normalised(net: Network, x: Tensor, index: int) -> Tensor:
    return net.relu(net.batch_norm(x, f"deconv_layers.{index}"), f"deconv_layers.{index + 1}")
