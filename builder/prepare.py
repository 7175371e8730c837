"""A source ONNX file -> the typed graph that is compiled, pass by pass, compared with its source."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from onnx import ModelProto, TensorProto

from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.deformable import has_deform_conv, standardise_deform_conv
from centernet_trt.builder.deformable_lowering import lower_deform_conv
from centernet_trt.builder.deformable_spellings import FOREIGN_OPS
from centernet_trt.builder.equivalence import HeadError, check_dynamic_batch, compare_models
from centernet_trt.builder.fp16_ranges import measure_ranges, nodes_beyond_fp16, nodes_of_heads
from centernet_trt.builder.inference import refresh_shapes
from centernet_trt.builder.loading import load_model
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants, remove_identities
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.passes.heads import keep_heads
from centernet_trt.builder.passes.quantised import carries_quantisation, repair_quantised
from centernet_trt.builder.passes.shapes import make_dynamic, set_input_size
from centernet_trt.builder.quantise.int8 import Int8Options, Int8Result, make_int8
from centernet_trt.builder.quantise.measured import Measured, measure
from centernet_trt.errors import InputError, ModelError, SpecError
from centernet_trt.runtime.decode import check_heads
from centernet_trt.runtime.manifest import (
    HeadComparison,
    PassRecord,
    Precision,
    ProfileRecord,
    TensorRecord,
    TensorType,
)
from centernet_trt.runtime.spec import FixedSize, InputSpec, ModelSpec

FP32_TOLERANCE = 1e-4  # of a head's largest magnitude; the passes themselves stay within 1e-5
T = TypeVar("T")


class Reporter(Protocol):
    """Hears how a build goes on."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, name: str, done: int, total: int) -> None:
        """Part of the stage is done; `total` 0 where it is not known."""


class Silence:
    """Hears, and says nothing."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, name: str, done: int, total: int) -> None:
        """Part of the stage is done."""


@dataclass(frozen=True)
class Prepared:
    """A typed graph ready to be compiled, and what is known about it."""

    model: ModelProto
    spec: ModelSpec
    input: TensorRecord
    heads: tuple[TensorRecord, ...]
    kept_fp32: dict[str, str]
    comparison: dict[str, HeadComparison]
    int8: Int8Result | None = None
    measured: Measured | None = None
    passes: list[PassRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Typing:
    """How a graph is typed.

    Attributes:
        precision: of weights and activations.
        heads: type of the head tensors in an fp16 or int8 graph; `fp32` computes their last convolutions in fp32.
        images: what the fp16 range check runs the graph on.
        int8: how an int8 graph is calibrated and searched.
        lower_deform_conv: write deformable convolutions in standard operators, for a parser that does not know them.
    """

    precision: Precision = "fp16"
    heads: Literal["fp16", "fp32"] = "fp16"
    images: Sequence[CalibrationImage] = ()
    lower_deform_conv: bool = False
    int8: Int8Options = field(default_factory=Int8Options)


def prepare(
    path: Path, spec: ModelSpec, profile: ProfileRecord, typing: Typing, reporter: Reporter | None = None
) -> Prepared:
    """The typed graph of an ONNX file: every pass but the plan, compared with its source. Raises as `build.build`."""
    reporter = reporter or Silence()
    passes = _Passes(reporter)
    source, spec = _source(passes, path, spec)
    name = spec.input.name or ""
    shape = (profile.height.opt, profile.width.opt)
    if profile.batch.max > 1:
        values = _values(spec.input)
        passes.run("batch check", lambda: check_dynamic_batch(source, name, (3, *shape), value_range=values))
    # Each pass makes a model of its own; rebinding one name frees the one before, which can be hundreds of megabytes.
    typed = passes.run("fold constants", lambda: fold_constants(constants_to_initializers(source)))
    typed = passes.run("fold batch norm", lambda: remove_identities(fold_batch_norm(typed)))
    if typing.lower_deform_conv and has_deform_conv(typed):
        typed = passes.run("deformable", lambda: lower_deform_conv(typed))
    kept: dict[str, str] = {}
    int8, measured = None, None
    if typing.precision == "int8" and not carries_quantisation(typed):
        int8 = passes.run("int8", lambda: make_int8(typed, spec, shape, typing.int8, reporter))
        typed = int8.model
    _check_precision(typed, typing.precision)
    if typing.precision != "fp32":
        refresh_shapes(typed)  # the range check asks for every tensor's type
        kept = passes.run("fp16 ranges", lambda: _kept_fp32(typed, typing, spec, reporter))
        result = passes.run(
            "fp16", lambda: to_fp16(typed, keep_fp32=kept, output_types=typing.heads, scales="fp16")
        )
        typed, kept = result.model, result.kept
    refresh_shapes(typed)  # the bundle's model states every tensor's type, which faithful mode reads
    if int8 is not None:
        whole, final = int8, typed
        progress = _progress(reporter, "faithful")
        measured = passes.run("faithful", lambda: measure(whole, final, spec, progress))
    found = passes.run("compare", lambda: _compare(source, typed, spec, shape, typing.precision))
    channels = _check_heads(found, spec, shape)
    types = _tensor_types(typed)
    return Prepared(
        typed,
        spec,
        TensorRecord(name=name, dtype=types[name], channels=3),
        tuple(TensorRecord(name=head, dtype=types[head], channels=count) for head, count in channels.items()),
        kept,
        _records(found, spec, shape),
        int8,
        measured,
        passes.records,
    )


def _progress(reporter: Reporter, name: str) -> Callable[[int, int], None]:
    return lambda done, total: reporter.step(name, done, total)


def _source(passes: "_Passes", path: Path, spec: ModelSpec) -> tuple[ModelProto, ModelSpec]:
    """The source graph, cut at the heads, of the size and batch to build for: what the typed graph is held to.

    With it the spec, its input named.
    """
    model = passes.run("load", lambda: load_model(path, foreign_ops=FOREIGN_OPS))
    spec = _with_input_name(spec, model)
    name = spec.input.name or ""
    if has_deform_conv(model):
        model = passes.run("deformable", lambda: standardise_deform_conv(model))
    size = spec.input.size
    if isinstance(size, FixedSize):
        model = passes.run("size", lambda: set_input_size(model, name, size.height, size.width))
    # Cut first: what hangs behind the heads (a top-K, a reshape) may know one size only.
    model = passes.run("heads", lambda: keep_heads(model, spec.heads.tensors))
    model = passes.run("shapes", lambda: make_dynamic(model, name, size=not isinstance(size, FixedSize)))
    if carries_quantisation(model):
        model = passes.run("quantisation", lambda: repair_quantised(model))
    return model, spec


def _check_precision(model: ModelProto, precision: Precision) -> None:
    """A graph that is quantised is built as int8."""
    if carries_quantisation(model) and precision != "int8":
        raise InputError(
            f"the graph carries quantisation of its own (Q/DQ), {precision} was asked for",
            "build with --precision int8, or export the graph without its quantisation",
        )


def _kept_fp32(model: ModelProto, typing: Typing, spec: ModelSpec, reporter: Reporter) -> dict[str, str]:
    """The nodes that must or shall stay fp32 in an fp16 graph, with the reasons."""

    def progress(done: int, total: int) -> None:
        reporter.step("fp16 ranges", done, total)

    kept: dict[str, str] = {} if typing.heads == "fp16" else nodes_of_heads(model)
    if typing.images:
        ranges = measure_ranges(model, typing.images, spec.input, progress)
        kept |= nodes_beyond_fp16(model, ranges, heads_in_fp32=typing.heads == "fp32")
    return kept


def _tensor_types(model: ModelProto) -> dict[str, TensorType]:
    """The element types of the graph's inputs and outputs."""
    names: dict[int, TensorType] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    values = (*model.graph.input, *model.graph.output)
    return {value.name: names[value.type.tensor_type.elem_type] for value in values}


