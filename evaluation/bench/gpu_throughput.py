"""Many requests at once on a GPU: threads with a stream each, batches, and single images through `Detector.submit`."""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self

from centernet_trt.evaluation.bench.gpu_options import GpuBenchOptions
from centernet_trt.evaluation.bench.gpu_stages import given_as
from centernet_trt.evaluation.bench.host_stages import Picture, make_batches
from centernet_trt.evaluation.bench.report import ThroughputRecord
from centernet_trt.evaluation.bench.throughput import Request, drive
from centernet_trt.progress import Progress
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.detector import Detector


def throughput(
    name: str, bundle: EngineBundle, pictures: Sequence[Picture], options: GpuBenchOptions, tell: Progress
) -> list[ThroughputRecord]:
    """A row for each load that the bundle takes.

    Raises:
        CenterNetError: whatever a request raised first.
    """
    largest = largest_batch_of(bundle)
    loads = sorted({load for load in options.loads if load[1] <= largest})
    rows: list[ThroughputRecord] = []
    for streams, group in groupby(loads, key=lambda load: load[0]):
        with _Loaded(bundle, pictures, options, streams) as loaded:
            for _, batch in group:
                tell(f"{name}: {streams} streams, batch {batch}", len(rows), len(loads))
                batches = make_batches(loaded.pictures, bundle, batch)
                asked = drive(
                    loaded.detector.detect_batch, batches, streams, options.rules, time.perf_counter
                )
                rows.append(ThroughputRecord(threads=streams, batch=batch, requests=since_first(asked)))
    for waiting in options.in_flight:
        tell(f"{name}: {waiting} submitted at once", 0, 1)
        with _Loaded(bundle, pictures, options, options.gpu.streams) as loaded:
            rows.append(
                _submitted(loaded.detector, make_batches(loaded.pictures, bundle, 1), waiting, options)
            )
    return rows


class _Loaded:
    """A detector with so many streams, and the pictures where they are to come from."""

    def __init__(
        self, bundle: EngineBundle, pictures: Sequence[Picture], options: GpuBenchOptions, streams: int
    ) -> None:
        self.detector = Detector.load(bundle, **options.load_arguments(streams=streams))
        self._device = Device.open(options.gpu.device, options.gpu.binding)
        self.pictures, self._made = given_as(options.input, pictures, self.detector, self._device.stream())
        self.detector.warmup(
            sorted({(p.pixels.shape[1], p.pixels.shape[0]) for p in pictures}),
            sorted({1, *(batch for _, batch in options.loads if batch <= largest_batch_of(bundle))}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detector.close()
        close_all([*self._made, self._device])


def largest_batch_of(bundle: EngineBundle) -> int:
    """Most images that any of the bundle's profiles takes."""
    return max(profile.batch.max for profile in bundle.manifest.profiles)


def _submitted(
    detector: Detector, singles: Sequence[Sequence[Any]], waiting: int, options: GpuBenchOptions
) -> ThroughputRecord:
    before = detector.stats.batch_sizes
    asked = drive(
        lambda one: detector.submit(one[0]).result(), singles, waiting, options.rules, time.perf_counter
    )
    made = {size: n - before.get(size, 0) for size, n in detector.stats.batch_sizes.items()}
    mean = sum(size * n for size, n in made.items()) / max(1, sum(made.values()))
    return ThroughputRecord(
        threads=waiting, batch=1, way="submit", mean_batch=mean, requests=since_first(asked)
    )


def since_first(requests: Sequence[Request]) -> tuple[tuple[float, float, int], ...]:
    """(asked, answered, images) of each, in seconds since the first was asked."""
    began = min(request.start for request in requests)
    return tuple((round(r.start - began, 9), round(r.end - began, 9), r.images) for r in requests)
