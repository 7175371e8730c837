"""Compiles a typed ONNX graph into a TensorRT plan: always strongly typed, one code for every flavour."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, ValueInfoProto

from centernet_trt.builder.graph import shapes as inference
from centernet_trt.builder.graph.io import find_image_input
from centernet_trt.builder.trt.timing_cache import TimingCache
from centernet_trt.errors import BackendError, InputError, ModelError
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, InstalledName

__all__ = ["Plan", "Profile", "build_plan"]


@dataclass(frozen=True)
class Profile:
    """The input shapes that a plan serves.

    Attributes:
        batch: images in a call.
        height: rows of the network's input, in pixels; None where the graph fixes them.
        width: columns, likewise.
    """

    batch: ShapeRange
    height: ShapeRange | None = None
    width: ShapeRange | None = None


@dataclass(frozen=True)
class Plan:
    """A serialised TensorRT engine and how it came to be.

    Attributes:
        data: TensorRT's own file.
        flavour: `rtx` or `tensorrt`.
        version: of the TensorRT that built it; only the same one is sure to load it.
        target: what it was built for; see `Flavour.targets`.
        seconds: how long parsing and building took.
        profiles: the shapes that it serves, with the graph's fixed sizes filled in; in the engine's order.
        tf32: whether fp32 convolutions may round their inputs to TF32.
        log: TensorRT's errors and warnings.
        notes: what became of the timing cache, where something was wrong with it.
    """

    data: bytes = field(repr=False)
    flavour: InstalledName
    version: str
    target: str
    seconds: float
    profiles: tuple[Profile, ...]
    tf32: bool
    log: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_plan(
    model: ModelProto,
    input_name: str,
    profiles: Profile | Sequence[Profile],
    *,
    flavour: Flavour,
    target: str | None = None,
    tf32: bool = False,
    progress: trt_log.Progress | None = None,
) -> Plan:
    """Compile a model.

    Args:
        model: typed as it shall run; one input, (N, C, H, W).
        input_name: that input.
        profiles: the shapes to serve, one profile or several, each tuned for its own; they must agree with the dimensions that the graph fixes.
        flavour: from `flavours.load_flavour`.
        target: None is the flavour's default: `portable` for RTX, `current` for full TensorRT.
        tf32: allow TF32 in fp32 convolutions; TensorRT's default is yes, ours is no, so that fp32 means fp32.
        progress: what it raises cancels the build and comes out of this function; so does Ctrl-C.

    Raises:
        ModelError: the input is missing, or has fixed dimensions outside a profile.
        InputError: no profile is given.
        BackendError: TensorRT refuses the graph or the build; with its own lines.
    """
    target = flavour.default_target if target is None else target
    capabilities = flavour.capabilities(target)
    flavour.require_device(target)
    profiles = (profiles,) if isinstance(profiles, Profile) else tuple(profiles)
    if not profiles:
        raise InputError(
            "no profile was given", "give one: build_plan(..., [Profile(ShapeRange.of(1, 1, 8))], ...)"
        )
    value = _only_input(model, input_name)
    resolved = tuple(_resolve(value, profile) for profile in profiles)
    start = time.perf_counter()
    monitor = trt_log.monitor_for(flavour.module, progress)
    with trt_log.capture() as lines:
        trt_log.take_interrupt()  # one left over from another call is not ours
        try:
            data, notes = _build(model, input_name, resolved, flavour, capabilities, tf32, monitor, lines)
        except BackendError:
            # A cancelled build fails like any other: what cancelled it is the better answer.
            _raise_cause(monitor)
            raise
        _raise_cause(monitor)
    seconds = time.perf_counter() - start
    log = trt_log.important(lines)
    return Plan(data, flavour.name, flavour.version, target, seconds, resolved, tf32, log, notes)


def _build(
    model: ModelProto,
    input_name: str,
    profiles: Sequence[Profile],
    flavour: Flavour,
    capabilities: tuple[str, ...],
    tf32: bool,
    monitor: Any,
    lines: list[trt_log.LogLine],
) -> tuple[bytes, list[str]]:
    trt, logger = flavour.trt, trt_log.logger_for(flavour.module)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the constructor returned a null pointer: no usable GPU or driver
        raise _failure("TensorRT does not start", flavour, lines) from error
    if hasattr(trt, "init_libnvinfer_plugins"):
        # Full TensorRT imports DeformConv through its plugin library.
        trt.init_libnvinfer_plugins(logger, "")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, model):
        raise _parse_failure(parser, flavour, lines)
    config = builder.create_builder_config()
    # Set both ways: the default differs from version to version.
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    for flag in flavour.build_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    # So that the inspector can tell what became of each layer; measured on the COCO model, the plan is as large without.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                raise _failure(f"TensorRT cannot build for {name}", flavour, lines)
    for profile in profiles:
        _add_profile(builder, config, network, input_name, profile, flavour, lines)
    timings = TimingCache(config, flavour) if flavour.has_timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure("TensorRT cannot build the plan", flavour, lines)
    if timings is not None:
        timings.save()
    return bytes(memoryview(plan)), [] if timings is None else timings.notes


def _add_profile(
    builder: Any,
    config: Any,
    network: Any,
    input_name: str,
    profile: Profile,
    flavour: Flavour,
    lines: list[trt_log.LogLine],
) -> None:
    channels = network.get_input(0).shape[1]
    height, width = profile.height, profile.width
    assert height is not None
    assert width is not None
    shapes = [
        (getattr(profile.batch, what), channels, getattr(height, what), getattr(width, what))
        for what in ("min", "opt", "max")
    ]
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(input_name, *shapes)
    if config.add_optimization_profile(optimisation) < 0:
        raise _failure(f"TensorRT refuses the input shapes {shapes}", flavour, lines)


def _parse(parser: Any, model: ModelProto) -> bool:
    with inference.loadable(model) as source:
        if isinstance(source, bytes):
            return bool(parser.parse(source))
        # A large one: its weights go through files, which the parser reads before it returns.
        return bool(parser.parse_from_file(source))


def _only_input(model: ModelProto, input_name: str) -> ValueInfoProto:
    value = find_image_input(model, input_name)
    others = [other.name for other in model.graph.input if other.name != input_name]
    if others:
        raise ModelError(
            f"the graph has inputs besides {input_name!r}: {', '.join(others)}; one was expected",
            "export the network with its image input only",
        )
    return value


def _resolve(value: ValueInfoProto, profile: Profile) -> Profile:
    """Return the profile with each range filled in from, and held against, the declared dimensions."""
    dims = value.type.tensor_type.shape.dim
    found: dict[str, ShapeRange] = {}
    asked = {"batch": profile.batch, "height": profile.height, "width": profile.width}
    for (what, wanted), dim in zip(asked.items(), (dims[0], dims[2], dims[3]), strict=True):
        fixed = ShapeRange.of(*[dim.dim_value] * 3) if dim.HasField("dim_value") else None
        if fixed is not None and wanted not in (None, fixed):
            raise ModelError(
                f"the graph fixes the {what} of {value.name!r} to {dim.dim_value}, "
                f"the profile asks for {wanted}",
                f"leave the {what} at {dim.dim_value}, or make it dynamic with passes.shapes.make_dynamic",
            )
        resolved = wanted or fixed
        if resolved is None:
            raise ModelError(
                f"the {what} of input {value.name!r} is dynamic and the profile has no range for it",
                f"give a range for the {what}, such as 256:512:1024",
            )
        found[what] = resolved
    return Profile(**found)


def _raise_cause(monitor: Any) -> None:
    """Raise what cancelled the build, if anything did."""
    if monitor.error is not None:
        raise monitor.error
    if trt_log.take_interrupt():
        raise KeyboardInterrupt


def _parse_failure(parser: Any, flavour: Flavour, lines: list[trt_log.LogLine]) -> BackendError:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # The names exist since 10.0; a graph-level error has no node.
        where = f"node {error.node_name()} ({error.node_operator()})" if error.node() >= 0 else "the graph"
        found.append(f"{where}: {error.desc()}")
    listed = "".join(f"\n  {line}" for line in found)
    return _failure(f"TensorRT's parser refuses the graph:{listed}", flavour, lines)


def _failure(what: str, flavour: Flavour, lines: list[trt_log.LogLine]) -> BackendError:
    """Return the error with TensorRT's own lines of the failing call."""
    own = "".join(f"\n  {line}" for line in trt_log.important(lines))
    return BackendError(
        f"{what}; {flavour.module.__name__} {flavour.version} says:{own or ' nothing'}",
        "see what it names above; `--flavour none` builds the bundle without a plan",
    )
