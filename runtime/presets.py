"""Presets of ModelSpec, and reading a spec from TOML or JSON."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from centernet_trt.errors import SpecError
from centernet_trt.runtime.spec import ModelSpec

# The official per-channel statistics of pixels / 255, blue first. Source: xingyizhou/CenterNet, datasets/coco.py.
_OFFICIAL_MEAN = (0.40789654, 0.44719302, 0.47026115)
_OFFICIAL_STD = (0.28863828, 0.27408164, 0.27809835)


def _official(multiple: int) -> dict[str, Any]:
    return {
        "input": {
            "size": {"rule": "pad", "multiple": multiple},
            "resize": {"policy": "keep_res"},
            "channel_order": "bgr",
            "scale": 1 / 255,
            "mean": _OFFICIAL_MEAN,
            "std": _OFFICIAL_STD,
        },
        "heads": {
            "heatmap": {"tensor": "hm", "activation": "logits"},
            "box": {"tensor": "wh", "encoding": "wh", "units": "cells"},
            "offset": {"tensor": "reg"},
        },
        "class_names": "coco",
    }


def _mmdet() -> dict[str, Any]:
    # Source: mmdetection 2.25 configs/centernet; statistics are of 0..255 RGB, the sigmoid is inside the model.
    return {
        "input": {
            "size": {"rule": "pad", "multiple": 32},
            "resize": {"policy": "keep_res"},
            "channel_order": "rgb",
            "mean": (123.675, 116.28, 103.53),
            "std": (58.395, 57.12, 57.375),
        },
        "heads": {
            "heatmap": {"tensor": "center_heatmap", "activation": "probability"},
            "box": {"tensor": "wh", "encoding": "wh", "units": "cells"},
            "offset": {"tensor": "offset"},
        },
        "class_names": "coco",
    }


def _centerface() -> dict[str, Any]:
    # Source: Star-Clouds/CenterFace, prj-python/centerface.py; tensor names of the public ONNX file.
    return {
        "input": {
            "size": {"rule": "multiple", "multiple": 32},
            "resize": {"policy": "stretch"},
            "channel_order": "rgb",
        },
        "heads": {
            "heatmap": {"tensor": "537", "activation": "probability"},
            "box": {"tensor": "538", "encoding": "log_wh", "units": "cells", "order": "yx"},
            "offset": {"tensor": "539", "order": "yx"},
            "extra": [
                {
                    "kind": "points",
                    "name": "landmarks",
                    "tensor": "540",
                    "points": 5,
                    "units": "box",
                    "origin": "top_left",
                    "order": "yx",
                }
            ],
        },
        "cell_offset": 0.5,
        "clip": True,
        "nms_iou": 0.3,
        "threshold": 0.5,
        "class_names": ["face"],
    }


def _ttf_ltrb() -> dict[str, Any]:
    # Source: 610265158/mobilenetv3_centernet; the box head is in input pixels, and there is no half-cell shift.
    return {
        "input": {
            "size": {"rule": "fixed", "width": 512, "height": 512},
            "resize": {"policy": "letterbox"},
            "channel_order": "rgb",
        },
        "heads": {
            "heatmap": {"tensor": "hm", "activation": "logits"},
            "box": {"tensor": "wh_ltrb", "encoding": "ltrb", "units": "input"},
        },
        "class_names": "coco",
    }


def _multi_pose() -> dict[str, Any]:
    # Source: xingyizhou/CenterNet, lib/opts.py and lib/models/decode.py, task multi_pose: 17 joints as vectors from the
    # cell. The joints' own heatmap and its offsets, which refine them there, are returned as they are.
    spec = _official(32)
    spec["heads"]["extra"] = [
        {"kind": "points", "name": "hps", "tensor": "hps", "points": 17, "units": "cells", "origin": "cell"},
        {"kind": "raw", "name": "hm_hp", "tensor": "hm_hp", "channels": 17},
        {"kind": "raw", "name": "hp_offset", "tensor": "hp_offset", "channels": 2},
    ]
    return spec | {"class_names": ["person"], "category_ids": [1]}


def _fairmot() -> dict[str, Any]:
    # Source: ifzhang/FairMOT, src/lib/datasets/dataset/jde.py and src/lib/models/decode.py: RGB / 255 without mean and
    # std; four distances in cells. Its border of 127.5 is 128 in a byte image; it samples with INTER_AREA, here linearly.
    return {
        "input": {
            "size": {"rule": "fixed", "width": 1088, "height": 608},
            "resize": {"policy": "letterbox", "pad_value": 128},
            "channel_order": "rgb",
            "scale": 1 / 255,
        },
        "heads": {
            "heatmap": {"tensor": "hm", "activation": "logits"},
            "box": {"tensor": "wh", "encoding": "ltrb", "units": "cells"},
            "offset": {"tensor": "reg"},
            "extra": [{"kind": "raw", "name": "id", "tensor": "id", "channels": 128}],
        },
        "threshold": 0.4,
        "class_names": ["person"],
        "category_ids": [1],
    }


_PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "official": lambda: _official(32),
    "official-hourglass": lambda: _official(128),
    "mmdet": _mmdet,
    "centerface": _centerface,
    "ttf-ltrb": _ttf_ltrb,
    "multi_pose": _multi_pose,
    "fairmot": _fairmot,
}
PRESET_NAMES: tuple[str, ...] = tuple(_PRESETS)


def preset(name: str) -> ModelSpec:
    """Return a preset spec.

    Args:
        name: one of PRESET_NAMES.

    Returns:
        The spec, with the official tensor names and sizes of that family.

    Raises:
        SpecError: there is no such preset.
    """
    return spec_from_mapping({"preset": name})


def spec_from_mapping(data: Mapping[str, Any], where: str = "the spec") -> ModelSpec:
    """Make a spec from plain data.

    With a key `preset`, the other keys override that preset, table by table; a table with another `rule`, `policy` or
    `kind` than the preset's replaces it whole.

    Args:
        data: content of a TOML or JSON file.
        where: source of the data, for error messages.

    Raises:
        SpecError: an unknown key or preset, or a value out of range; each is listed with its path.
    """
    values = dict(data)
    base_name = values.pop("preset", None)
    if base_name is not None:
        if base_name not in _PRESETS:
            raise SpecError(
                f"there is no preset {base_name!r}, which {where} names",
                f"expected one of {', '.join(PRESET_NAMES)}",
            )
        values = _overlay(_PRESETS[base_name](), values)
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(f"{where} is not valid:\n{describe_validation(error)}", _FIELDS_HINT) from None


_FIELDS_HINT = "see `ModelSpec` for the fields, or start from a preset: " + ", ".join(_PRESETS)


def describe_validation(error: ValidationError) -> str:
    """Format pydantic's errors, one per line: the path, what is wrong, and the value found."""
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "(whole)"
        found = "" if item["type"] in ("missing", "value_error") else f" (found {item['input']!r:.80})"
        lines.append(f"  {place}: {item['msg']}{found}")
    return "\n".join(lines)


def read_spec(source: str) -> ModelSpec:
    """Read a spec.

    Args:
        source: name of a preset, or path of a .toml or .json file with the fields of `ModelSpec`, which may have a key
            `preset` (see `spec_from_mapping`).

    Returns:
        The validated spec.

    Raises:
        SpecError: neither a preset nor a readable file, or not a valid spec.
    """
    if source in _PRESETS:
        return preset(source)
    path = Path(source)
    if path.suffix not in (".toml", ".json"):
        raise SpecError(
            f"{source!r} is neither a preset nor a .toml or .json file",
            f"the presets are: {', '.join(PRESET_NAMES)}",
        )
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SpecError(f"cannot read the spec file {path}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, JSONDecodeError and UnicodeDecodeError alike
        raise SpecError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"expected a table in {path}, got a {type(data).__name__}")
    return spec_from_mapping(data, str(path))


_DISCRIMINATORS = ("rule", "policy", "kind")


def _overlay(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            another_kind = any(d in value and value[d] != old.get(d) for d in _DISCRIMINATORS)
            merged[key] = dict(value) if another_kind else _overlay(old, value)
        else:
            merged[key] = value
    return merged
