"""List the passes of a build: PASSES."""

import math
from dataclasses import replace

from onnx import ModelProto

from centernet_trt.builder.calibration.fp16_ranges import (
    affordable,
    measure_ranges,
    nodes_beyond_fp16,
    nodes_of_heads,
    underflow_notes,
)
from centernet_trt.builder.calibration.limits import LEAST_F1, check_limits, compare_on_images
from centernet_trt.builder.graph.compare import HeadError, check_dynamic_batch
from centernet_trt.builder.graph.edit import main_opset
from centernet_trt.builder.graph.io import further_inputs, keep_heads, make_dynamic, set_input_size
from centernet_trt.builder.graph.load import upgrade
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.graph.source_comparison import batch_check_shape, compare_with_source, input_values
from centernet_trt.builder.int8.quantise import make_int8
from centernet_trt.builder.int8.validate import measure
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.branches import check_control_flow, inline_constant_branches
from centernet_trt.builder.passes.deform_conv import has_deform_conv, standardise_deform_conv
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants, remove_identities
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.passes.fp16_rules import require_nodes
from centernet_trt.builder.passes.fp32 import holds_fp16, to_fp32
from centernet_trt.builder.passes.qdq import carries_quantisation, repair_quantised
from centernet_trt.builder.preparation import Pass, Preparation
from centernet_trt.builder.source import read_original
from centernet_trt.errors import BackendError, InputError, ModelError, SpecError
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["PASSES"]

RANGE_CHECK_WORK = 3e11
"""Multiply-adds that fp16's range check may cost with images that the user did not choose: some dozen seconds of one core."""

LIMIT_CHECK_IMAGES = 4
LIMIT_CHECK_WORK = 6e10
"""Images that the limits are checked on, and multiply-adds that they may cost: some seconds of two cores."""


def _load(state: Preparation) -> None:
    read = read_original(state.path)
    converted = upgrade(read, state.path)
    state.model = inline_constant_branches(converted, free_sizes=True)
    rewritten = main_opset(read) != main_opset(converted) or state.model is not converted
    state.original = read if rewritten and not has_deform_conv(read) else None


def _standardise(state: Preparation) -> None:
    state.model = standardise_deform_conv(state.model)


def _find_spec(state: Preparation) -> None:
    given = state.given_spec
    state.spec = _with_input_name(given if isinstance(given, ModelSpec) else given(state.model), state.model)
    state.profiles = state.options.resolve_profiles(state.spec)


def _with_input_name(spec: ModelSpec, model: ModelProto) -> ModelSpec:
    names = [value.name for value in model.graph.input]
    if spec.input.name is not None:
        return spec
    needed = further_inputs(model, spec.heads.tensors)
    if len(needed) > 1:
        raise _further(needed)
    if len(names) != 1:
        raise SpecError(
            f"expected one input, or a spec that names the image, got {len(names)} inputs: {', '.join(names)}",
            "name it in the spec: [input] name = ...",
        )
    return spec.model_copy(update={"input": spec.input.model_copy(update={"name": names[0]})})


def _further(names: list[str]) -> ModelError:
    return ModelError(
        f"expected heads that need one input, the image, got further inputs: {', '.join(names)}",
        "networks with further inputs, such as trackers that take the previous frame, are not supported: "
        "export one whose further inputs are constants",
    )


def _set_size(state: Preparation) -> None:
    size = state.fixed_size
    assert size is not None
    state.model = set_input_size(state.model, state.input_name, size.height, size.width)


def _cut_at_heads(state: Preparation) -> None:
    state.model = keep_heads(state.model, state.spec.heads.tensors)
    if others := further_inputs(state.model, state.spec.heads.tensors, state.input_name):
        raise _further(others)


def _free_shapes(state: Preparation) -> None:
    state.model = state.source = make_dynamic(state.model, state.input_name, size=state.fixed_size is None)


def _repair(state: Preparation) -> None:
    # PyTorch shares equal scales and zero points through Identity nodes: folding makes them constants.
    model = remove_identities(fold_constants(constants_to_initializers(state.model)))
    state.model = repair_quantised(model)
    if state.options.precision != "int8":
        raise InputError(
            f"expected precision int8 for a graph that carries quantisation of its own (Q/DQ), got {state.options.precision}",
            "build with --precision int8, or export the graph without its quantisation",
        )


