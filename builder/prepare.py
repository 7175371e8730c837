"""The pass list from a source graph to a typed graph."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from onnx import ModelProto, TensorProto

from centernet_trt.builder.calibration.fp16_ranges import (
    affordable,
    measure_ranges,
    nodes_beyond_fp16,
    nodes_of_heads,
    underflow_notes,
)
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.graph.compare import (
    check_dynamic_batch,
    compare_with_source,
    comparison_records,
    head_channels,
    input_values,
)
from centernet_trt.builder.graph.io import keep_heads, make_dynamic, set_input_size
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.int8.quantise import Int8Options, Int8Result, make_int8
from centernet_trt.builder.int8.validate import Measured, measure
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.deform_conv import has_deform_conv
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants, remove_identities
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.passes.qdq import carries_quantisation, repair_quantised
from centernet_trt.builder.source import read_source
from centernet_trt.errors import InputError, SpecError
from centernet_trt.runtime.manifest import (
    HeadComparison,
    PassRecord,
    Precision,
    ProfileRecord,
    TensorRecord,
    TensorType,
)
from centernet_trt.runtime.spec import FixedSize, InputSpec, ModelSpec

__all__ = ["Passes", "Reporter", "Silence", "peak_memory"]

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


class Passes:
    """Runs passes one by one; `records` has a row for each, `notes` what the user should know."""

    def __init__(self, reporter: Reporter) -> None:
        """Tell `reporter`."""
        self._reporter = reporter
        self.records: list[PassRecord] = []
        self.notes: list[str] = []

    def run(self, name: str, function: Callable[[], T]) -> T:
        """Run a pass; what it returns, a model or something that has one, says how many nodes there are now."""
        self._reporter.step(name, len(self.records), 0)
        start = time.perf_counter()
        result = function()
        seconds = round(time.perf_counter() - start, 4)
        model: Any = getattr(result, "model", result)
        nodes = len(model.graph.node) if isinstance(model, ModelProto) else self.records[-1].nodes
        self.records.append(PassRecord(name=name, seconds=seconds, nodes=nodes, peak_bytes=peak_memory()))
        return result


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes of resident pages; None where nobody counts it."""
    try:
        # Not getrusage where this is: its figure survives exec, and would be that of a larger process which started us.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


SpecFinder = Callable[[ModelProto], ModelSpec]
"""Finds the spec in a source graph, as `guess.guess_spec` does."""
Profiles = tuple[ProfileRecord, ...]
_BATCH_CHECK_SIDE = 128  # pixels; a large network takes seconds an image at its usual size


@dataclass(frozen=True)
class Prepared:
    """A typed graph ready to be compiled, and what is known about it."""

    model: ModelProto
    spec: ModelSpec
    profiles: Profiles
    input: TensorRecord
    heads: tuple[TensorRecord, ...]
    kept_fp32: dict[str, str]
    comparison: dict[str, HeadComparison]
    int8: Int8Result | None = None
    measured: Measured | None = None
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Typing:
    """How a graph is typed.

    Attributes:
        precision: of weights and activations.
        heads: type of the head tensors in an fp16 or int8 graph; `fp32` computes their last convolutions in fp32.
        images: what the fp16 range check runs the graph on.
        image_work: multiply-adds to spend on that at most, for images that nobody chose; None is all images.
        int8: how an int8 graph is calibrated and searched.
        lower_deform_conv: write deformable convolutions in standard operators, for a parser that does not know them.
    """

    precision: Precision = "fp16"
    heads: Literal["fp16", "fp32"] = "fp16"
    images: Sequence[CalibrationImage] = ()
    image_work: float | None = None
    lower_deform_conv: bool = False
    int8: Int8Options = field(default_factory=Int8Options)


def prepare(
    path: Path,
    spec: ModelSpec | SpecFinder,
    profiles_of: Callable[[ModelSpec], Profiles],
    typing: Typing,
    reporter: Reporter | None = None,
) -> Prepared:
    """The typed graph of an ONNX file: every pass but the plan, compared with its source. Raises as `build.build`.

    The file is read once, so a spec that depends on the graph is found here, and the profiles that depend on the spec.
    """
    reporter = reporter or Silence()
    passes = Passes(reporter)
    source, spec = _source(passes, path, spec)
    name, profiles = spec.input.name or "", profiles_of(spec)
    shape = (profiles[0].height.opt, profiles[0].width.opt)
    if any(profile.batch.max > 1 for profile in profiles):
        values, small = input_values(spec.input), _small_shape(spec.input, profiles[0])
        passes.run("batch check", lambda: check_dynamic_batch(source, name, (3, *small), value_range=values))
    # Each pass makes a model of its own; rebinding one name frees the one before, which can be hundreds of megabytes.
    typed = passes.run("fold constants", lambda: fold_constants(constants_to_initializers(source)))
    typed = passes.run("fold batch norm", lambda: remove_identities(fold_batch_norm(typed)))
    if typing.lower_deform_conv and has_deform_conv(typed):
        typed = passes.run("deformable", lambda: lower_deform_conv(typed))
    kept: dict[str, str] = {}
    int8, measured = None, None
    if typing.precision == "int8" and not carries_quantisation(typed):
        refresh_shapes(typed)  # calibration asks for the types of tensors that passes have made, too
        int8 = passes.run("int8", lambda: make_int8(typed, spec, shape, typing.int8, reporter))
        typed = int8.model
    _check_precision(typed, typing.precision)
    typed, kept = _typed(passes, typed, typing, spec, reporter)
    if int8 is not None:
        int8, measured, typed, kept = _inside_budget(passes, int8, typed, kept, typing, spec, reporter)
    found = passes.run("compare", lambda: compare_with_source(source, typed, spec, shape, typing.precision))
    channels = head_channels(found, spec, shape)
    types = _tensor_types(typed)
    return Prepared(
        typed,
        spec,
        profiles,
        TensorRecord(name=name, dtype=types[name], channels=3),
        tuple(TensorRecord(name=head, dtype=types[head], channels=count) for head, count in channels.items()),
        kept,
        comparison_records(found, spec, shape),
        int8,
        measured,
        passes.records,
        list(dict.fromkeys(passes.notes)),
    )


