"""Official `hourglass`: Hourglass-104, two stacks, with the heads of the last one.

Sources: Newell et al. 2016 (the module), Law and Deng 2018 (104 layers, strides instead of pooling), Zhou et al. 2019.
"""

from collections.abc import Mapping

from centernet_trt.builder.export.network import Network, Tensor

__all__ = ["hourglass"]

_DIMS = (256, 256, 384, 384, 384, 512)
_MODULES = (2, 2, 2, 2, 2, 4)
_STACKS = 2


def hourglass(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int) -> None:
    """Append the network; sides must be multiples of 128, outputs have a quarter of the input size.

    The heads of the first stack are for training only: every checkpoint has them, no graph does.
    """
    x = _convolution(net, x, "pre.0", 128, 7, stride=2)
    x = _residual(net, x, "pre.1", _DIMS[0], stride=2)
    y = x
    for stack in range(_STACKS):
        y = _module(net, x, f"kps.{stack}", 0)
        y = _convolution(net, y, f"cnvs.{stack}", 256, 3)
        if stack < _STACKS - 1:
            spare = Network()
            _heads(spare, y, heads, head_conv, stack)
            net.declare_unused(spare)
            x = net.add(
                _plain(net, x, f"inters_.{stack}"), _plain(net, y, f"cnvs_.{stack}"), f"merge.{stack}"
            )
            x = _residual(net, net.relu(x, f"merge.{stack}.relu"), f"inters.{stack}", _DIMS[0])
    net.outputs.extend(_heads(net, y, heads, head_conv, _STACKS - 1))


def _module(net: Network, x: Tensor, name: str, level: int) -> Tensor:
    """One level: a branch at this size, plus one that is downsampled, passes the next level, and is upsampled."""
    here, below, count = x.channels, _DIMS[level + 1], _MODULES[level]
    up = x
    for index in range(count):
        up = _residual(net, up, f"{name}.up1.{index}", here)
    low = x
    for index in range(count):
        low = _residual(net, low, f"{name}.low1.{index}", below, stride=1 if index else 2)
    if level + 2 < len(_DIMS):
        low = _module(net, low, f"{name}.low2", level + 1)
    else:
        for index in range(_MODULES[level + 1]):
            low = _residual(net, low, f"{name}.low2.{index}", below)
    for index in range(count):
        low = _residual(net, low, f"{name}.low3.{index}", here if index == count - 1 else below)
    return net.add(up, net.upsample2(low, f"{name}.up2"), f"{name}.merge")


def _residual(net: Network, x: Tensor, name: str, channels: int, *, stride: int = 1) -> Tensor:
    y = net.conv(x, f"{name}.conv1", channels, 3, stride=stride)
    y = net.relu(net.batch_norm(y, f"{name}.bn1"), f"{name}.relu1")
    y = net.batch_norm(net.conv(y, f"{name}.conv2", channels, 3), f"{name}.bn2")
    if stride != 1 or x.channels != channels:
        x = net.batch_norm(net.conv(x, f"{name}.skip.0", channels, 1, stride=stride), f"{name}.skip.1")
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu")


def _convolution(
    net: Network, x: Tensor, name: str, channels: int, kernel: int, *, stride: int = 1
) -> Tensor:
    y = net.conv(x, f"{name}.conv", channels, kernel, stride=stride)
    return net.relu(net.batch_norm(y, f"{name}.bn"), f"{name}.relu")


def _plain(net: Network, x: Tensor, name: str) -> Tensor:
    return net.batch_norm(net.conv(x, f"{name}.0", 256, 1), f"{name}.1")


def _heads(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int, stack: int) -> list[Tensor]:
    outputs = []
    for head, channels in heads.items():
        name = f"{head}.{stack}"
        y = net.relu(net.conv(x, f"{name}.0.conv", head_conv, 3, bias=True), f"{name}.0.relu")
        outputs.append(net.conv(y, f"{name}.1", channels, 1, bias=True, output=head))
    return outputs
