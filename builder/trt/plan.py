"""Compile a typed ONNX graph into a TensorRT plan, strongly typed, with the same code for every flavour."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, ValueInfoProto

from centernet_trt.builder.graph.io import find_image_input
from centernet_trt.builder.graph.shapes import loadable
from centernet_trt.builder.trt.api import (
    IBuilderConfig,
    INetworkDefinition,
    NetworkBuilder,
    NetworkParser,
    TensorRT,
)
from centernet_trt.builder.trt.timing_cache import TimingCache
from centernet_trt.errors import BackendError, InputError, ModelError
from centernet_trt.runtime.manifest import ProfileRecord
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, InstalledName

__all__ = ["Plan", "build_plan"]


@dataclass(frozen=True)
class Plan:
    """A serialised TensorRT engine and how it was built.

    Attributes:
        data: the engine as TensorRT serialised it.
        flavour: `rtx` or `tensorrt`.
        version: of the TensorRT that built it; only the same version is certain to load it.
        target: what it was built for; see `Flavour.targets`.
        seconds: time of parsing and building.
        profiles: the input shapes that it serves, in the engine's order.
        tf32: whether fp32 convolutions may round their inputs to TF32.
        log: TensorRT's errors and warnings.
        notes: problems with the timing cache.
    """

    data: bytes = field(repr=False)
    flavour: InstalledName
    version: str
    target: str
    seconds: float
    profiles: tuple[ProfileRecord, ...]
    tf32: bool
    log: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_plan(
    model: ModelProto,
    input_name: str,
    profiles: Sequence[ProfileRecord],
    *,
    flavour: Flavour,
    target: str | None = None,
    tf32: bool = False,
    progress: trt_log.Progress | None = None,
) -> Plan:
    """Compile a model.

    Args:
        model: a graph with the element types to run with and one input of shape (N, C, H, W).
        input_name: the name of that input.
        profiles: the input shapes to serve, each tuned for its own `opt`; they must agree with the sizes that the graph
            fixes.
        flavour: from `flavours.load_flavour`.
        target: None is the flavour's default: `portable` for RTX, `current` for full TensorRT.
        tf32: allow TF32 in fp32 convolutions. TensorRT's default is True; here it is False, so that fp32 means fp32.
        progress: called with (phase, steps done, steps of the phase). An exception that it raises cancels the build and
            is raised here; so is Ctrl-C.

    Returns:
        The serialised engine.

    Raises:
        ModelError: the input is missing, or its fixed sizes are not those of a profile.
        InputError: no profile is given.
        BackendError: TensorRT refuses the graph or the build; the message has TensorRT's own log lines.
    """
    target = flavour.default_target if target is None else target
    capabilities = flavour.capabilities(target)
    flavour.require_device(target)
    profiles = tuple(profiles)
    if not profiles:
        raise InputError("expected at least one profile, got none", "give the input shapes to build for")
    _check_profiles(_only_input(model, input_name), profiles)
    start = time.perf_counter()
    monitor = trt_log.monitor_for(flavour.module, progress)
    with trt_log.capture() as lines:
        trt_log.take_interrupt()  # discard one left over from another call
        try:
            data, notes = _build(model, input_name, profiles, flavour, capabilities, tf32, monitor, lines)
        except BackendError:
            # A cancelled build fails like any other: what cancelled it is the better answer.
            _raise_cause(monitor)
            raise
        _raise_cause(monitor)
    seconds = time.perf_counter() - start
    log = trt_log.important(lines)
    return Plan(data, flavour.name, flavour.version, target, seconds, profiles, tf32, log, notes)


def _build(
    model: ModelProto,
    input_name: str,
    profiles: Sequence[ProfileRecord],
    flavour: Flavour,
    capabilities: tuple[str, ...],
    tf32: bool,
    monitor: Any,
    lines: list[trt_log.LogLine],
) -> tuple[bytes, list[str]]:
    trt: TensorRT = flavour.trt
    logger = trt_log.logger_for(flavour.module)
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
    # So that the engine inspector reports every layer; measured on the COCO model, the plan is not larger for it.
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
    builder: NetworkBuilder,
    config: IBuilderConfig,
    network: INetworkDefinition,
    input_name: str,
    profile: ProfileRecord,
    flavour: Flavour,
    lines: list[trt_log.LogLine],
) -> None:
    batch, height, width = profile.batch, profile.height, profile.width
    channels = network.get_input(0).shape[1]
    smallest = (batch.min, channels, height.min, width.min)
    tuned = (batch.opt, channels, height.opt, width.opt)
    largest = (batch.max, channels, height.max, width.max)
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(input_name, smallest, tuned, largest)
    if config.add_optimization_profile(optimisation) < 0:
        shapes = [smallest, tuned, largest]
        raise _failure(f"TensorRT refuses the input shapes {shapes}", flavour, lines)


def _parse(parser: NetworkParser, model: ModelProto) -> bool:
    with loadable(model) as source:
        if isinstance(source, bytes):
            return bool(parser.parse(source))
        # A large model: the parser reads its weights from files before it returns.
        return bool(parser.parse_from_file(source))


def _only_input(model: ModelProto, input_name: str) -> ValueInfoProto:
    value = find_image_input(model, input_name)
    others = [other.name for other in model.graph.input if other.name != input_name]
    if others:
        raise ModelError(
            f"expected {input_name!r} as the graph's only input, got inputs besides {input_name!r}: {', '.join(others)}",
            "export the network with its image input only",
        )
    return value


def _check_profiles(value: ValueInfoProto, profiles: Sequence[ProfileRecord]) -> None:
    """Check that every profile has the sizes that the graph fixes."""
    dims = value.type.tensor_type.shape.dim
    for profile in profiles:
        ranges = {"batch": profile.batch, "height": profile.height, "width": profile.width}
        for (what, wanted), dim in zip(ranges.items(), (dims[0], dims[2], dims[3]), strict=True):
            if dim.HasField("dim_value") and {wanted.min, wanted.max} != {dim.dim_value}:
                raise ModelError(
                    f"the graph fixes the {what} of {value.name!r} to {dim.dim_value}, the profile has {wanted}",
                    f"leave the {what} at {dim.dim_value}, or make it dynamic with builder.graph.io.make_dynamic",
                )


def _raise_cause(monitor: Any) -> None:
    """Raise what cancelled the build, if anything did."""
    if monitor.error is not None:
        raise monitor.error
    if trt_log.take_interrupt():
        raise KeyboardInterrupt


def _parse_failure(parser: NetworkParser, flavour: Flavour, lines: list[trt_log.LogLine]) -> BackendError:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # A graph-level error has no node.
        where = f"node {error.node_name()} ({error.node_operator()})" if error.node() >= 0 else "the graph"
        found.append(f"{where}: {error.desc()}")
    listed = "".join(f"\n  {line}" for line in found)
    return _failure(f"TensorRT's parser refuses the graph:{listed}", flavour, lines)


def _failure(what: str, flavour: Flavour, lines: list[trt_log.LogLine]) -> BackendError:
    """The error with TensorRT's own log lines of the failing call."""
    own = "".join(f"\n  {line}" for line in trt_log.important(lines))
    return BackendError(
        f"{what}; {flavour.module.__name__} {flavour.version} logged:{own or ' nothing'}",
        "see what it names above; `--flavour none` builds the bundle without a plan",
    )
