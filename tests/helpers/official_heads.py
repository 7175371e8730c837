"""Heads as the official network has them, around a given heatmap."""

from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.spec import ModelSpec

OFFICIAL = ModelSpec.model_validate(
    {
        "input": {
            "size": {"rule": "fixed", "width": 64, "height": 64},
            "resize": {"policy": "stretch"},
        },
        "heads": {"heatmap": {"tensor": "hm"}, "box": {"tensor": "wh"}, "offset": {"tensor": "reg"}},
    }
)


def official_heads(maps: npt.NDArray[Any], seed: int = 5) -> dict[str, npt.NDArray[Any]]:
    """Sizes and offsets of the heatmap's type for (N, C, H, W) maps."""
    rng = np.random.default_rng(seed)
    shape = (len(maps), 2, *maps.shape[2:])
    return {
        "hm": maps,
        "wh": rng.uniform(1, 30, shape).astype(maps.dtype),
        "reg": rng.uniform(0, 1, shape).astype(maps.dtype),
    }
