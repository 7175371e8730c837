"""Find the tensors of a graph that could be its heads: HeadCandidate."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.guess.names import head_names, role_of, words_of
from centernet_trt.builder.guess.sizes import Sizes, run_part
from centernet_trt.builder.guess.walk import Follower, Walk

Activation = Literal["none", "sigmoid", "probability", "unknown"]

_HALF = 10  # TensorProto.FLOAT16
_SPREAD = 4.0  # of the random values that activations are tried on
_EXTREMES = (0.0, -0.0, 1e-3, 8.0, -8.0, 20.0, -20.0, 89.0, -89.0, 1e4, -1e4)
_CLAMP = 2e-3  # probabilities may be clamped to within this of 0 and 1, as the official code does in training


@dataclass(frozen=True)
class HeadCandidate:
    """A tensor that could be a head.

    Attributes:
        tensor: its name, as a spec gives it.
        channels: number of its channels.
        grid: its (height, width) in cells, for the input size that the graph was examined with.
        logits: the tensor that it is the sigmoid of, found by comparing values; else None.
        activation: `none` for values without bounds, `sigmoid`, `probability` for sigmoids that were moved or averaged,
            `unknown` for values with a bound that are not a sigmoid's.
        values: (lowest, highest) value on random and extreme inputs of its convolution; None if nothing follows it.
        exponential: whether an `Exp` is applied.
        scaled: whether arithmetic is applied that may belong to a decode behind the head.
        changed_behind: operators that change its values behind a transposition.
        role: what its names say that it is; see `names.role_of`.
        heads: names of heads in public code that its names contain.
        words: lower-case words of the names around it (tensors, nodes, weights), which may hint at its role.
        bias: mean of the convolution's bias; None without one.
        output: whether the tensor is an output of the graph.
    """

    tensor: str
    channels: int
    grid: tuple[int, int]
    logits: str | None
    activation: Activation
    values: tuple[float, float] | None
    exponential: bool
    scaled: bool
    changed_behind: tuple[str, ...]
    role: str | None
    heads: frozenset[str]
    words: frozenset[str]
    bias: float | None
    output: bool


def find_candidates(sizes: Sizes) -> list[HeadCandidate]:
    """Find the head candidates of a graph.

    Args:
        sizes: of the graph; its input has a fixed size.

    Returns:
        The candidates in the graph's order, without tensors whose size cannot be found.
    """
    model = sizes.model
    outputs = {value.name for value in model.graph.output}
    constants = g.initializers(model.graph)
    found = []
    for walk in Follower(model, sizes).walks():
        shape = sizes.get(walk.tensor)
        if len(shape) == 4 and 0 not in shape[1:]:
            bias = None
            (first, *others) = walk.convolutions
            if (
                not others
                and walk.sources == [first.output[0]]
                and len(first.input) > 2
                and (tensor := constants.get(first.input[2])) is not None
            ):
                bias = float(np.mean(g.as_array(tensor), dtype=np.float64))
            found.append(_candidate(sizes, walk, shape, bias, walk.tensor in outputs))
    return found


def _candidate(
    sizes: Sizes, walk: Walk, shape: tuple[int, ...], bias: float | None, output: bool
) -> HeadCandidate:
    activation, logits, values = _activation(sizes, walk)
    own = role_of([walk.tensor])
    return HeadCandidate(
        walk.tensor,
        shape[1],
        (shape[2], shape[3]),
        logits,
        activation,
        values,
        walk.exponential,
        walk.scaled and not walk.reaches_output,
        tuple(walk.changed_behind),
        own or role_of(walk.names),
        head_names([walk.tensor]) or head_names(walk.names),
        words_of(walk.names),
        bias,
        output,
    )


def _activation(sizes: Sizes, walk: Walk) -> tuple[Activation, str | None, tuple[float, float] | None]:
    """Compare the values of a head with the sigmoid of every tensor before it -> activation, logits, bounds."""
    starts = walk.sources
    if walk.path[:1] == starts and walk.only_moves_after(0):
        return "none", None, None
    reached = run_part(
        sizes, {name: _values(sizes, name, seed) for seed, name in enumerate(starts)}, walk.tensor
    )
    if reached is None:
        return "unknown", None, None
    finite = reached[np.isfinite(reached)].astype(np.float64)
    values = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    if values[0] < -1e-3 or values[1] > 1 + 1e-3:
        return ("none" if values[0] < -2 and values[1] > 2 else "unknown"), None, values
    for place in range(len(walk.path) - 1, 0, -1):
        if not walk.only_moves_after(place):
            break
        for before in reversed(walk.path[:place]):
            if _is_sigmoid(sizes, before, walk.path[place]):
                moved = place < len(walk.path) - 1 and sizes.get(before) != sizes.get(walk.tensor)
                return ("probability", None, values) if moved else ("sigmoid", before, values)
    return "unknown", None, values


def _is_sigmoid(sizes: Sizes, before: str, after: str) -> bool:
    """Whether a tensor is the sigmoid of another, clamped at most at its ends."""
    given = _values(sizes, before)
    found = run_part(sizes, {before: given}, after)
    if found is None or found.shape != given.shape or not np.isfinite(found).all():
        return False
    with np.errstate(over="ignore"):
        wanted = 1 / (1 + np.exp(-given.astype(np.float64)))
    low, high = float(found.min()), float(found.max())
    tolerance = 2e-3 if _HALF in (sizes.types.get(before), sizes.types.get(after)) else 2e-6
    return (
        low <= _CLAMP
        and high >= 1 - _CLAMP
        and bool(np.abs(np.clip(wanted, low, high) - found).max() <= tolerance)
    )


def _values(sizes: Sizes, name: str, seed: int = 0) -> NDArray[Any]:
    """Random and extreme values of a tensor's size."""
    rng = np.random.default_rng(seed)
    shape = (1, *sizes.get(name)[1:])
    values = rng.normal(0, _SPREAD, shape).astype(np.float32)
    count = min(values.size, 64 * len(_EXTREMES))
    places = rng.integers(0, values.size, count)
    values.reshape(-1)[places] = np.resize(np.array(_EXTREMES, dtype=np.float32), count)
    return values.astype(np.float16).astype(np.float32) if sizes.types.get(name) == _HALF else values