def _small_shape(spec: InputSpec, profile: ProfileRecord) -> tuple[int, int]:
    """A (height, width) of the profile to try a batch at: whether one is baked in does not depend on the size."""
    if isinstance(spec.size, FixedSize):
        return spec.size.height, spec.size.width
    step = spec.size.multiple
    side = -(-_BATCH_CHECK_SIDE // step) * step
    height, width = (max(sides.min, min(sides.opt, side)) for sides in (profile.height, profile.width))
    return height, width


def _typed(
    passes: Passes, model: ModelProto, typing: Typing, spec: ModelSpec, reporter: Reporter
) -> tuple[ModelProto, dict[str, str]]:
    """The graph of its precision's types, and which nodes stayed fp32 with the reasons."""
    kept: dict[str, str] = {}
    if typing.precision != "fp32":
        refresh_shapes(model)  # the range check asks for every tensor's type
        kept = passes.run("fp16 ranges", lambda: _kept_fp32(model, typing, spec, reporter, passes.notes))
        result = passes.run(
            "fp16", lambda: to_fp16(model, keep_fp32=kept, output_types=typing.heads, scales="fp16")
        )
        model, kept = result.model, result.kept
    refresh_shapes(model)  # the bundle's model states every tensor's type, which faithful mode reads
    return model, kept


def _inside_budget(
    passes: Passes,
    int8: Int8Result,
    typed: ModelProto,
    kept: dict[str, str],
    typing: Typing,
    spec: ModelSpec,
    reporter: Reporter,
) -> tuple[Int8Result, Measured, ModelProto, dict[str, str]]:
    """The int8 graph whose typed form is inside the budget: fp16 around int8 may cost what the search cannot see."""
    progress = _progress(reporter, "faithful")
    measured = passes.run("faithful", partial(measure, int8, typed, spec, progress))
    while not int8.inside_budget(measured.loss):
        int8 = passes.run("int8 again", partial(int8.narrower, measured.loss))
        typed, kept = _typed(passes, int8.model, typing, spec, reporter)
        measured = passes.run("faithful", partial(measure, int8, typed, spec, progress))
    return int8, measured, typed, kept


def _progress(reporter: Reporter, name: str) -> Callable[[int, int], None]:
    return lambda done, total: reporter.step(name, done, total)


def _source(passes: Passes, path: Path, spec: ModelSpec | SpecFinder) -> tuple[ModelProto, ModelSpec]:
    """The source graph, cut at the heads, of the size and batch to build for: what the typed graph is held to.

    With it the spec, its input named.
    """
    model = read_source(path, passes.run)
    spec = _with_input_name(spec if isinstance(spec, ModelSpec) else spec(model), model)
    name = spec.input.name or ""
    size = spec.input.size
    if isinstance(size, FixedSize):
        model = passes.run("size", lambda: set_input_size(model, name, size.height, size.width))
    # Cut first: what hangs behind the heads (a top-K, a reshape) may know one size only.
    model = passes.run("heads", lambda: keep_heads(model, spec.heads.tensors))
    model = passes.run("shapes", lambda: make_dynamic(model, name, size=not isinstance(size, FixedSize)))
    if carries_quantisation(model):
        # PyTorch hands scales and zero points that are alike through Identity: they are constants all the same.
        plain = remove_identities(fold_constants(constants_to_initializers(model)))
        model = passes.run("quantisation", lambda: repair_quantised(plain))
    return model, spec


def _check_precision(model: ModelProto, precision: Precision) -> None:
    """A graph that is quantised is built as int8."""
    if carries_quantisation(model) and precision != "int8":
        raise InputError(
            f"the graph carries quantisation of its own (Q/DQ), {precision} was asked for",
            "build with --precision int8, or export the graph without its quantisation",
        )


def _kept_fp32(
    model: ModelProto, typing: Typing, spec: ModelSpec, reporter: Reporter, notes: list[str]
) -> dict[str, str]:
    """The nodes that must or shall stay fp32 in an fp16 graph, with the reasons; what a user should know joins `notes`."""

    def progress(done: int, total: int) -> None:
        reporter.step("fp16 ranges", done, total)

    kept: dict[str, str] = {} if typing.heads == "fp16" else nodes_of_heads(model)
    if typing.images:
        images = affordable(model, typing.images, typing.image_work)
        if len(images) < len(typing.images):
            notes.append(
                f"fp16 ranges: looked at {len(images)} of the {len(typing.images)} pictures that ship, for the network is "
                "large; --calibration FOLDER looks at all of a folder"
            )
        ranges = measure_ranges(model, images, spec.input, progress)
        notes += underflow_notes(ranges)
        kept |= nodes_beyond_fp16(model, ranges, heads_in_fp32=typing.heads == "fp32")
    return kept


def _tensor_types(model: ModelProto) -> dict[str, TensorType]:
    """The element types of the graph's inputs and outputs."""
    names: dict[int, TensorType] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    values = (*model.graph.input, *model.graph.output)
    return {value.name: names[value.type.tensor_type.elem_type] for value in values}


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
