"""Find the network's tensors among those of a checkpoint: `select_tensors`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from centernet_trt.builder.export.files.checkpoint import object_error
from centernet_trt.builder.export.files.entries import Checkpoint, Entry, unreadable
from centernet_trt.builder.export.match import infer_architecture, is_bookkeeping
from centernet_trt.builder.export.network import Network
from centernet_trt.builder.export.prefixes import (
    Candidate,
    candidate_below,
    count_groups,
    find_candidates,
    find_names,
    is_average,
)
from centernet_trt.builder.export.registry import ARCHITECTURES
from centernet_trt.errors import ModelError

__all__ = ["Selection", "select_tensors"]

# What averages of the parameters alone lack; training code leaves these to the network.
_STATISTICS = ("running_mean", "running_var")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
_TRIED = 4  # prefixes, for the advice where none fits
_LISTED = 8


@dataclass(frozen=True)
class Selection:
    """The tensors of one network.

    Attributes:
        prefix: what their names in the checkpoint begin with, keys of dictionaries included.
        tensors: by name without the prefix: those of the network, and those in the same dictionaries that the network
            may lack a parameter for.
        summary: what was taken and what was left out, one line each.
    """

    prefix: str
    tensors: Mapping[str, Entry]
    summary: tuple[str, ...] = ()


def select_tensors(
    checkpoint: Checkpoint, network: Network, arch: str, *, prefix: str | None = None, averaged: bool = False
) -> Selection:
    """Find the tensors of a network, whatever their names begin with and whatever else is in the checkpoint.

    Args:
        checkpoint: open.
        network: whose parameters are wanted.
        arch: its name, for errors.
        prefix: what the names begin with; the last parts of it suffice. None to find it.
        averaged: take averaged weights (EMA).

    Returns:
        The tensors below the only prefix where the network fits, or the most likely ones if it fits nowhere: the
        differences are then for `load_state_dict` to report.

    Raises:
        ModelError: several prefixes fit and their weights differ; no averaged weights; a prefix that no name has; one
            shard of several; tensors that cannot be read.
    """
    candidates = list(find_candidates(checkpoint, network))
    named = candidates if prefix is None else _below(checkpoint, network, candidates, prefix)
    averages = [c for c in (_completed(c, candidates) for c in named if c.averaged) if not c.missing]
    if averaged and not averages:
        return _misfit(checkpoint, network, arch, _averages(checkpoint, named, arch))
    fits = averages if averaged else [c for c in named if not c.missing]
    fits = [c for c in fits if not c.averaged] or fits
    notes = []
    if len(fits) > 1 and all(_equal(fits[0], other, network) for other in fits[1:]):
        notes.append(f"the same weights are under {', '.join(c.shown for c in fits[1:])}")
        fits = fits[:1]
    if len(fits) > 1:
        options = " or ".join(f"--prefix {c.prefix or repr('')}" for c in fits)
        raise ModelError(
            f"{checkpoint.path}: {len(fits)} sets of tensors fit {arch}, under "
            f"{', '.join(c.shown for c in fits[:_LISTED])}, and their weights differ",
            f"choose one: pass {options}",
        )
    if not fits:
        return _misfit(checkpoint, network, arch, named if prefix is not None else None)
    chosen = fits[0]
    _check_types(checkpoint, network, chosen)
    others = [c for c in candidates if c.prefix != chosen.prefix]
    lines = _summary(checkpoint, chosen, others, network)
    offered = [c.shown for c in averages if not chosen.averaged]
    if offered:
        notes.append(f"EMA weights are under {', '.join(offered)}: pass --ema to take them")
    return Selection(chosen.prefix, _own(checkpoint, chosen, others), (*lines, *notes))


def _below(
    checkpoint: Checkpoint, network: Network, candidates: list[Candidate], prefix: str
) -> list[Candidate]:
    """The candidates that a prefix of the user names: whole, or by its last parts."""
    wanted = prefix.rstrip(".")
    named = [c for c in candidates if c.prefix.rstrip(".") == wanted]
    named = named or [c for c in candidates if wanted and c.prefix.rstrip(".").endswith(f".{wanted}")]
    if named:
        return named
    whole = f"{wanted}." if wanted else ""
    if not any(name.startswith(whole) for name in checkpoint.tensors):
        known = ", ".join(c.shown for c in candidates) or ", ".join(count_groups(checkpoint.tensors, ""))
        raise ModelError(
            f"{checkpoint.path}: no tensor has a name that begins with {prefix!r}",
            f"leave out --prefix, or give one of these: {known}",
        )
    return [candidate_below(checkpoint, network, whole)]


def _completed(average: Candidate, candidates: list[Candidate]) -> Candidate:
    """Complete an average of the parameters alone with the network's own batch-norm statistics."""
    plain = [c for c in candidates if not c.averaged and not c.missing]
    absent = [name for name in average.missing if name.endswith(_STATISTICS) and name not in average.tensors]
    if not absent or len(absent) != len(average.missing) or len(plain) != 1:
        return average
    tensors = {**average.tensors, **{name: plain[0].tensors[name] for name in absent}}
    return replace(
        average,
        tensors=tensors,
        missing=(),
        note=f"its {len(absent)} batch-norm statistics from {plain[0].shown}",
    )


def _equal(first: Candidate, second: Candidate, network: Network) -> bool:
    """Whether two candidates have the same numbers for the network."""
    for name in network.parameters:
        if name in network.unused:
            continue
        a, b = first.tensors[name], second.tensors[name]
        if a.problem or b.problem or not np.array_equal(a.read(), b.read()):
            return False
    return True


