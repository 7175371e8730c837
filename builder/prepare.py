"""Prepare a source graph for TensorRT: prepare() runs the list of passes."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto, TensorProto

from centernet_trt.builder.calibration.images import CalibrationImages
from centernet_trt.builder.graph.source_comparison import comparison_records, head_channels
from centernet_trt.builder.int8.quantise import Int8Result
from centernet_trt.builder.int8.validate import Measured
from centernet_trt.builder.options import BuildOptions
from centernet_trt.builder.pass_list import PASSES
from centernet_trt.builder.preparation import Pass, Preparation, SpecFinder
from centernet_trt.builder.progress import BuildReporter, Silence, peak_memory
from centernet_trt.runtime.manifest import HeadComparison, PassRecord, ProfileRecord, TensorRecord, TensorType
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["Prepared", "Silence", "SpecFinder", "describe_passes", "prepare", "run_passes"]


@dataclass(frozen=True)
class Prepared:
    """A typed graph, ready to be compiled.

    Attributes:
        model: the graph; it states the type and, as far as known, the shape of every tensor.
        spec: with the name of the graph's image input.
        profiles: the input shapes to build for.
        input: the image input.
        heads: the outputs.
        kept_fp32: nodes that stayed fp32 in an fp16 or int8 graph, with the reason of each.
        comparison: difference of each head from the source.
        int8: the int8 search, if there was one.
        measured: the int8 graph after typing, run operator by operator.
        passes: time, nodes and peak memory of every pass that ran.
        notes: messages for the user.
    """

    model: ModelProto
    spec: ModelSpec
    profiles: tuple[ProfileRecord, ...]
    input: TensorRecord
    heads: tuple[TensorRecord, ...]
    kept_fp32: dict[str, str]
    comparison: dict[str, HeadComparison]
    int8: Int8Result | None = None
    measured: Measured | None = None
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(
    path: Path,
    spec: ModelSpec | SpecFinder,
    options: BuildOptions,
    images: CalibrationImages | None = None,
    *,
    lower_deform_conv: bool = False,
    reporter: BuildReporter | None = None,
) -> Prepared:
    """Run every pass on an ONNX file and compare the result with its source.

    Args:
        path: the ONNX file, which is read once.
        spec: the spec, or a function that finds it in the source graph.
        options: precision, shapes, types; flavour and targets are not used here.
        images: what int8 is calibrated on, and what fp16's range check and the check of the limits run on. Without them
            there is no range check, and the limits are checked on a black frame alone.
        lower_deform_conv: write deformable convolutions in standard operators, for a parser that does not know them.
        reporter: receives the progress.

    Returns:
        The typed graph with all that the manifest says about it.

    Raises:
        CenterNetError: as `build.build`.
    """
    state = Preparation(path, spec, options, images, lower_deform_conv, reporter or Silence())
    run_passes(state, PASSES)
    types = _tensor_types(state.model)
    channels = head_channels(state.differences, state.spec, state.shape)
    return Prepared(
        state.model,
        state.spec,
        state.profiles,
        TensorRecord(name=state.input_name, dtype=types[state.input_name], channels=3),
        tuple(TensorRecord(name=head, dtype=types[head], channels=count) for head, count in channels.items()),
        state.kept_fp32,
        comparison_records(state.differences, state.spec, state.shape),
        state.int8,
        state.measured,
        state.records,
        list(dict.fromkeys(state.notes)),
    )


def run_passes(state: Preparation, passes: tuple[Pass, ...]) -> None:
    """Run the passes that apply, in order, and record the time, nodes and peak memory of each."""
    place = 0
    while place < len(passes):
        one = passes[place]
        place += 1
        if not one.applies(state):
            continue
        if one.recorded:
            state.reporter.step(one.name, len(state.records), 0)
        start = time.perf_counter()
        one.run(state)
        seconds = round(time.perf_counter() - start, 4)
        if one.recorded:
            nodes, peak = len(state.model.graph.node), peak_memory()
            state.records.append(PassRecord(name=one.name, seconds=seconds, nodes=nodes, peak_bytes=peak))
        if one.repeat_from:
            place = next(row for row, other in enumerate(passes) if other.name == one.repeat_from)


def describe_passes() -> str:
    """The pass list as a Markdown table: name, condition and purpose of each pass."""
    rows = [(one.name, one.when or "always", one.what) for one in PASSES]
    lines = [f"| {name} | {when} | {what} |" for name, when, what in rows]
    return "\n".join(["| pass | when | what it does |", "|---|---|---|", *lines, ""])


def _tensor_types(model: ModelProto) -> dict[str, TensorType]:
    """The element types of the graph's inputs and outputs."""
    names: dict[int, TensorType] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    values = (*model.graph.input, *model.graph.output)
    return {value.name: names[value.type.tensor_type.elem_type] for value in values}