def _to_fp32(state: Preparation) -> None:
    state.model = to_fp32(state.model)
    state.notes.append(
        "the graph was exported in fp16: its weights are the rounded ones, its arithmetic is fp32 now; a graph exported in "
        "fp32 is more exact"
    )


def _check_batch(state: Preparation) -> None:
    small = batch_check_shape(state.spec.input, state.profiles[0])
    check_dynamic_batch(
        state.model, state.input_name, (3, *small), value_range=input_values(state.spec.input)
    )


def _fold_constants(state: Preparation) -> None:
    state.model = fold_constants(inline_constant_branches(constants_to_initializers(state.model)))
    if state.options.precision != "fp32":
        check_control_flow(state.model)


def _fold_batch_norm(state: Preparation) -> None:
    state.model = remove_identities(fold_batch_norm(state.model))


def _lower(state: Preparation) -> None:
    state.model = lower_deform_conv(state.model)


def _quantise(state: Preparation) -> None:
    refresh_shapes(state.model)  # calibration needs the types of tensors that passes have made
    require_nodes(state.model, state.options.keep_fp32)  # before minutes of calibration
    asked = state.options.int8
    options = replace(asked, rules=replace(asked.rules, keep_fp32=state.options.keep_fp32))
    state.int8 = make_int8(state.model, state.spec, state.shape, options, state.reporter)
    state.model = state.int8.model


def _check_ranges(state: Preparation) -> None:
    refresh_shapes(state.model)  # the range check needs every tensor's type
    fp32_heads = state.options.heads == "fp32"
    require_nodes(state.model, state.options.keep_fp32)
    named = dict.fromkeys(state.options.keep_fp32, "requested by --keep-fp32")
    state.kept_fp32 = (nodes_of_heads(state.model) if fp32_heads else {}) | named
    if state.images is None:
        return
    given = state.images.images
    images = affordable(state.model, given, RANGE_CHECK_WORK if state.options.calibration is None else None)
    if len(images) < len(given):
        state.notes.append(
            f"fp16 ranges: checked on {len(images)} of the {len(given)} images that ship, because the network is large; "
            "--calibration FOLDER checks on all images of a folder"
        )
    ranges = measure_ranges(state.model, images, state.spec.input, state.progress("fp16 ranges"))
    state.notes += underflow_notes(ranges)
    state.kept_fp32 |= nodes_beyond_fp16(state.model, ranges, heads_in_fp32=fp32_heads) | named


def _to_fp16(state: Preparation) -> None:
    typed = to_fp16(state.model, keep_fp32=state.kept_fp32, output_types=state.options.heads, scales="fp16")
    state.model, state.kept_fp32 = typed.model, typed.kept


def _measure(state: Preparation) -> None:
    assert state.int8 is not None
    state.measured = measure(state.int8, state.model, state.spec, state.progress("faithful"))


def _is_outside_budget(state: Preparation) -> bool:
    return (
        state.int8 is not None
        and state.measured is not None
        and not state.int8.inside_budget(state.measured.loss)
    )


def _narrow(state: Preparation) -> None:
    assert state.int8 is not None
    assert state.measured is not None
    state.int8 = state.int8.narrower(state.measured.loss)
    state.model = state.int8.model


def _compare(state: Preparation) -> None:
    refresh_shapes(state.model)  # the bundle's model states every tensor's type, which faithful mode reads
    state.differences = _differences(state, _reference(state))


def _differences(state: Preparation, source: ModelProto) -> dict[str, HeadError]:
    try:
        return compare_with_source(
            source, state.model, state.spec, state.shape, state.options.precision, state.notes
        )
    except BackendError:  # ONNX Runtime has dropped much of the oldest opsets
        if source is state.source:
            raise
        return _differences(state, state.source)


def _reference(state: Preparation) -> ModelProto:
    """The graph as it is in the file, cut at the heads, so that a wrong conversion shows too."""
    if state.original is None:
        return state.source
    try:
        cut = keep_heads(state.original, state.spec.heads.tensors)
        if size := state.fixed_size:
            cut = set_input_size(cut, state.input_name, size.height, size.width)
        return make_dynamic(cut, state.input_name, size=size is None)
    except ModelError:  # a tensor that only the conversion made, or an operator without shape inference
        return state.source


