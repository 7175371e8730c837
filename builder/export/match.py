"""Find the architecture of a checkpoint and load its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.export.network import Network
from centernet_trt.builder.export.registry import ARCHITECTURES, Architecture
from centernet_trt.builder.graph.edit import near_names
from centernet_trt.errors import ModelError

__all__ = [
    "Options",
    "Shapes",
    "best_fit",
    "book_keeping",
    "build_network",
    "final_layers",
    "infer_options",
    "match_checkpoint",
    "renamed_offsets",
    "tensor_shapes",
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


def tensor_shapes(tensors: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
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
        options = infer_options(arch, shapes)
        network = arch.network() if options is None else build_network(arch, options)
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


def infer_options(arch: Architecture, shapes: Shapes) -> Options | None:
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
        build_network(arch, options)
    except ModelError:
        return None
    return options


def build_network(arch: Architecture, options: Options) -> Network:
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


Array = NDArray[Any]

_LISTED = 8  # of each kind of trouble; the counts are always given
# What ImageNet weights of a backbone lack.
_BEHIND_BACKBONE = ("deconv_layers.", "neck.", "bbox_head.", "dla_up.", "ida_up.")


def match_checkpoint(
    arch: Architecture, network: Network, tensors: Mapping[str, Array], *, where: str, strict: bool = True
) -> dict[str, Array]:
    """Return the float32 value of every tensor that the network's graph reads.

    Args:
        arch: what the network is.
        network: as `arch.network` wrote it.
        tensors: by checkpoint name; float types are converted, offset layers are found under their other names.
        where: named in errors.
        strict: refuse tensors that nothing wants.

    Raises:
        ModelError: missing, extra or misshaped tensors, each listed; values that are not finite, or variances below 0.
    """
    wanted = network.parameters
    given = renamed_offsets(tensors, wanted)
    shapes = tensor_shapes(given)
    misfit = Misfit(
        missing=[name for name in wanted if name not in given and name not in network.unused],
        misshaped=[name for name in wanted if name in given and shapes[name] != wanted[name]],
        extra=[name for name in given if name not in wanted and not _is_spare(arch, name)] if strict else [],
    )
    if misfit.any():
        listed = misfit.describe(network, shapes)
        raise ModelError(
            f"{where}: not the tensors of {arch.name}:\n{listed}", _advice(arch, network, shapes, misfit)
        )
    values = {
        name: np.ascontiguousarray(given[name], np.float32) for name in wanted if name not in network.unused
    }
    _check_values(values, where)
    return values


@dataclass(frozen=True)
class Misfit:
    """Names of the tensors that a checkpoint lacks, has in another shape, or has too many."""

    missing: list[str]
    misshaped: list[str]
    extra: list[str]

    def any(self) -> bool:
        """Whether anything does not fit."""
        return bool(self.missing or self.misshaped or self.extra)

    def describe(self, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """One line a tensor, the first of each kind; the numbers of all."""
        wanted = network.parameters
        lines = _list("missing", self.missing, lambda name: _near(name, self.extra))
        lines += _list(
            "misshaped",
            self.misshaped,
            lambda name: f" is {list(shapes[name])}, {list(wanted[name])} is needed",
        )
        lines += _list("extra", self.extra, lambda name: f" {list(shapes[name])}")
        return "\n".join(lines)


def _is_spare(arch: Architecture, name: str) -> bool:
    return book_keeping(name) or name.startswith(arch.spare)


def _list(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
    if not names:
        return []
    lines = [f"  {len(names)} {kind}:"]
    lines += [f"    {name}{describe(name)}" for name in names[:_LISTED]]
    if len(names) > _LISTED:
        lines.append(f"    ... and {len(names) - _LISTED} more")
    return lines


def _near(name: str, extra: list[str]) -> str:
    near = near_names(name, extra, count=2)
    return f" (near: {', '.join(near)})" if near else ""


def _advice(
    arch: Architecture, network: Network, shapes: Mapping[str, tuple[int, ...]], misfit: Misfit
) -> str:
    """What to do: another architecture, other classes or heads, or another file."""
    fit = best_fit(shapes)
    if fit is None:
        return f"the checkpoint fits none of {', '.join(ARCHITECTURES)}"
    best, hits, count = fit
    if _backbone_alone(network, misfit):
        return (
            "it holds the backbone alone, as ImageNet weights do: give the checkpoint of a trained CenterNet"
        )
    flags = _flags(ARCHITECTURES[best], shapes)
    if best != arch.name:
        more = f" {flags}" if flags and flags != "--classes 80" else ""
        return f"the checkpoint fits {best} best ({hits} of {count} tensors): pass --arch {best}{more}"
    if flags:
        return f"it is a {best} with other classes or heads: pass {flags}"
    if misfit.extra and not misfit.missing and not misfit.misshaped:
        return "leave the extra tensors out: pass --no-strict (strict=False)"
    return "the file is not complete, or belongs to a changed network"


def _flags(arch: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The options with which the whole checkpoint fits; nothing where none do."""
    options = infer_options(arch, shapes)
    if options is None:
        return ""
    network = build_network(arch, options)
    wanted = network.parameters
    given = renamed_offsets(shapes, wanted)
    fits = all(given.get(n) == shape for n, shape in wanted.items() if n in given or n not in network.unused)
    extra = [name for name in given if name not in wanted and not _is_spare(arch, name)]
    return options.flags() if fits and not extra else ""


def _backbone_alone(network: Network, misfit: Misfit) -> bool:
    """Whether all that is missing, and nothing else, lies behind the backbone."""
    heads = tuple(f"{layer.partition('.')[0]}." for layer in final_layers(network))
    behind = [name for name in network.parameters if name.startswith((*_BEHIND_BACKBONE, *heads))]
    needed = [name for name in behind if name not in network.unused]
    return not misfit.misshaped and bool(needed) and set(misfit.missing) == set(needed)


def _check_values(values: Mapping[str, Array], where: str) -> None:
    wild = [name for name, value in values.items() if not np.isfinite(value).all()]
    if wild:
        raise ModelError(
            f"{where}: {len(wild)} tensors hold values that are not finite: {', '.join(wild[:_LISTED])}",
            "the training diverged, or the file is damaged; use an earlier checkpoint",
        )
    negative = [name for name, value in values.items() if name.endswith("running_var") and (value < 0).any()]
    if negative:
        raise ModelError(
            f"{where}: variances below 0: {', '.join(negative[:_LISTED])}", "the file is damaged"
        )
