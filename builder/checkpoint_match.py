"""Fits a checkpoint's tensors to a network, and says what is wrong where they do not fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.architectures.network import Network
from centernet_trt.builder.architectures.registry import ARCHITECTURES, Architecture
from centernet_trt.builder.graph import near_names
from centernet_trt.errors import ModelError

__all__ = ["best_fit", "match_checkpoint"]

Array = NDArray[Any]

_LISTED = 8  # of each kind of trouble; the counts are always given
# Training's own book-keeping.
_BOOK_KEEPING = ("num_batches_tracked",)
# The convolution that predicts offsets and mask goes by several names: official, mmcv, and mmcv before its version 2.
_OFFSET_NAMES = (".conv_offset_mask.", ".conv_offset.", "_offset.")


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
    given = _renamed(tensors, wanted)
    missing = [name for name in wanted if name not in given and name not in network.unused]
    shapes = {name: tuple(np.shape(given[name])) for name in wanted if name in given}
    misshaped = [name for name, shape in shapes.items() if shape != wanted[name]]
    extra = [name for name in given if name not in wanted and not _is_spare(arch, name)] if strict else []
    if missing or misshaped or extra:
        raise _misfit(arch, network, tensors, given, missing, misshaped, extra, where)
    values = {
        name: np.ascontiguousarray(given[name], np.float32) for name in wanted if name not in network.unused
    }
    _check_values(values, where)
    return values


def best_fit(tensors: Mapping[str, Array]) -> tuple[str, int, int] | None:
    """Return the architecture whose tensors these are most: its name, how many fit, of how many; None if few do.

    Names and shapes count; the last dimension of a head, its classes, does not matter.
    """
    shapes = {name: tuple(np.shape(value)) for name, value in tensors.items()}
    best: tuple[float, str, int, int] | None = None
    for arch in ARCHITECTURES.values():
        wanted = arch.network().parameters
        given = _renamed(shapes, wanted)
        hits = sum(given.get(name) == shape for name, shape in wanted.items())
        known = sum(not name.endswith(_BOOK_KEEPING) for name in given)
        score = 2 * hits / (len(wanted) + known)
        if best is None or score > best[0]:
            best = score, arch.name, hits, len(wanted)
    if best is None or best[0] < 0.3:
        return None
    return best[1:]


def _renamed(tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the offset layers to the name that the network uses."""
    used = next((part for part in _OFFSET_NAMES[:2] if any(part in name for name in wanted)), "")
    if not used:
        return dict(tensors)
    renamed: dict[str, Any] = {}
    for name, value in tensors.items():
        candidates = [name.replace(other, used) for other in _OFFSET_NAMES if other in name]
        renamed[next((c for c in candidates if c in wanted), name)] = value
    return renamed


def _is_spare(arch: Architecture, name: str) -> bool:
    return name.endswith(_BOOK_KEEPING) or name.startswith(arch.spare)


def _misfit(
    arch: Architecture,
    network: Network,
    tensors: Mapping[str, Array],
    given: Mapping[str, Array],
    missing: list[str],
    misshaped: list[str],
    extra: list[str],
    where: str,
) -> ModelError:
    wanted = network.parameters
    lines = [f"{where}: not the tensors of {arch.name}:"]
    lines += _list("missing", missing, lambda name: _near(name, extra))
    lines += _list(
        "misshaped",
        misshaped,
        lambda name: f" is {list(np.shape(given[name]))}, {list(wanted[name])} is needed",
    )
    lines += _list("extra", extra, lambda name: f" {list(np.shape(given[name]))}")
    return ModelError("\n".join(lines), _advice(arch, network, tensors, given, missing, misshaped, extra))


def _list(kind: str, names: list[str], describe: Any) -> list[str]:
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
    arch: Architecture,
    network: Network,
    tensors: Mapping[str, Array],
    given: Mapping[str, Array],
    missing: list[str],
    misshaped: list[str],
    extra: list[str],
) -> str:
    """What to do: another architecture, number of classes or head width, other heads, or another file."""
    fit = best_fit(tensors)
    if fit is not None and fit[0] != arch.name:
        return f"the checkpoint fits {fit[0]} best ({fit[1]} of {fit[2]} tensors): pass --arch {fit[0]}"
    if fit is None:
        return f"the checkpoint fits none of {', '.join(ARCHITECTURES)}"
    if misshaped and not missing:
        advice = _head_advice(arch, network, given, misshaped)
        if advice:
            return advice
    if extra and not missing and not misshaped:
        return "leave them out with strict=False, or declare their heads (heads={name: channels})"
    return "the file is not complete, or belongs to a changed network"


def _head_advice(
    arch: Architecture, network: Network, given: Mapping[str, Array], misshaped: list[str]
) -> str:
    """Say which `classes`, `heads` and `head_conv` the checkpoint has, where only these differ."""
    found: dict[str, int] = {}
    widths: set[int] = set()
    finals = _final_layers(network)
    for name in misshaped:
        here, there = network.parameters[name], np.shape(given[name])
        head = finals.get(name.rpartition(".")[0])
        if len(here) != len(there):
            return ""
        if head is None:
            widths.add(int(there[0]))
            continue
        if there[0] != here[0]:
            found[head] = int(there[0])
        if len(there) > 1 and there[1] != here[1]:
            widths.add(int(there[1]))
    advice = []
    if arch.heatmap in found:
        advice.append(f"the checkpoint has {found.pop(arch.heatmap)} classes: pass that as classes")
    advice += [f"its head {head} has {channels} channels: pass heads" for head, channels in found.items()]
    if len(widths) == 1:
        advice.append(f"its heads are {widths.pop()} wide: pass that as head_conv")
    return "; ".join(advice)


def _final_layers(network: Network) -> dict[str, str]:
    """Layer that makes each output -> the output, over a sigmoid if there is one; Hourglass: all stacks."""
    by_output = {node.output[0]: node for node in network.nodes}
    finals: dict[str, str] = {}
    for head in network.outputs:
        node = by_output[head.name]
        if node.op_type == "Sigmoid":
            node = by_output[node.input[0]]
        layer = node.input[1].removesuffix(".weight")
        finals[layer] = head.name
        # hm.1.1 of the last stack stands for hm.0.1 of the first too.
        stacked = layer.split(".")
        if len(stacked) == 3:
            finals[f"{stacked[0]}.0.{stacked[2]}"] = head.name
    return finals


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
