"""Infer the architecture of a checkpoint, and load its tensors into a network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.export.files.entries import Entry
from centernet_trt.builder.export.network import Network
from centernet_trt.builder.export.registry import ARCHITECTURES, Architecture
from centernet_trt.builder.graph.edit import near_names
from centernet_trt.errors import ModelError

__all__ = [
    "Fit",
    "Options",
    "Shapes",
    "build_network",
    "final_layers",
    "infer_architecture",
    "infer_options",
    "is_bookkeeping",
    "load_state_dict",
    "rename_offsets",
]

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

# Counters of training steps.
_BOOKKEEPING = ("num_batches_tracked",)
# Names of the convolution that predicts offsets and mask: official, mmcv, and mmcv before version 2.
_OFFSET_NAMES = (".conv_offset_mask.", ".conv_offset.", "_offset.")
# What ImageNet weights of a backbone lack.
_BEHIND_BACKBONE = ("deconv_layers.", "neck.", "bbox_head.", "dla_up.", "ida_up.")
_LISTED = 8  # names of each kind in an error; the total count is always given


@dataclass(frozen=True)
class Options:
    """Options of a network of one architecture.

    Attributes:
        classes: channels of the heatmap.
        heads: channels of the outputs that differ from the architecture's defaults; 0 for an absent output.
        head_conv: width inside the heads; None for the architecture's default.
    """

    classes: int
    heads: Mapping[str, int] = field(default_factory=dict)
    head_conv: int | None = None

    def flags(self) -> str:
        """The options as flags of `centernet-trt export`; the classes are always included."""
        words = [f"--classes {self.classes}"]
        if self.heads:
            words.append("--heads " + ",".join(f"{name}={count}" for name, count in self.heads.items()))
        if self.head_conv is not None:
            words.append(f"--head-conv {self.head_conv}")
        return " ".join(words)


def is_bookkeeping(name: str) -> bool:
    """Whether a tensor only counts training steps."""
    return name.endswith(_BOOKKEEPING)


class Fit(NamedTuple):
    """How well a checkpoint fits an architecture: `hits` of its `size` tensors; `score` is 1 for a perfect fit."""

    score: float
    name: str
    hits: int
    size: int


def infer_architecture(shapes: Shapes) -> Fit | None:
    """Return the architecture that fits best; None if few tensors fit.

    Names and shapes count. The heads are compared with the options of the checkpoint itself, so that the number of
    classes does not matter.
    """
    best = Fit(0, "", 0, 0)
    for arch in ARCHITECTURES.values():
        options = infer_options(arch, shapes)
        network = arch.network() if options is None else build_network(arch, options)
        wanted = network.parameters
        given = rename_offsets(shapes, wanted)
        hits = sum(given.get(name) == shape for name, shape in wanted.items())
        known = sum(not is_bookkeeping(name) for name in given)
        score = 2 * hits / (len(wanted) + known)
        if score > best.score:
            best = Fit(score, arch.name, hits, len(wanted))
    return best if best.score >= 0.3 else None


def infer_options(arch: Architecture, shapes: Shapes) -> Options | None:
    """Infer classes, heads and head width from a checkpoint; None if it has no heatmap head of this architecture."""
    first = arch.network()
    finals = final_layers(first)
    layer = next(layer for layer, head in finals.items() if head == arch.heatmap)
    suffix = layer.removeprefix(arch.heatmap)
    found: dict[str, tuple[int, ...]] = {}
    if arch.open_heads:
        # A head of the official code has the name of its output; without a middle layer it is one 1x1 convolution.
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
    """Build the network with these options; raises as `Architecture.network`."""
    return arch.network(options.classes, options.heads, options.head_conv)


def final_layers(network: Network) -> dict[str, str]:
    """Last layer with weights -> the output that it makes (a final sigmoid is skipped)."""
    by_output = {node.output[0]: node for node in network.nodes}
    finals: dict[str, str] = {}
    for head in network.outputs:
        node = by_output[head.name]
        if node.op_type == "Sigmoid":
            node = by_output[node.input[0]]
        finals[node.input[1].removesuffix(".weight")] = head.name
    return finals


def rename_offsets(tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the offset layers of deformable convolutions to the names that the network uses."""
    used = next((part for part in _OFFSET_NAMES[:2] if any(part in name for name in wanted)), "")
    if not used:
        return dict(tensors)
    renamed: dict[str, Any] = {}
    for name, value in tensors.items():
        candidates = [name.replace(other, used) for other in _OFFSET_NAMES if other in name]
        renamed[next((c for c in candidates if c in wanted), name)] = value
    return renamed


