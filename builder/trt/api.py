"""TensorRT's Python API as far as a build calls it: the protocols that type checkers hold our calls to.

TensorRT ships no type information. A protocol is named after the class that it describes; those of classes and enumerations
that a module makes objects of are the annotations of `TensorRT`. Tests compare every name with TensorRT's own.
"""
# ruff: noqa: D101, D102 - what the members do is TensorRT's documentation

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = [
    "IBuilderConfig",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITimingCache",
    "NetworkBuilder",
    "NetworkParser",
    "ParserError",
    "TensorRT",
]


class Member(Protocol):
    """A member of one of TensorRT's enumerations."""

    def __int__(self) -> int: ...


class BuilderFlags(Protocol):
    TF32: Member


class NetworkFlags(Protocol):
    STRONGLY_TYPED: Member


class Verbosities(Protocol):
    DETAILED: Member


class Capabilities(Protocol):
    CURRENT: Member


class IHostMemory(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITensor(Protocol):
    shape: Sequence[int]


class INetworkDefinition(Protocol):
    def get_input(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class ITimingCache(Protocol):
    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    profiling_verbosity: Member
    progress_monitor: object
    num_compute_capabilities: int

    def set_flag(self, flag: Member) -> None: ...
    def clear_flag(self, flag: Member) -> None: ...
    def set_compute_capability(self, capability: Member, index: int) -> bool: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class NetworkBuilder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class ParserError(Protocol):
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def desc(self) -> str: ...


class NetworkParser(Protocol):
    num_errors: int

    def parse(self, model: bytes) -> bool: ...
    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class TensorRT(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    Builder: Callable[[object], NetworkBuilder]
    OnnxParser: Callable[[INetworkDefinition, object], NetworkParser]
    BuilderFlag: BuilderFlags
    NetworkDefinitionCreationFlag: NetworkFlags
    ProfilingVerbosity: Verbosities
    ComputeCapability: Capabilities
    init_libnvinfer_plugins: Callable[[object, str], bool]
