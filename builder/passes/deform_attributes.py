"""Read the attributes of deformable convolutions in every public spelling: read_attributes."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.diagnose import FOREIGN_DOMAIN, operator_name
from centernet_trt.errors import ModelError

__all__ = ["SCALARS", "label", "read_attributes"]

SCALARS = (
    "stride_h",
    "stride_w",
    "pad_h",
    "pad_w",
    "dilation_h",
    "dilation_w",
    "groups",
    "offset_groups",
    "use_mask",
)
"""What torchvision's operator takes as inputs behind its tensors; its first version had no mask."""

# What an attribute says -> its names in public use, the standard's first.
_NAMES: dict[str, tuple[str, ...]] = {
    "stride": ("strides", "stride"),
    "pad": ("pads", "padding", "pad", "paddings"),
    "pad_begin": ("pads_begin",),
    "pad_end": ("pads_end",),
    "dilation": ("dilations", "dilation", "dilate", "dilates"),
    "group": ("group", "groups", "num_group", "num_groups", "n_weight_grps", "weight_groups"),
    "offset_group": (
        "offset_group",
        "offset_groups",
        "deformable_groups",
        "deformable_group",
        "deform_groups",
        "deform_group",
        "num_deformable_group",
        "num_deformable_groups",
        "n_offset_grps",
    ),
    "kernel": ("kernel_shape", "kernel_size", "kernel"),
    "out": ("out_channels", "out_channel", "output_channels", "num_output", "num_filter", "num_filters"),
    "in": ("in_channels", "in_channel", "input_channels"),
    "mask": ("use_mask", "with_mask", "modulated"),
    "bias": ("with_bias", "use_bias", "bias"),
    "no_bias": ("no_bias",),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_AXES = ("stride", "pad", "dilation", "kernel")  # may be given as NAME_h and NAME_w
# Attributes that do not change what is computed.
_HARMLESS = frozenset(
    {"im2col_step", "name", "info", "version", "workspace", "namespace", "plugin_version", "plugin_namespace"}
    | {"plugin_name", "plugin_type", "out_shape", "output_shape", "cudnn_off", "cudnn_tune"}
)
# Attributes with only one value that is supported.
_FIXED = {"auto_pad": ("notset", "explicit", ""), "layout": ("nchw", "none", ""), "data_format": ("nchw",)}
_FIXED["bilinear_interpolation_pad"] = ("1", "true")  # zeros outside, as DeformConv has it


def label(node: NodeProto) -> str:
    """The node as messages name it."""
    domain = "ai.onnx" if node.domain in ("", FOREIGN_DOMAIN) else node.domain
    return f"deformable convolution {node.name or node.output[0]!r} ({domain}.{operator_name(node)})"


def read_attributes(node: NodeProto, given: Mapping[str, Any] | None = None) -> dict[str, list[int]]:
    """Read all attributes of a deformable convolution.

    Args:
        node: of any variant.
        given: further values by attribute name, such as those of scalar inputs.

    Returns:
        What is stated -> its numbers, with the keys `stride`, `pad`, `dilation`, `group`, `offset_group`, `kernel`, `out`,
        `in`, `mask` and `bias`; without what is not stated.

    Raises:
        ModelError: an attribute is unknown or cannot be read, or two contradict each other.
    """
    found: dict[str, list[int]] = {}
    sides: dict[str, dict[str, int]] = {}
    for name, value in [*_stated(node), *(given or {}).items()]:
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        plain = re.sub(r"_[is]$", "", plain)  # some exporters keep the type that torch's symbolics append
        base, _, axis = plain.rpartition("_")
        if plain in _HARMLESS:
            continue
        if plain in _FIXED:
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            if text.lower() not in _FIXED[plain]:
                raise ModelError(
                    f"{label(node)}: expected {name} = {_FIXED[plain][0].upper()}, got {text}",
                    "export the layer with explicit padding, channels first",
                )
        elif plain in _ROLES:
            _put(node, found, _ROLES[plain], _numbers(node, name, value))
        elif axis in ("h", "w") and _ROLES.get(base) in _AXES:
            (number,) = _numbers(node, name, value, one=True)
            sides.setdefault(_ROLES[base], {})[axis] = number
        else:
            raise _unknown(node, name, value)
    for role, pair in sides.items():
        if len(pair) != 2:
            raise ModelError(
                f"{label(node)}: expected {role} of both axes (_h and _w), got {pair}",
                "export the layer with both",
            )
        _put(node, found, role, [pair["h"], pair["w"]])
    if "pad_begin" in found or "pad_end" in found:
        ends = [*found.pop("pad_begin", []), *found.pop("pad_end", [])]
        _put(node, found, "pad", ends)
    if "no_bias" in found:
        _put(node, found, "bias", [int(not found.pop("no_bias")[0])])
    return found


def _stated(node: NodeProto) -> Iterator[tuple[str, Any]]:
    for attr in node.attribute:
        value = helper.get_attribute_value(attr)
        yield attr.name, value
        if attr.name == "info" and value:
            try:
                info = json.loads(value)
                yield from info.items()
            except (ValueError, AttributeError):
                raise ModelError(
                    f"{label(node)}: expected the attribute info as a JSON object, got {value!r}",
                    "export with attributes: stride, padding, dilation, deformable_groups",
                ) from None


def _put(node: NodeProto, found: dict[str, list[int]], role: str, value: list[int]) -> None:
    old = found.setdefault(role, value)
    if old != value and set(old) | set(value) != {value[0]}:
        raise ModelError(
            f"{label(node)}: two attributes contradict each other: {role} {old} and {value}",
            "export the layer with one of them",
        )


def _unknown(node: NodeProto, name: str, value: Any) -> ModelError:
    near = g.near_names(name, list(_ROLES), 3)
    like = f" (near names: {', '.join(near)})" if near else ""
    shown = value.decode(errors="replace") if isinstance(value, bytes) else value
    return ModelError(
        f"{label(node)}: the attribute {name} = {shown!s:.60} is unknown{like}, and what it changes is not known",
        "export with the standard's names (strides, pads, dilations, group, offset_group), or with mmcv's or torchvision's; "
        "remove the attribute if it does not change the result",
    )


def _numbers(node: NodeProto, name: str, value: Any, *, one: bool = False) -> list[int]:
    """The whole numbers of an attribute's value, which may be a number, a list, a tensor or a text of numbers.

    Raises:
        ModelError: it holds anything else, or more than `one`.
    """
    if isinstance(value, TensorProto):
        value = g.as_array(value)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    shown = str(value)
    if isinstance(value, str):
        text = value.strip().strip("[]()").replace("x", ",")
        words = [word for word in re.split(r"[,\s]+", text) if word]
        value = [{"true": "1", "false": "0"}.get(word.lower(), word) for word in words]
    try:
        exact = np.ravel(np.asarray(value)).astype(np.float64)
    except (TypeError, ValueError):
        exact = np.array([])
    found = [int(number) for number in exact if np.isfinite(number) and number == int(number)]
    if not found or len(found) != len(exact) or (one and len(found) != 1):
        raise ModelError(
            f"{label(node)}: expected {'a whole number' if one else 'whole numbers'} as {name}, got {shown:.60}",
            "export the layer with numbers as its attributes",
        )
    return found