def load_state_dict(
    arch: Architecture, network: Network, tensors: Mapping[str, Entry], *, where: str, strict: bool = True
) -> dict[str, Array]:
    """Match the tensors of a checkpoint with the parameters of a network.

    Args:
        arch: architecture of the network.
        network: from `arch.network`.
        tensors: by checkpoint name; float types are converted, offset layers may have any of their public names. Those
            that the graph reads are read.
        where: names the checkpoint in errors.
        strict: refuse tensors that the network has no parameter for.

    Returns:
        The float32 value of every parameter that the graph reads.

    Raises:
        ModelError: missing, extra or misshaped tensors, each listed; integers; values that are not finite, or negative
            variances.
    """
    wanted = network.parameters
    given = rename_offsets(tensors, wanted)
    shapes = {name: entry.shape for name, entry in given.items()}
    misfit = Misfit(
        missing=[name for name in wanted if name not in given and name not in network.unused],
        misshaped=[name for name in wanted if name in given and shapes[name] != wanted[name]],
        extra=[name for name in given if name not in wanted and not _is_spare(arch, name)] if strict else [],
    )
    if misfit.any():
        listed = misfit.describe(network, shapes)
        raise ModelError(
            f"{where}: expected the tensors of {arch.name}:\n{listed}", _advice(arch, network, shapes, misfit)
        )
    values = {name: _as_float(name, given[name], where) for name in wanted if name not in network.unused}
    _check_values(values, where)
    return values


@dataclass(frozen=True)
class Misfit:
    """Differences between a checkpoint and a network: names of tensors.

    Attributes:
        missing: that the checkpoint lacks.
        misshaped: of another shape.
        extra: that the network has no parameter for.
    """

    missing: list[str]
    misshaped: list[str]
    extra: list[str]

    def any(self) -> bool:
        """Whether there is any difference."""
        return bool(self.missing or self.misshaped or self.extra)

    def describe(self, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Count each kind, and list its first tensors, one per line."""
        wanted = network.parameters
        lines = _list_names("missing", self.missing, lambda name: _near(name, self.extra))
        lines += _list_names(
            "misshaped",
            self.misshaped,
            lambda name: f": expected {list(wanted[name])}, got {list(shapes[name])}",
        )
        lines += _list_names("extra", self.extra, lambda name: f" {list(shapes[name])}")
        return "\n".join(lines)


def _is_spare(arch: Architecture, name: str) -> bool:
    return is_bookkeeping(name) or name.startswith(arch.spare)


def _list_names(kind: str, names: list[str], describe: Callable[[str], str]) -> list[str]:
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
    """The hint: another architecture, other classes or heads, or another file."""
    fit = infer_architecture(shapes)
    if fit is None:
        return f"the checkpoint fits none of {', '.join(ARCHITECTURES)}"
    _, best, hits, count = fit
    if _backbone_alone(network, misfit):
        return (
            "it holds only the backbone, as ImageNet weights do: give the checkpoint of a trained CenterNet"
        )
    flags = _flags(ARCHITECTURES[best], shapes)
    if best != arch.name:
        more = f" {flags}" if flags and flags != "--classes 80" else ""
        return f"the checkpoint fits {best} best ({hits} of {count} tensors): pass --arch {best}{more}"
    if flags:
        return f"it is a {best} with other classes or heads: pass {flags}"
    if misfit.extra and not misfit.missing and not misfit.misshaped:
        return "ignore the extra tensors: pass --no-strict (strict=False)"
    return "the file is incomplete, or belongs to a modified network"


def _flags(arch: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The options with which the whole checkpoint fits; empty if there are none."""
    options = infer_options(arch, shapes)
    if options is None:
        return ""
    network = build_network(arch, options)
    wanted = network.parameters
    given = rename_offsets(shapes, wanted)
    fits = all(given.get(n) == shape for n, shape in wanted.items() if n in given or n not in network.unused)
    extra = [name for name in given if name not in wanted and not _is_spare(arch, name)]
    return options.flags() if fits and not extra else ""


def _backbone_alone(network: Network, misfit: Misfit) -> bool:
    """Whether exactly the parameters behind the backbone are missing."""
    heads = tuple(f"{layer.partition('.')[0]}." for layer in final_layers(network))
    behind = [name for name in network.parameters if name.startswith((*_BEHIND_BACKBONE, *heads))]
    needed = [name for name in behind if name not in network.unused]
    return not misfit.misshaped and bool(needed) and set(misfit.missing) == set(needed)


def _as_float(name: str, entry: Entry, where: str) -> Array:
    value = entry.read()
    if not np.issubdtype(value.dtype, np.floating):
        # Integers are weights only together with a scale, which no state_dict of these networks has.
        raise ModelError(
            f"{where}: tensor {name!r} has type {value.dtype}, expected floating point; integers are quantised weights",
            "give the weights before quantisation",
        )
    return np.ascontiguousarray(value, np.float32)


def _check_values(values: Mapping[str, Array], where: str) -> None:
    wild = [name for name, value in values.items() if not np.isfinite(value).all()]
    if wild:
        raise ModelError(
            f"{where}: {len(wild)} tensors have NaN or infinite values: {', '.join(wild[:_LISTED])}",
            "the training diverged, or the file is damaged; use an earlier checkpoint",
        )
    negative = [name for name, value in values.items() if name.endswith("running_var") and (value < 0).any()]
    if negative:
        raise ModelError(
            f"{where}: negative variances: {', '.join(negative[:_LISTED])}",
            "the file is damaged: download it again",
        )
