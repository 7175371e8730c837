"""Fits a checkpoint's tensors to a network, and says what is wrong where they do not fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.architectures.network import Network
from centernet_trt.builder.architectures.registry import ARCHITECTURES, Architecture
from centernet_trt.builder.checkpoint_fit import (
    best_fit,
    book_keeping,
    final_layers,
    network_of,
    options_of,
    renamed_offsets,
    shapes_of,
)
from centernet_trt.builder.graph import near_names
from centernet_trt.errors import ModelError

__all__ = ["match_checkpoint"]

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
    shapes = shapes_of(given)
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
    options = options_of(arch, shapes)
    if options is None:
        return ""
    network = network_of(arch, options)
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
