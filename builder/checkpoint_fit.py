"""Finds out which network a checkpoint belongs to: its architecture, classes, heads and head width."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.architectures.network import Network
from centernet_trt.builder.architectures.registry import ARCHITECTURES, Architecture
from centernet_trt.errors import ModelError

__all__ = [
    "Options",
    "Shapes",
    "best_fit",
    "book_keeping",
    "final_layers",
    "network_of",
    "options_of",
    "renamed_offsets",
    "shapes_of",
]

Shapes = Mapping[str, tuple[int, ...]]

# Training's own book-keeping.
_BOOK_KEEPING = ("num_batches_tracked",)
# The convolution that predicts offsets and mask goes by several names: official, mmcv, and mmcv before its version 2.
_OFFSET_NAMES = (".conv_offset_mask.", ".conv_offset.", "_offset.")


@dataclass(frozen=True)
class Options:
    """What a network of one architecture was made with.

    Attributes:
        classes: channels of the heatmap.
        heads: channels of the outputs that differ from the architecture's, or are not among them; 0: not there.
        head_conv: width inside the heads; None for the architecture's own.
    """

    classes: int
    heads: Mapping[str, int] = field(default_factory=dict)
    head_conv: int | None = None

    def flags(self) -> str:
        """As options of `centernet-trt export`; the classes are always named."""
        words = [f"--classes {self.classes}"]
        if self.heads:
            words.append("--heads " + ",".join(f"{name}={count}" for name, count in self.heads.items()))
        if self.head_conv is not None:
            words.append(f"--head-conv {self.head_conv}")
        return " ".join(words)


def shapes_of(tensors: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    return {name: tuple(np.shape(value)) for name, value in tensors.items()}


def book_keeping(name: str) -> bool:
    """Whether a tensor only counts training steps."""
    return name.endswith(_BOOK_KEEPING)


def best_fit(shapes: Shapes) -> tuple[str, int, int] | None:
    """Return the architecture whose tensors these are most: its name, how many fit, of how many; None if few do.

    Names and shapes count, those of heads with the options that the checkpoint itself has, so that the number of
    classes does not matter.
    """
    best: tuple[float, str, int, int] | None = None
    for arch in ARCHITECTURES.values():
        options = options_of(arch, shapes)
        network = arch.network() if options is None else network_of(arch, options)
        wanted = network.parameters
        given = renamed_offsets(shapes, wanted)
        hits = sum(given.get(name) == shape for name, shape in wanted.items())
        known = sum(not book_keeping(name) for name in given)
        score = 2 * hits / (len(wanted) + known)
        if best is None or score > best[0]:
            best = score, arch.name, hits, len(wanted)
    if best is None or best[0] < 0.3:
        return None
    return best[1:]


def options_of(arch: Architecture, shapes: Shapes) -> Options | None:
    """Read classes, heads and head width off a checkpoint; None where it has no heatmap head of this architecture."""
    first = arch.network()
    finals = final_layers(first)
    layer = next(layer for layer, head in finals.items() if head == arch.heatmap)
    suffix = layer.removeprefix(arch.heatmap)
    found: dict[str, tuple[int, ...]] = {}
    if arch.open_heads:
        # A head of the official code is called as its output; without a middle layer it is one 1x1 convolution.
        for ending in (suffix, ""):
            if not found:
                names = [n.removesuffix(f"{ending}.weight") for n in shapes if n.endswith(f"{ending}.weight")]
                found = {n: shapes[f"{n}{ending}.weight"] for n in names if "." not in n}
    else:
        found = {head: shapes.get(f"{layer}.weight", ()) for layer, head in finals.items()}
    found = {name: shape for name, shape in found.items() if len(shape) == 4 and shape[2:] == (1, 1)}
    if arch.heatmap not in found:
        return None
    channels, width = found[arch.heatmap][:2]
    if arch.open_heads and f"{arch.heatmap}.weight" in shapes:
        width = 0
    heads = {name: shape[0] for name, shape in found.items() if arch.heads.get(name) != shape[0]}
    heads |= {name: 0 for name in arch.heads if name not in found and arch.open_heads}
    heads.pop(arch.heatmap, None)
    options = Options(channels, heads, None if width == arch.head_conv else width)
    try:
        network_of(arch, options)
    except ModelError:
        return None
    return options


def network_of(arch: Architecture, options: Options) -> Network:
    """The network with these options; raises as `Architecture.network`."""
    return arch.network(options.classes, options.heads, options.head_conv)


def final_layers(network: Network) -> dict[str, str]:
    """The layer that makes each output -> the output; the layer in front where a sigmoid stands last."""
    by_output = {node.output[0]: node for node in network.nodes}
    finals: dict[str, str] = {}
    for head in network.outputs:
        node = by_output[head.name]
        if node.op_type == "Sigmoid":
            node = by_output[node.input[0]]
        finals[node.input[1].removesuffix(".weight")] = head.name
    return finals


def renamed_offsets(tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the offset layers of deformable convolutions to the name that the network uses."""
    used = next((part for part in _OFFSET_NAMES[:2] if any(part in name for name in wanted)), "")
    if not used:
        return dict(tensors)
    renamed: dict[str, Any] = {}
    for name, value in tensors.items():
        candidates = [name.replace(other, used) for other in _OFFSET_NAMES if other in name]
        renamed[next((c for c in candidates if c in wanted), name)] = value
    return renamed
