"""What the benchmark on a GPU measures."""

from dataclasses import dataclass, field
from typing import Any

from centernet_trt.evaluation.bench.gpu_stages import InputKind
from centernet_trt.evaluation.bench.gpu_timer import CacheState
from centernet_trt.evaluation.bench.roofline import COPY_BYTES
from centernet_trt.evaluation.bench.timing import TimingRules
from centernet_trt.runtime.backend import GpuOptions


@dataclass(frozen=True)
class GpuBenchOptions:
    """What to measure.

    Attributes:
        gpu: how the detector uses the GPU; `streams` counts for throughput only, latency has one.
        rules: how long.
        cache: whether the L2 cache is flushed before every call.
        input: where the images come from.
        loads: (streams, batch) pairs of the throughput mode, one thread a stream; empty leaves it out.
        in_flight: single images always under way in `Detector.submit`.
        cold_rounds: new interpreters that are started for the time to first detection.
        copy_bytes: of the copies that the bandwidth is measured with.
    """

    gpu: GpuOptions = field(default_factory=GpuOptions)
    rules: TimingRules = field(default_factory=TimingRules)
    cache: CacheState = "warm"
    input: InputKind = "pageable"
    loads: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (1, 8), (2, 8))
    in_flight: tuple[int, ...] = (16,)
    cold_rounds: int = 3
    copy_bytes: int = COPY_BYTES

    @property
    def how(self) -> str:
        """In words, for the report."""
        graph = "CUDA graph" if self.gpu.cuda_graph else "no CUDA graph"
        return f"{graph}, {self.cache} L2 cache, {self.input} input"

    def load_arguments(self, **over: Any) -> dict[str, Any]:
        """Arguments of `Detector.load`, some of them replaced."""
        plain = {key: getattr(self.gpu, key) for key in GpuOptions.__dataclass_fields__}
        return {"backend": "tensorrt"} | plain | over
