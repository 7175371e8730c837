"""Kernels: the compiled CUDA kernels; their parameters from a spec, and Detections from their output rows."""

from collections.abc import Mapping
from typing import Any

from centernet_trt.cache import cache_dir
from centernet_trt.errors import SpecError
from centernet_trt.kernels.compile import (
    PROGRAMS,
    check_driver,
    compile_module,
    find_toolchain,
    sm_name,
)
from centernet_trt.kernels.launch import DecodeLayout, DecodePlan, DecodeRows, PreprocessPlan
from centernet_trt.kernels.structs import (
    MAX_EXTRA_HEADS,
    BoxEncoding,
    DecodeParams,
    ExtraHead,
    ExtraKind,
    ExtraOrigin,
    ExtraUnits,
    Image,
    PreprocessParams,
)
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.resources import Module, Stream
from centernet_trt.runtime.detections import Detections, greedy_nms
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.host.decode import stored_threshold
from centernet_trt.runtime.spec import HeadsSpec, InputSpec, ModelSpec, PointsExtra

_ENTRIES = ("half", "float")


class Kernels:
    """The kernels `preprocess` and `decode`, loaded on one device."""

    def __init__(self, device: Device) -> None:
        """Load the kernels from the cache folder, or compile them first.

        Raises:
            CudaError: no compiler, or the driver or GPU does not support its output.
        """
        toolchain = find_toolchain()
        check_driver(device.info.driver_version, toolchain.cuda_major)
        architecture = sm_name(*device.info.capability)
        self._modules: list[Module] = []
        self._functions: dict[str, Any] = {}
        try:
            for program in PROGRAMS:
                compiled = compile_module(program, architecture, cache_dir() / "kernels", toolchain)
                module = device.load_module(compiled.cubin)
                self._modules.append(module)
                for entry in _ENTRIES:
                    name = f"{program}_{entry}"
                    self._functions[name] = module.function(name)
        except BaseException:
            self.close()
            raise

    def preprocess(self, stream: Stream, plan: PreprocessPlan, params: PreprocessParams) -> None:
        """Enqueue the kernel `preprocess`."""
        shape = plan.shape
        stream.launch(self._functions[plan.kernel], shape.grid, shape.block, shape.shared_bytes, params)

    def decode(self, stream: Stream, plan: DecodePlan, params: DecodeParams) -> None:
        """Enqueue the kernel `decode`."""
        shape = plan.shape
        stream.launch(self._functions[plan.kernel], shape.grid, shape.block, shape.shared_bytes, params)

    def close(self) -> None:
        """Unload the kernels. Idempotent."""
        modules, self._modules = self._modules, []
        self._functions.clear()
        close_all(list(modules))


_ENCODINGS = {"wh": BoxEncoding.WH, "ltrb": BoxEncoding.LTRB, "log_wh": BoxEncoding.LOG_WH}
_UNITS = {"cells": ExtraUnits.CELLS, "input": ExtraUnits.INPUT, "box": ExtraUnits.BOX}
_ORIGINS = {"cell": ExtraOrigin.CELL, "centre": ExtraOrigin.CENTRE, "top_left": ExtraOrigin.TOP_LEFT}


def image_descriptor(
    placement: Placement,
    spec: ModelSpec,
    threshold: float | None = None,
    top_k: int | None = None,
    pixels: int = 0,
    pitch: int = 0,
    channels: int = 3,
) -> Image:
    """Return the descriptor of one image, which both kernels read.

    Args:
        placement: of the image in the network input.
        spec: activation of the heatmap, and defaults of `threshold` and `top_k`.
        threshold: minimum score, 0..1; None for the spec's.
        top_k: maximum number of detections, up to the plan's rows; None for the spec's.
        pixels: device address of the image's uint8 rows.
        pitch: bytes from one row to the next; 0 for rows without padding.
        channels: 1 (grey), 3 (BGR) or 4 (BGRA), interleaved.
    """
    activation = spec.heads.heatmap.activation
    return Image(
        pixels=pixels,
        scale_x=placement.scale_x,
        scale_y=placement.scale_y,
        shift_x=placement.shift_x,
        shift_y=placement.shift_y,
        pitch=pitch or placement.source_width * channels,
        width=placement.source_width,
        height=placement.source_height,
        channels=channels,
        left=placement.left,
        top=placement.top,
        right=placement.right,
        bottom=placement.bottom,
        pad_value=placement.pad_value,
        half_pixel=placement.half_pixel,
        replicate=placement.replicate,
        threshold=stored_threshold(spec.threshold if threshold is None else threshold, activation),
        top_k=spec.top_k if top_k is None else top_k,
    )


