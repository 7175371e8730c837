"""The timing cache of full TensorRT, put around the builder of TensorRT for RTX, where these calls do nothing.

As TensorRT's it has a header that says which device it is of, and is refused on another one, or when it is no cache.
A build measures the kernels that the cache does not have.
"""

import json
from typing import Any

HEADER = b"TIMINGS "


class IHostMemory(bytes):
    """Read by way of the buffer protocol."""


class ITimingCache:
    def __init__(self, device: str, kernels: list[str]) -> None:
        self.device, self.kernels = device, kernels

    def serialize(self) -> IHostMemory:
        return IHostMemory(HEADER + json.dumps([self.device, self.kernels]).encode())


class IBuilderConfig:
    """The configuration of RTX with a timing cache; TensorRT's names."""

    device = "GPU A"

    def __init__(self, real: Any) -> None:
        self.__dict__.update(real=real, cache=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cache":
            self.__dict__[name] = value
        else:
            setattr(self.real, name, value)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        data = bytes(serialized_timing_cache)
        if not data:
            return ITimingCache(self.device, [])
        if not data.startswith(HEADER):
            return None
        return ITimingCache(*json.loads(data.removeprefix(HEADER)))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.device != self.device and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        cache: ITimingCache | None = self.cache
        return cache


def builder_with_timings(trt: Any, measured: list[str] | None = None) -> type:
    """A Builder class for a module that plays full TensorRT; it appends to `measured` every kernel that it measures."""

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real = trt.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig(self.real.create_builder_config())

        def build_serialized_network(self, network: Any, config: IBuilderConfig) -> Any:
            cache = config.get_timing_cache() or ITimingCache(config.device, [])
            layers = [network.get_layer(index).name for index in range(network.num_layers)]
            new = [name for name in layers if name not in cache.kernels]
            cache.kernels.extend(new)
            if measured is not None:
                measured.extend(new)
            return self.real.build_serialized_network(network, config.real)

    return Builder
