"""Image, PreprocessParams, DecodeParams: the kernels' parameters, field by field as in `params.cuh`.

Addresses are device addresses as integers, 0 for none. `bytes(struct)` is what a launch or a copy to the device takes.
"""

import ctypes
from ctypes import c_double, c_float, c_int32, c_uint64
from enum import IntEnum

MAX_EXTRA_HEADS = 16


class BoxEncoding(IntEnum):
    """Encoding of the box head: width and height, distances to the edges, or logarithms of width and height."""

    WH = 0
    LTRB = 1
    LOG_WH = 2


class ExtraKind(IntEnum):
    """Whether the channels of an extra head are output as they are or decoded as points."""

    RAW = 0
    POINTS = 1


class ExtraUnits(IntEnum):
    """Units of a head of points: grid cells, network-input pixels, or fractions of the box's sides."""

    CELLS = 0
    INPUT = 1
    BOX = 2


class ExtraOrigin(IntEnum):
    """Origin of the vectors of a head of points: the integer cell, the centre, or the box's top-left corner."""

    CELL = 0
    CENTRE = 1
    TOP_LEFT = 2


class Image(ctypes.Structure):
    """One image of a batch: network coordinate = scale * source coordinate + shift.

    `pixels`: device address of uint8 rows of interleaved `channels` (1, 3 or 4, blue first), `pitch` bytes apart; 0 fills
    the input with `pad_value`. `left`, `top`, `right`, `bottom`: network pixels that the image covers. `threshold`:
    minimum stored heatmap value. `top_k`: maximum number of detections.
    """

    _fields_ = (
        ("pixels", c_uint64),
        ("scale_x", c_double),
        ("scale_y", c_double),
        ("shift_x", c_double),
        ("shift_y", c_double),
        ("pitch", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("channels", c_int32),
        ("left", c_int32),
        ("top", c_int32),
        ("right", c_int32),
        ("bottom", c_int32),
        ("pad_value", c_int32),
        ("half_pixel", c_int32),
        ("replicate", c_int32),
        ("threshold", c_float),
        ("top_k", c_int32),
        ("reserved", c_int32),
    )


class PreprocessParams(ctypes.Structure):
    """Parameters of `preprocess_half` and `preprocess_float`.

    `images`: Image[N]. `levels`: float32 [3][256], the tensor value of each grey level, in the tensor's channel order.
    `output`: (N, 3, height, width) fp16 or fp32. `rgb`: 1 when the tensor's first channel is red.
    """

    _fields_ = (
        ("images", c_uint64),
        ("levels", c_uint64),
        ("output", c_uint64),
        ("width", c_int32),
        ("height", c_int32),
        ("rgb", c_int32),
        ("reserved", c_int32),
    )


class ExtraHead(ctypes.Structure):
    """An extra head (N, channels, H, W); its values start at `column` of every row of the `extra` output."""

    _fields_ = (
        ("data", c_uint64),
        ("channels", c_int32),
        ("half", c_int32),
        ("kind", c_int32),
        ("units", c_int32),
        ("origin", c_int32),
        ("swap", c_int32),
        ("column", c_int32),
        ("reserved", c_int32),
    )


class DecodeParams(ctypes.Structure):
    """Parameters of `decode_half` and `decode_float`, named by the heatmap's type; fields `..._half` give the other types.

    Inputs: `heatmap` (N, classes, H, W), `box` (N, 2 or 4, H, W), `offset` (N, 2, H, W) or 0, `images` Image[N].
    Workspace: `counters` uint32[N][2], zero before the first launch and after each; `keys` of any content.
    Outputs: `count` int32[N], `xyxy` float32[N][rows][4], `score` float32[N][rows], `label` int32[N][rows],
    `extra` float32[N][rows][extra_columns].
    """

    _fields_ = (
        ("heatmap", c_uint64),
        ("box", c_uint64),
        ("offset", c_uint64),
        ("images", c_uint64),
        ("counters", c_uint64),
        ("keys", c_uint64),
        ("count", c_uint64),
        ("xyxy", c_uint64),
        ("score", c_uint64),
        ("label", c_uint64),
        ("extra", c_uint64),
        ("cell_offset", c_double),
        ("classes", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("stride", c_int32),
        ("rows", c_int32),
        ("list_keys", c_int32),
        ("buffer_keys", c_int32),
        ("logits", c_int32),
        ("first", c_int32),
        ("clip", c_int32),
        ("box_encoding", c_int32),
        ("box_cells", c_int32),
        ("box_swap", c_int32),
        ("box_half", c_int32),
        ("offset_half", c_int32),
        ("offset_swap", c_int32),
        ("extra_count", c_int32),
        ("extra_columns", c_int32),
        ("extras", ExtraHead * MAX_EXTRA_HEADS),
    )