def absent_image() -> Image:
    """Return the descriptor of a padding row of a batch: grey levels 0 and no detections."""
    return Image(scale_x=1.0, scale_y=1.0, channels=3, threshold=float("inf"))


def preprocess_params(
    spec: InputSpec, height: int, width: int, images: int, levels: int, output: int
) -> PreprocessParams:
    """Return the parameters of `preprocess`.

    Args:
        spec: channel order of the network input.
        height: of the network input, in pixels.
        width: of the network input, in pixels.
        images: device address of the batch's descriptors.
        levels: device address of the grey-level table.
        output: device address of the network input.
    """
    return PreprocessParams(
        images=images,
        levels=levels,
        output=output,
        width=width,
        height=height,
        rgb=spec.channel_order == "rgb",
    )


def extra_columns(heads: HeadsSpec) -> int:
    """Return the columns of decode's `extra` output: the channels of all extra heads."""
    return sum(extra.channels for extra in heads.extra)


def decode_params(
    spec: ModelSpec,
    plan: DecodePlan,
    grid: tuple[int, int, int],
    heads: Mapping[str, tuple[int, bool]],
    images: int,
    counters: int,
    keys: int,
    output: int,
    layout: DecodeLayout,
) -> DecodeParams:
    """Return the parameters of `decode`.

    Args:
        spec: meaning of the heads.
        plan: of the launch.
        grid: (classes, height, width) of the heatmap, in cells.
        heads: (device address, whether fp16) of every head tensor, by name.
        images: device address of the batch's descriptors.
        counters: device address of the plan's `counter_bytes`, zeroed once.
        keys: device address of the plan's `key_bytes`.
        output: device address of the output buffer.
        layout: of the output buffer.

    Raises:
        SpecError: more extra heads than the kernel supports.
    """
    offset = spec.heads.offset
    offset_data, offset_half = (0, False) if offset is None else heads[offset.tensor]
    box_data, box_half = heads[spec.heads.box.tensor]
    classes, height, width = grid
    params = DecodeParams(
        heatmap=heads[spec.heads.heatmap.tensor][0],
        box=box_data,
        offset=offset_data,
        images=images,
        counters=counters,
        keys=keys,
        count=output + layout.count,
        xyxy=output + layout.xyxy,
        score=output + layout.score,
        label=output + layout.label,
        extra=output + layout.extra,
        cell_offset=spec.cell_offset,
        classes=classes,
        height=height,
        width=width,
        stride=spec.stride,
        rows=plan.rows,
        list_keys=plan.list_keys,
        buffer_keys=plan.buffer_keys,
        logits=spec.heads.heatmap.activation == "logits",
        first=spec.plateau == "first",
        clip=spec.clip,
        box_encoding=_ENCODINGS[spec.heads.box.encoding],
        box_cells=spec.heads.box.units == "cells",
        box_swap=spec.heads.box.order == "yx",
        box_half=box_half,
        offset_half=offset_half,
        offset_swap=offset is not None and offset.order == "yx",
        extra_count=len(spec.heads.extra),
        extra_columns=layout.extra_columns,
    )
    _fill_extras(params, spec.heads, heads)
    return params


def _fill_extras(params: DecodeParams, spec: HeadsSpec, heads: Mapping[str, tuple[int, bool]]) -> None:
    if len(spec.extra) > MAX_EXTRA_HEADS:
        raise SpecError(
            f"the decode kernel supports up to {MAX_EXTRA_HEADS} extra heads, the spec has {len(spec.extra)}",
            "join heads by a Concat in the graph, or decode on the CPU",
        )
    column = 0
    for slot, extra in enumerate(spec.extra):
        data, half = heads[extra.tensor]
        head = ExtraHead(data=data, channels=extra.channels, half=half, kind=ExtraKind.RAW, column=column)
        if isinstance(extra, PointsExtra):
            head.kind = ExtraKind.POINTS
            head.units = _UNITS[extra.units]
            head.origin = _ORIGINS[extra.origin]
            head.swap = extra.order == "yx"
        params.extras[slot] = head
        column += extra.channels


def rows_to_detections(rows: DecodeRows, image: int, spec: ModelSpec) -> Detections:
    """Copy the detections of one image of a batch from the output rows, and apply the spec's NMS, if any."""
    kept = slice(int(rows.count[image]))
    extra, column = {}, 0
    for head in spec.heads.extra:
        extra[head.name] = rows.extra[image, kept, column : column + head.channels].copy()
        column += head.channels
    found = Detections(
        rows.xyxy[image, kept].copy(),
        rows.score[image, kept].copy(),
        rows.label[image, kept].copy(),
        extra,
        spec.class_names,
        spec.category_ids,
    )
    return found if spec.nms_iou is None else found[greedy_nms(found.xyxy, found.label, spec.nms_iou)]