class _Passes:
    """Runs passes, tells the reporter, and keeps their times."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.records: list[PassRecord] = []

    def run(self, name: str, function: Callable[[], T]) -> T:
        self._reporter.step(name, len(self.records), 0)
        start = time.perf_counter()
        result = function()
        seconds = round(time.perf_counter() - start, 4)
        model = getattr(result, "model", result)
        nodes = len(model.graph.node) if isinstance(model, ModelProto) else self.records[-1].nodes
        self.records.append(PassRecord(name=name, seconds=seconds, nodes=nodes))
        return result


def _with_input_name(spec: ModelSpec, model: ModelProto) -> ModelSpec:
    """The spec with the name of the graph's image input filled in."""
    names = [value.name for value in model.graph.input]
    if spec.input.name is not None:
        return spec
    if len(names) != 1:
        raise SpecError(
            f"the graph has {len(names)} inputs: {', '.join(names)}; the spec does not say which is the image",
            "name it in the spec: [input] name = ...",
        )
    return spec.model_copy(update={"input": spec.input.model_copy(update={"name": names[0]})})


def _values(spec: InputSpec) -> tuple[float, float]:
    """The range of the network's input values over all grey levels and channels."""
    low = min(-mean / std for mean, std in zip(spec.mean, spec.std, strict=True))
    high = max((255 * spec.scale - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    return low, high


def _check_heads(found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]) -> dict[str, int]:
    """Hold the heads that the source computed to the spec; their channels by name."""
    shapes = {name: error.shape for name, error in found.items()}
    check_heads(shapes, spec)
    grid = (shape[0] // spec.stride, shape[1] // spec.stride)
    name, (_, _, height, width) = next(iter(shapes.items()))
    if (height, width) != grid:
        raise SpecError(
            f"head {name!r} has a grid of {height}x{width} cells for an input of {shape[0]}x{shape[1]} pixels; "
            f"the spec's stride {spec.stride} would give {grid[0]}x{grid[1]}",
            f"set stride = {shape[0] // height} in the spec" if height and shape[0] % height == 0 else "",
        )
    return {name: head[1] for name, head in shapes.items()}


def _compare(
    source: ModelProto, typed: ModelProto, spec: ModelSpec, shape: tuple[int, int], precision: Precision
) -> dict[str, HeadError]:
    """Run the source in fp32 and the typed graph true to its types, on random pixels."""
    found = compare_models(
        source,
        typed,
        shapes={spec.input.name or "": (1, 3, *shape)},
        value_range=_values(spec.input),
        mode="faithful",
    )
    for name, error in found.items():
        if precision == "fp32" and not error.max_rel <= FP32_TOLERANCE:
            raise ModelError(
                f"head {name!r} of the prepared graph differs from the source by {error.max_rel:.2g} of its largest "
                f"magnitude, at most {FP32_TOLERANCE:.0e} was expected",
                "this is a defect of a pass: please report it with the model",
            )
        if not error.max_abs < float("inf"):
            raise ModelError(
                f"head {name!r} overflows in {precision}: an infinity or NaN where the source has a number",
                "build with --precision fp32",
            )
    return found


def _records(
    found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]
) -> dict[str, HeadComparison]:
    low, high = _values(spec.input)
    where = f"one random image of {shape[1]}x{shape[0]} pixels, values {low:.3g} to {high:.3g}, seed 0"
    return {
        name: HeadComparison(max_abs=error.max_abs, max_rel=error.max_rel, mode="faithful", input=where)
        for name, error in found.items()
    }
