"""Official `dla_34`: DLA-34 with deformable up-sampling.

Sources: Yu et al. 2018 (deep layer aggregation: trees, iterative and hierarchical), Zhou et al. 2019, appendix.
"""

from collections.abc import Mapping, Sequence

from centernet_trt.builder.export.network import Network, Tensor, official_heads
from centernet_trt.builder.export.resnet import basic_block

__all__ = ["dla_34"]

_CHANNELS = (16, 32, 64, 128, 256, 512)
_FIRST_LEVEL, _LAST_LEVEL = 2, 5  # strides 4 and 32


def dla_34(net: Network, x: Tensor, heads: Mapping[str, int], head_conv: int) -> None:
    """Append the network; its outputs have a quarter of the input size."""
    levels = _base(net, x)[_FIRST_LEVEL:]
    aggregated = _dla_up(net, levels)
    last = _ida_up(
        net, aggregated[: _LAST_LEVEL - _FIRST_LEVEL], "ida_up", _CHANNELS[_FIRST_LEVEL], (1, 2, 4)
    )
    official_heads(net, last[-1], heads, head_conv)


def _base(net: Network, x: Tensor) -> list[Tensor]:
    """Six levels; each but the first halves the size."""
    x = _conv_bn_relu(net, x, "base.base_layer", _CHANNELS[0], 7, 1)
    levels = [_conv_bn_relu(net, x, "base.level0", _CHANNELS[0], 3, 1)]
    levels.append(_conv_bn_relu(net, levels[-1], "base.level1", _CHANNELS[1], 3, 2))
    for level, (depth, level_root) in enumerate(((1, False), (2, True), (2, True), (1, True)), 2):
        name = f"base.level{level}"
        levels.append(_tree(net, levels[-1], name, depth, _CHANNELS[level], 2, level_root=level_root))
    return levels


def _conv_bn_relu(net: Network, x: Tensor, name: str, channels: int, kernel: int, stride: int) -> Tensor:
    y = net.conv(x, f"{name}.0", channels, kernel, stride=stride)
    return net.relu(net.batch_norm(y, f"{name}.1"), f"{name}.2")


def _tree(
    net: Network,
    x: Tensor,
    name: str,
    depth: int,
    channels: int,
    stride: int,
    *,
    level_root: bool = False,
    children: Sequence[Tensor] = (),
) -> Tensor:
    """Two subtrees; a 1x1 root joins their outputs with those of earlier trees (`children`)."""
    bottom = net.max_pool(x, f"{name}.downsample", stride, stride) if stride > 1 else x
    if level_root:
        children = (*children, bottom)
    if depth > 1:
        if x.channels != channels:
            # The public model has this projection and its weights, but passes the result to a subtree that ignores it.
            spare = Network()
            _project(spare, bottom, name, channels)
            net.declare_unused(spare)
        first = _tree(net, x, f"{name}.tree1", depth - 1, channels, stride)
        return _tree(net, first, f"{name}.tree2", depth - 1, channels, 1, children=(*children, first))
    shortcut = _project(net, bottom, name, channels) if x.channels != channels else bottom
    first = basic_block(net, x, f"{name}.tree1", channels, stride, shortcut)
    second = basic_block(net, first, f"{name}.tree2", channels, 1, first)
    joined = net.concat((second, first, *children), f"{name}.root.concat")
    y = net.batch_norm(net.conv(joined, f"{name}.root.conv", channels, 1), f"{name}.root.bn")
    return net.relu(y, f"{name}.root.relu")


def _project(net: Network, x: Tensor, name: str, channels: int) -> Tensor:
    return net.batch_norm(net.conv(x, f"{name}.project.0", channels, 1), f"{name}.project.1")


def _dla_up(net: Network, levels: Sequence[Tensor]) -> list[Tensor]:
    """From the deepest pair upwards, bring all deeper levels to the size and width of the next one."""
    layers = list(levels)
    sizes = [2**index for index in range(len(layers))]  # how many times smaller than the first
    aggregated = [layers[-1]]
    for step in range(len(layers) - 1):
        start = len(layers) - 2 - step
        factors = [size // sizes[start] for size in sizes[start:]]
        layers[start:] = _ida_up(net, layers[start:], f"dla_up.ida_{step}", layers[start].channels, factors)
        sizes[start:] = [sizes[start]] * len(factors)
        aggregated.insert(0, layers[-1])
    return aggregated


def _ida_up(
    net: Network, layers: Sequence[Tensor], name: str, width: int, factors: Sequence[int]
) -> list[Tensor]:
    """Project each layer but the first to `width`, upsample it, and merge it into the one before."""
    done = [layers[0]]
    for index, (layer, factor) in enumerate(zip(layers[1:], factors[1:], strict=True), 1):
        y = _deform(net, layer, f"{name}.proj_{index}", width)
        y = net.deconv(y, f"{name}.up_{index}", width, 2 * factor, factor, groups=width)
        y = net.add(y, done[-1], f"{name}.add_{index}")
        done.append(_deform(net, y, f"{name}.node_{index}", width))
    return done


def _deform(net: Network, x: Tensor, name: str, width: int) -> Tensor:
    y = net.deform_conv(x, f"{name}.conv", width, "conv_offset_mask", bias=True)
    return net.relu(net.batch_norm(y, f"{name}.actf.0"), f"{name}.actf.1")
