"""Hypothesis strategies for decode cases: specs of every kind, and heads full of ties, NaN and infinities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.spec import ModelSpec

SIZE = {"rule": "fixed", "width": 240, "height": 240}  # a multiple of every stride drawn below
CONTENTS = ("noise", "ties", "constant", "specials", "smooth", "steps", "zeros")


@dataclass(frozen=True)
class Case:
    """One decode call."""

    spec: ModelSpec
    heads: dict[str, npt.NDArray[Any]]
    placements: list[Placement]
    threshold: float
    top_k: list[int]
    options: dict[str, Any]
    seed: int
    resident: int


def heatmap(rng: np.random.Generator, content: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Stored values of the kinds that break decoders."""
    noise = rng.normal(0, 2, shape).astype(np.float32)
    if content == "ties":
        return np.round(noise)
    if content == "constant":
        return np.full(shape, rng.choice([0.0, -0.0, 1.5, -3.0, np.inf, -np.inf]), dtype=np.float32)
    if content == "specials":
        palette = np.array(
            [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 30.0, 31.0, 1e-8, -1e-8], dtype=np.float32
        )
        return rng.choice(palette, shape)
    if content == "zeros":  # of both signs, which are equals
        return rng.choice(np.array([0.0, -0.0], dtype=np.float32), shape)
    if content == "smooth":
        return np.asarray(np.cumsum(noise, axis=-1) / 4, dtype=np.float32)
    if content == "steps":  # plateaus with borders
        coarse = np.round(rng.normal(0, 2, (*shape[:2], shape[2] // 3 + 1, shape[3] // 5 + 1)))
        level = np.repeat(np.repeat(coarse, 3, axis=2), 5, axis=3)[:, :, : shape[2], : shape[3]]
        return np.ascontiguousarray(level, dtype=np.float32)
    return noise


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any spec that the decode kernel takes."""
    pick = lambda *options: draw(st.sampled_from(options))
    extras: list[dict[str, Any]] = []
    for i in range(draw(st.integers(0, 3))):
        common = {"name": f"extra{i}", "tensor": f"e{i}"}
        if draw(st.booleans()):
            extras.append(common | {"kind": "raw", "channels": draw(st.integers(1, 5))})
        else:
            extras.append(
                common
                | {
                    "kind": "points",
                    "points": draw(st.integers(1, 5)),
                    "units": pick("cells", "input", "box"),
                    "origin": pick("cell", "centre", "top_left"),
                    "order": pick("xy", "yx"),
                }
            )
    heads: dict[str, Any] = {
        "heatmap": {"tensor": "hm", "activation": pick("logits", "probability")},
        "box": {
            "tensor": "box",
            "encoding": pick("wh", "ltrb", "log_wh"),
            "units": pick("cells", "input"),
            "order": pick("xy", "yx"),
        },
        "extra": extras,
    }
    if draw(st.booleans()):
        heads["offset"] = {"tensor": "off", "order": pick("xy", "yx")}
    return ModelSpec.model_validate(
        {
            "input": {"size": SIZE, "resize": {"policy": "stretch"}},
            "heads": heads,
            "stride": pick(1, 2, 4, 8),
            "cell_offset": pick(0.0, 0.5, 0.25),
            "plateau": pick("all", "first"),
            "clip": draw(st.booleans()),
        }
    )


@st.composite
def cases(draw: st.DrawFn, max_side: int = 40, max_k: int = 64) -> Case:
    """A spec, heads of small maps, and a plan small enough that they reach every path."""
    spec = draw(specs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    # Widths around the vector's 4 and 8 cells are met more often than others.
    height = draw(st.integers(1, max_side))
    width = draw(st.one_of(st.integers(1, max_side), st.sampled_from([4, 8, 16, 24, 32])))
    dtypes = {name: draw(st.sampled_from([np.float16, np.float32])) for name in spec.heads.tensors}
    heads: dict[str, npt.NDArray[Any]] = {}
    with np.errstate(over="ignore"):
        for name, channels in spec.heads.channels().items():
            shape = (batch, channels or classes, height, width)
            if name == "hm":
                values = heatmap(rng, draw(st.sampled_from(CONTENTS)), shape)
            else:
                values = rng.normal(1, 2, shape).astype(np.float32)
            heads[name] = values.astype(dtypes[name])
    placements = []
    for _ in range(batch):
        w, h = (int(v) for v in rng.integers(1, 500, 2))
        scale = rng.uniform(0.2, 4, 2)
        shift = rng.uniform(-50, 50, 2)
        placements.append(
            Placement(w, h, 240, 240, *map(float, scale), *map(float, shift), True, True, 0, 0, 240, 240, 0)
        )
    rows = draw(st.integers(1, max_k))
    top_k = [draw(st.integers(1, rows)) for _ in range(batch)]
    list_keys = rows + draw(st.integers(0, 8))
    buffer_keys = max(list_keys + 1, 1 << (list_keys - 1).bit_length()) + draw(st.integers(0, 40))
    options = {
        "rows": rows,
        "skew": draw(st.sampled_from([0, 0, 1, 3])),
        "threads": draw(st.sampled_from([32, 64, 96, 256])),
        "list_keys": list_keys,
        "buffer_keys": buffer_keys,
    }
    threshold = draw(st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.5, 0.9, 1.0]))
    seed, resident = draw(st.integers(0, 2**31)), draw(st.integers(1, 3))
    return Case(spec, heads, placements, threshold, top_k, options, seed, resident)
