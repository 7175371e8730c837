"""Throughput: closed-loop load on a Detector, from several threads, in batches and through `submit`."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, groupby, islice
from pathlib import Path

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.report import ThroughputRecord
from centernet_trt.evaluation.bench.statistics import TimedRequest
from centernet_trt.evaluation.bench.timing import Now, TimingRules
from centernet_trt.progress import Progress
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.images import IMAGE_SUFFIXES, BgrImage, read_image
from centernet_trt.runtime.serving.types import RequestStatistics

Detect = Callable[[Sequence[BgrImage]], object]


@dataclass(frozen=True)
class BenchImage:
    """An image in memory.

    Attributes:
        path: its file.
        pixels: (H, W, 3) uint8, blue first; in GPU memory after `place_images(kind="device")`.
    """

    path: Path
    pixels: BgrImage

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])


def pick_images(folder: Path, most: int) -> list[Path]:
    """At most `most` image files of a folder, evenly spread over the sorted names.

    Raises:
        InputError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", "give a folder of images")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise InputError(
            f"the folder {folder} holds no images", "expected " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    chosen = min(most, len(paths))
    return [paths[row * len(paths) // chosen] for row in range(chosen)]


def load_images(paths: Sequence[Path]) -> list[BenchImage]:
    """The images in memory; InputError for one that cannot be read."""
    return [BenchImage(path, read_image(path)) for path in paths]


Load = tuple[int, int]
"""(threads that send requests, images in a request)."""

Served = AbstractContextManager[tuple[Detector, Sequence[BenchImage]]]


def make_batches(images: Sequence[BenchImage], bundle: EngineBundle, size: int) -> list[list[BgrImage]]:
    """Batches of `size` images each, whose network inputs are equally large, so that they run together.

    Every image is the first of one batch; the others follow it among those of its input size, again from the start
    where there are too few.
    """
    rule = bundle.manifest.spec.input.size
    groups: dict[tuple[int, int], list[BgrImage]] = {}
    for image in images:
        groups.setdefault(rule.network_size(image.width, image.height), []).append(image.pixels)
    return [
        list(islice(cycle(group), row, row + size)) for group in groups.values() for row in range(len(group))
    ]


def measure_throughput(
    serve: Callable[[int | None], Served],
    bundle: EngineBundle,
    loads: Sequence[Load],
    in_flight: Sequence[int],
    rules: TimingRules,
    progress: Progress,
) -> list[ThroughputRecord]:
    """A record for each load that the bundle takes.

    Args:
        serve: opens a Detector for so many threads (None for `submit`), and the images where they come from.
        bundle: the Detector's.
        loads: a request beyond the bundle's largest batch is left out, since the Detector would split it.
        in_flight: numbers of single images always in flight in `Detector.submit`.
        rules: how long each.
        progress: see `Progress`.

    Raises:
        CenterNetError: the first error of a request.
    """
    largest = max(profile.batch.max for profile in bundle.manifest.profiles)
    taken = sorted({load for load in loads if load[1] <= largest})
    total = len(taken) + len(in_flight)
    records: list[ThroughputRecord] = []
    for threads, group in groupby(taken, key=lambda load: load[0]):
        with serve(threads) as (detector, images):
            for _, batch in group:
                progress(f"{threads} threads, batch {batch}", len(records), total)
                requests = drive(detector.detect_batch, make_batches(images, bundle, batch), threads, rules)
                records.append(
                    ThroughputRecord(threads=threads, batch=batch, requests=_since_first(requests))
                )
    if not in_flight:
        return records
    with serve(None) as (detector, images):
        singles = make_batches(images, bundle, 1)
        for count in in_flight:
            progress(f"{count} in flight", len(records), total)
            before = detector.stats
            requests = drive(lambda one: detector.submit(one[0]).result(), singles, count, rules)
            records.append(
                ThroughputRecord(
                    threads=count,
                    batch=1,
                    way="submit",
                    mean_batch=_mean_batch(before, detector.stats),
                    requests=_since_first(requests),
                )
            )
    return records


def _since_first(requests: Sequence[TimedRequest]) -> tuple[tuple[float, float, int], ...]:
    began = min(request.start for request in requests)
    return tuple((round(r.start - began, 9), round(r.end - began, 9), r.images) for r in requests)


def _mean_batch(before: RequestStatistics, after: RequestStatistics) -> float:
    """Images in a batch, between two readings of a Detector's statistics."""
    made = {size: count - before.batch_sizes.get(size, 0) for size, count in after.batch_sizes.items()}
    return sum(size * count for size, count in made.items()) / max(1, sum(made.values()))


def drive(
    detect: Detect,
    batches: Sequence[Sequence[BgrImage]],
    threads: int,
    rules: TimingRules,
    now: Now = time.perf_counter,
) -> list[TimedRequest]:
    """Send requests from several threads, each its next batch as soon as its last is answered.

    Every thread warms up by itself; requests count from the moment that all have.

    Args:
        detect: called from every thread at once.
        batches: rotated over; each thread starts at another one.
        threads: how many.
        rules: the duration, and the number of requests over all threads.
        now: the clock.

    Returns:
        The requests in the order of their answers.

    Raises:
        InputError: no batches, or no threads.
        CenterNetError: the first error that `detect` raised; the other threads stop.
    """
    if not batches or threads < 1:
        raise InputError(
            f"expected at least one batch and one thread, got {len(batches)} batches and {threads} threads"
        )
    run = _Run(detect, batches, threads, rules, now)
    with ThreadPoolExecutor(threads, thread_name_prefix="bench") as pool:
        workers = [pool.submit(run.work, row) for row in range(threads)]
    errors = [error for worker in workers if (error := worker.exception()) is not None]
    for error in errors:
        # A broken barrier only says that another thread failed.
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return sorted(run.requests, key=lambda request: request.end)


class _Run:
    """State that the threads of one measurement share."""

    def __init__(
        self,
        detect: Detect,
        batches: Sequence[Sequence[BgrImage]],
        threads: int,
        rules: TimingRules,
        now: Now,
    ) -> None:
        self._detect, self._batches, self._rules, self._now = detect, batches, rules, now
        self._began = 0.0
        self._ready = threading.Barrier(threads, action=self._begin)
        self._failed = False
        # list.append is atomic: every thread adds to it.
        self.requests: list[TimedRequest] = []

    def _begin(self) -> None:
        self._began = self._now()

    def work(self, row: int) -> None:
        """One thread, from warm-up to the end."""
        try:
            start = self._now()
            self._send(row)
            while self._now() - start < self._rules.warmup:
                self._send(row)
            self._ready.wait()
            while self._unfinished():
                row += 1
                self.requests.append(self._send(row))
        except BaseException:
            self._failed = True
            self._ready.abort()
            raise

    def _send(self, row: int) -> TimedRequest:
        batch = self._batches[row % len(self._batches)]
        start = self._now()
        self._detect(batch)
        return TimedRequest(start, self._now(), len(batch))

    def _unfinished(self) -> bool:
        if self._failed:
            return False
        # The stability rule needs three parts of three requests each.
        fewest = max(self._rules.iterations, 9)
        return self._now() - self._began < self._rules.duration or len(self.requests) < fewest
