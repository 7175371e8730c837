"""Find the prefixes below which a checkpoint has the names of a network: `find_candidates`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from centernet_trt.builder.export.files.entries import Checkpoint, Entry
from centernet_trt.builder.export.match import rename_offsets
from centernet_trt.builder.export.network import Network

__all__ = ["Candidate", "candidate_below", "count_groups", "find_candidates", "find_names", "is_average"]

# Words in the keys of averaged weights: `ema`, `state_dict_ema`, `modelEma`, `swa_model`, `shadow`.
_AVERAGED = re.compile(r"(?<![a-z])((ema|swa|polyak|averaged?)(?![a-z])|shadow(\.|_param|$))", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SHARE = 0.5  # of the network's tensors that make a prefix worth a closer look


@dataclass(frozen=True)
class Candidate:
    """Tensors below one prefix that may be those of the network.

    Attributes:
        prefix: what their names begin with, keys of dictionaries included; usually with a final dot.
        tensors: all below the prefix, by name without it.
        taken: full names of those that the network has a parameter for.
        missing: parameters of the network that have no tensor, or one of another shape.
        note: where tensors come from that are not below the prefix.
    """

    prefix: str
    tensors: Mapping[str, Entry]
    taken: frozenset[str]
    missing: tuple[str, ...]
    note: str = ""

    @property
    def averaged(self) -> bool:
        """Whether they are an average of the weights (EMA)."""
        return is_average(self.prefix)

    @property
    def shown(self) -> str:
        """The prefix in messages."""
        return repr(self.prefix) if self.prefix else "no prefix"


def is_average(name: str) -> bool:
    """Whether a key or a prefix says that the weights below it are averaged."""
    return bool(_AVERAGED.search(_CAMEL.sub("_", name)))


def find_candidates(checkpoint: Checkpoint, network: Network) -> Iterator[Candidate]:
    """Every prefix below which a good part of the network's names is found, the shortest first."""
    wanted = network.parameters
    least = _SHARE * (len(wanted) - len(network.unused))
    plain = find_names(checkpoint.tensors, wanted)
    for prefix, _ in sorted(plain.items(), key=lambda item: len(item[0])):
        if len(plain[prefix]) >= least:
            yield candidate_below(checkpoint, network, prefix)
    for prefix, names in _find_joined(checkpoint.tensors, wanted).items():
        if len(names) >= least and len(plain.get(prefix, ())) < least:
            tensors = {name: checkpoint.tensors[full] for name, full in names.items()}
            yield Candidate(prefix, tensors, frozenset(names.values()), _missing(network, tensors))


def candidate_below(checkpoint: Checkpoint, network: Network, prefix: str) -> Candidate:
    """The tensors below a prefix."""
    wanted = network.parameters
    full = {name.removeprefix(prefix): name for name in checkpoint.tensors if name.startswith(prefix)}
    renamed = rename_offsets(full, wanted)
    tensors = {name: checkpoint.tensors[place] for name, place in renamed.items()}
    taken = frozenset(renamed[name] for name in wanted if name in renamed)
    return Candidate(prefix, tensors, taken, _missing(network, tensors))


def _missing(network: Network, tensors: Mapping[str, Entry]) -> tuple[str, ...]:
    """Parameters that the tensors lack or have in another shape."""

    def fits(name: str, shape: tuple[int, ...]) -> bool:
        if name not in tensors:
            return name in network.unused
        return bool(tensors[name].problem) or tensors[name].shape == shape

    return tuple(name for name, shape in network.parameters.items() if not fits(name, shape))


def find_names(names: Iterable[str], wanted: Mapping[str, object]) -> dict[str, set[str]]:
    """Wanted names that the checkpoint's names end with, by what is before them."""
    longest = max(map(len, wanted))
    found: dict[str, set[str]] = {}
    for full in names:
        start = 0 if len(full) <= longest else full.find(".", len(full) - longest - 1) + 1
        while start or len(full) <= longest:
            if full[start:] in wanted:
                found.setdefault(full[:start], set()).add(full[start:])
            start = full.find(".", start) + 1
            if not start:
                break
    return found


def _find_joined(names: Iterable[str], wanted: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """The same for averages whose names have lost their dots (`ema_conv1_weight`): full names by wanted name."""
    found: dict[str, dict[str, str]] = {}
    averaged = [name for name in names if is_average(name)]
    for joint in ("_", ""):
        joined = {name.replace(".", joint): name for name in wanted}
        longest = max(map(len, joined))
        for full in averaged:
            first = max(full.rfind(".") + 1, len(full) - longest, 1)
            for start in range(first, len(full)):
                if full[start:] in joined:
                    found.setdefault(full[:start], {})[joined[full[start:]]] = full
    return found


def count_groups(names: Iterable[str], prefix: str, others: Iterable[str] = ()) -> dict[str, int]:
    """Count tensors by the other prefix that they are below, or the first part of their names that differs."""
    parts = prefix.split(".")[:-1]
    nested = [other for other in others if other.startswith(prefix)]
    groups: dict[str, int] = {}
    for name in names:
        own = name.split(".")
        same = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), len(parts))
        group = next((p.rstrip(".") for p in nested if name.startswith(p)), ".".join(own[: same + 1]))
        groups[group] = groups.get(group, 0) + 1
    return groups