def _check_limits(state: Preparation) -> None:
    options = state.options
    given = () if state.images is None else state.images.images
    spread = given[:: -(-len(given) // LIMIT_CHECK_IMAGES) or 1]
    images = affordable(state.source, spread, LIMIT_CHECK_WORK, fewest=1)
    found = compare_on_images(
        state.source, state.model, state.spec, state.shape, images, state.progress("limits")
    )
    most, least = options.max_difference, LEAST_F1
    if state.int8 is not None and options.int8.everything:  # an experiment without a budget: notes alone
        most = math.inf if most is None else most
    elif state.int8 is not None:  # it may agree as little as its budget says
        least = min(least, options.int8.budget.min_agreement)
    state.notes += check_limits(found, options.precision, most, least)


PASSES: tuple[Pass, ...] = (
    Pass(
        "load",
        "reads and checks the file, drops inputs and constants that nothing needs, resolves constant conditions, names every node",
        _load,
    ),
    Pass(
        "deformable",
        "turns every public variant of deformable convolution into ONNX `DeformConv`",
        _standardise,
        "a deformable convolution",
        lambda state: has_deform_conv(state.model),
    ),
    Pass(
        "spec",
        "guesses the spec from the graph if none is given, and fills in the profiles",
        _find_spec,
        recorded=False,
    ),
    Pass(
        "size",
        "sets the input size",
        _set_size,
        "the spec fixes the input size",
        lambda state: state.fixed_size is not None,
    ),
    # Cut before shapes are inferred: what follows the heads (a top-K, a reshape) may know one size only.
    Pass("heads", "cuts the graph at the head tensors", _cut_at_heads),
    Pass("shapes", "makes the batch dynamic, and the input size if the spec does not fix it", _free_shapes),
    Pass(
        "quantisation",
        "repairs the Q/DQ of the source if that is exact, refuses it by name if not",
        _repair,
        "the graph carries Q/DQ",
        lambda state: carries_quantisation(state.model),
    ),
    Pass(
        "fp32",
        "types all fp16 fp32: weights, casts, inputs and outputs",
        _to_fp32,
        "fp32, and the graph holds fp16",
        lambda state: state.options.precision == "fp32" and holds_fp16(state.model),
    ),
    Pass(
        "batch check",
        "runs two images one by one and together: no batch may be baked in",
        _check_batch,
        "a profile has batches above 1",
        lambda state: any(profile.batch.max > 1 for profile in state.profiles),
    ),
    Pass("fold constants", "computes what is constant", _fold_constants),
    Pass("fold batch norm", "folds batch norms into convolutions, removes identities", _fold_batch_norm),
    Pass(
        "deformable",
        "writes deformable convolutions in standard operators",
        _lower,
        "TensorRT for RTX, and a deformable convolution",
        lambda state: state.lower_deform_conv and has_deform_conv(state.model),
    ),
    Pass(
        "int8",
        "calibrates, and searches the layers that become int8",
        _quantise,
        "int8, and the graph carries no Q/DQ",
        lambda state: state.options.precision == "int8" and not carries_quantisation(state.model),
    ),
    Pass(
        "fp16 ranges",
        "runs the graph in fp32 on images: the nodes whose values exceed fp16 stay fp32",
        _check_ranges,
        "fp16 or int8",
        lambda state: state.options.precision != "fp32",
    ),
    Pass(
        "fp16",
        "types all other nodes fp16",
        _to_fp16,
        "fp16 or int8",
        lambda state: state.options.precision != "fp32",
    ),
    Pass(
        "faithful",
        "measures the typed graph operator by operator, against fp32 and labels",
        _measure,
        "int8 was searched",
        lambda state: state.int8 is not None,
    ),
    Pass(
        "int8 again",
        "takes the next best int8 graph and goes back to `fp16 ranges`",
        _narrow,
        "the typed graph is outside the int8 budget",
        _is_outside_budget,
        repeat_from="fp16 ranges",
    ),
    Pass(
        "compare",
        "runs the graph as it came and the result on one random image: the difference of every head is in the manifest",
        _compare,
    ),
    Pass(
        "limits",
        "compares heads and boxes of source and result on a few images and a black frame: beyond a limit the build fails",
        _check_limits,
    ),
)
"""Every pass of a build, in order."""