def _averages(checkpoint: Checkpoint, named: list[Candidate], arch: str) -> list[Candidate]:
    """The averages, none of which fits; ModelError if there are none."""
    found = [c for c in named if c.averaged]
    if found:
        return found
    if objects := {key: kind for key, kind in checkpoint.objects.items() if is_average(key)}:
        raise object_error(replace(checkpoint, objects=objects))
    groups = [name for name in count_groups(checkpoint.tensors, "") if is_average(name)]
    others = f"; the tensors under {', '.join(groups)} do not have its names" if groups else ""
    plain = [c.shown for c in named if not c.missing]
    raise ModelError(
        f"{checkpoint.path} has no EMA weights that fit {arch}{others}",
        f"leave out --ema: the weights under {plain[0]} fit" if plain else "leave out --ema",
    )


def _misfit(checkpoint: Checkpoint, network: Network, arch: str, named: list[Candidate] | None) -> Selection:
    """The tensors that an error should talk about: those below the prefix where any architecture fits best."""
    shard = _SHARD.search(checkpoint.path.name)
    if shard and checkpoint.format != "shards":
        name = checkpoint.path.name[: shard.start()]
        found = [
            str(path)
            for path in sorted(checkpoint.path.parent.glob("*.index.json"))
            if path.name.startswith(name)
        ]
        raise ModelError(
            f"{checkpoint.path} is one of {int(shard[1])} shards of a checkpoint: it does not have all tensors of {arch}",
            f"give the index of the shards: {(found or ['a file such as model.safetensors.index.json beside them'])[0]}",
        )
    if named:
        chosen = named[0]
    else:
        counts: dict[str, int] = {}
        for known in ARCHITECTURES.values():
            for prefix, names in find_names(checkpoint.tensors, known.network().parameters).items():
                counts[prefix] = max(counts.get(prefix, 0), len(names))
        best = sorted(counts, key=lambda prefix: -counts[prefix])[:_TRIED]
        tried = [candidate_below(checkpoint, network, prefix) for prefix in dict.fromkeys([*best, ""])]
        scores = {c.prefix: _score(checkpoint, c, arch) for c in tried}
        chosen = min(tried, key=lambda c: (c.averaged, -scores[c.prefix]))
        if checkpoint.objects and not scores[chosen.prefix]:
            raise object_error(checkpoint)
    _check_types(checkpoint, network, chosen)
    return Selection(chosen.prefix, _own(checkpoint, chosen, []))


def _score(checkpoint: Checkpoint, candidate: Candidate, arch: str) -> float:
    """How well any architecture fits; the one that is wanted is preferred to a part of another."""
    shapes = {name: entry.shape for name, entry in _own(checkpoint, candidate, []).items()}
    fit = infer_architecture(shapes)
    return fit.score + 0.1 * (fit.name == arch) if fit else 0


def _check_types(checkpoint: Checkpoint, network: Network, chosen: Candidate) -> None:
    problems = {
        name: chosen.tensors[name].problem
        for name in network.parameters
        if name in chosen.tensors and chosen.tensors[name].problem and name not in network.unused
    }
    if problems:
        raise unreadable(str(checkpoint.path), problems)


def _own(checkpoint: Checkpoint, chosen: Candidate, others: list[Candidate]) -> dict[str, Entry]:
    """The candidate's tensors without those of other networks, of optimisers and of settings.

    What is in one dictionary with tensors of the network stays: it may be a layer that the architecture does not have.
    """
    folders = {checkpoint.tensors[full].folder for full in chosen.taken}
    nested = [c.prefix for c in others if c.prefix.startswith(chosen.prefix)]
    roots = tuple(_root(prefix, chosen.prefix) for prefix in nested)

    def is_own(full: str, entry: Entry) -> bool:
        if full in chosen.taken or full not in checkpoint.tensors:
            return True
        return not (entry.is_object or full.startswith(roots) or (folders and entry.folder not in folders))

    return {name: entry for name, entry in chosen.tensors.items() if is_own(chosen.prefix + name, entry)}


def _root(prefix: str, above: str) -> str:
    """A prefix as far as its first part below another one: `ema.` of `ema.model.`."""
    first, dot, _ = prefix[len(above) :].partition(".")
    return above + first + dot


def _summary(
    checkpoint: Checkpoint, chosen: Candidate, others: list[Candidate], network: Network
) -> Iterator[str]:
    """What was taken and what was left out."""
    kind = ", EMA weights" if chosen.averaged else ""
    under = f" under {chosen.shown}" if chosen.prefix else ""
    note = f", {chosen.note}" if chosen.note else ""
    count = sum(name not in network.unused for name in network.parameters)
    yield f"weights: {count} tensors{under} of {checkpoint.path.name}{kind}{note}"
    left = [
        name
        for name, entry in checkpoint.tensors.items()
        if name not in chosen.taken
        and not entry.is_object
        and not (name.startswith(chosen.prefix) and is_bookkeeping(name))
    ]
    groups = count_groups(left, chosen.prefix, [c.prefix for c in others])
    if groups:
        shown = [f"{name} ({size})" for name, size in list(groups.items())[:_LISTED]]
        more = f" and {len(groups) - _LISTED} more" if len(groups) > _LISTED else ""
        yield f"left out, with the number of tensors: {', '.join(shown)}{more}"
    plain = [c.shown for c in others if not c.missing and not c.averaged]
    if chosen.averaged and plain:
        yield f"without --ema: the weights under {plain[0]}"
    if checkpoint.swaps_ema and (chosen.averaged or any(c.averaged for c in others)):
        yield (
            "mmcv and mmengine exchange the two on saving: the average is then under the plain names, and the tensors "
            "named ema are the weights of the last step"
        )
