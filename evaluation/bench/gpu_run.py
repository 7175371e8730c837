"""The benchmark on a GPU: the same report as the host's, with the wall clock around the product and events inside it.

Three things are measured of each bundle, in turn: `Detector` as users call it, by the wall clock and with nothing in its
way; its stages, by events and without the CUDA graph (`stages`); and the network alone.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.accuracy.agreement import agreement
from centernet_trt.evaluation.bench.cold_start import cold_start
from centernet_trt.evaluation.bench.gpu_entries import (
    HOST_CPU,
    STAGED,
    Measured,
    Run,
    make_entry,
    make_report,
    network_name,
)
from centernet_trt.evaluation.bench.gpu_options import GpuBenchOptions
from centernet_trt.evaluation.bench.gpu_stages import NetworkAlone, StagedPipeline, given_as
from centernet_trt.evaluation.bench.gpu_throughput import throughput
from centernet_trt.evaluation.bench.gpu_timer import CacheState, GpuTimer
from centernet_trt.evaluation.bench.host_stages import Picture, check_against, load_pictures
from centernet_trt.evaluation.bench.latency import Progress, distinct_names, one_image
from centernet_trt.evaluation.bench.report import BenchReport, Series
from centernet_trt.evaluation.bench.roofline import measure_floor
from centernet_trt.evaluation.bench.run import PIPELINE, Counter
from centernet_trt.evaluation.bench.timing import WHOLE, Sample, Subject, TimingRules, measure
from centernet_trt.evaluation.environment import device_record
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import close_all
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.gpu.backend import GpuBackend

_SURE = 0.3
"""Score from which detections are compared with the host's."""
_NEAR = 2e-3
"""Of scores: two runs of one fp16 network."""
_FLOOR_RULES = TimingRules(0.02, 0.2, 10, 3, allow_short=True)


@dataclass
class _Bench:
    """One bundle under measurement."""

    name: str
    bundle: EngineBundle
    staged: StagedPipeline
    subjects: dict[str, Subject]


def run_gpu_bench(
    bundles: Sequence[EngineBundle],
    images: Sequence[Path],
    options: GpuBenchOptions | None = None,
    *,
    counter: Counter | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> BenchReport:
    """Measure bundles side by side on a GPU.

    Args:
        bundles: one or more, each with a plan that runs there.
        images: files, rotated over.
        options: see `GpuBenchOptions`.
        counter: counts a network's operations.
        command: recorded in the report.
        progress: called with (what, done, in all).

    Raises:
        InputError: no bundles, or an image that one of them cannot take.
        BackendError: TensorRT refuses, or what is timed does not give the product's answers.
        CudaError: the driver refuses.
    """
    if not bundles:
        raise InputError("no bundle was given", "name the folder of one or more")
    options = options or GpuBenchOptions()
    tell = progress or (lambda what, done, total: None)
    pictures, notes = load_pictures(images), list[str]()
    with ExitStack() as stack:
        benches = []
        for name, bundle in zip(distinct_names(bundles), bundles, strict=True):
            tell(f"{name}: load and check", 0, 1)
            benches.append(_prepare(stack, name, bundle, pictures, options, notes))
        timer = benches[0].staged.timer
        tell("machine", 0, 1)
        floor = measure_floor(timer, _FLOOR_RULES, options.copy_bytes)
        run = Run(device_record(timer.device), floor, options, pictures)
        subjects = {f"{b.name}: {name}": subject for b in benches for name, subject in b.subjects.items()}
        samples = measure(subjects, options.rules, progress=tell)
        entries = []
        for bench in benches:
            series = {name: Series.of(samples[f"{bench.name}: {name}"]) for name in bench.subjects}
            measured = _finish(bench, series, images[0], pictures, options, notes, tell)
            entries.append(make_entry(measured, run, counter, notes))
            if bench.staged.timer.late:
                notes.append(
                    f"{bench.name}: in {bench.staged.timer.late} measurements by events the host was late, and there "
                    "are gaps in them"
                )
    return make_report(entries, run, command, notes)


def _finish(
    bench: _Bench,
    series: dict[str, Series],
    image: Path,
    pictures: Sequence[Picture],
    options: GpuBenchOptions,
    notes: list[str],
    tell: Progress,
) -> Measured:
    """What is not measured in turn: throughput, and new interpreters."""
    rows = throughput(bench.name, bench.bundle, pictures, options, tell)
    tell(f"{bench.name}: new interpreters", 0, 1)
    cold: list[dict[str, float]] = []
    try:
        cold = cold_start(
            bench.bundle.path, image, "fast", None, options.cold_rounds, "tensorrt", options.gpu.device
        )
    except BackendError as error:  # what was measured so far shall not be lost
        notes.append(f"{bench.name}: no time to first detection: {error.message}")
    plan = bench.staged.pipeline.executor.plan
    return Measured(bench.name, bench.bundle, plan, series, rows, cold)


def _prepare(
    stack: ExitStack,
    name: str,
    bundle: EngineBundle,
    pictures: Sequence[Picture],
    options: GpuBenchOptions,
    notes: list[str],
) -> _Bench:
    """Load a bundle three times over: stage by stage, as users have it, and waiting without spinning."""
    staged = StagedPipeline(bundle, options.gpu)
    stack.callback(staged.close)
    alone = [options.load_arguments(streams=1, spin=spin) for spin in (True, False)]
    detector, sleepy = (stack.enter_context(Detector.load(bundle, **arguments)) for arguments in alone)
    notes += _check(name, staged, detector, pictures)
    notes.append(_beside_host(name, bundle, detector, pictures))
    if options.gpu.cuda_graph and not all_recorded(detector):
        notes.append(f"{name}: Detector ran without CUDA graphs: the log of the run says why")
    stream = staged.timer.stream
    given = {}
    for user in (staged.pipeline, detector, sleepy):
        given[id(user)], made = given_as(options.input, pictures, user, stream)
        stack.callback(close_all, made)
    networks = {}
    for batch in sorted({1, *(batch for _, batch in options.loads)}):
        try:
            networks[batch] = stack.enter_context(
                NetworkAlone(staged, pictures, batch, options.gpu.cuda_graph)
            )
        except InputError as error:
            notes.append(f"{name}: batch {batch} was left out: {error.message}")
    if options.gpu.cuda_graph and not all(network.graph for network in networks.values()):
        notes.append(f"{name}: the network alone could not be recorded as a CUDA graph")
    cache = options.cache
    subjects = {
        PIPELINE: product_subject(detector, given[id(detector)], staged.timer, cache, time.perf_counter),
        STAGED: Subject(one_image(staged, given[id(staged.pipeline)], staged.clock(cache)), len(pictures)),
        HOST_CPU: product_subject(sleepy, given[id(sleepy)], staged.timer, cache, time.thread_time),
    }
    for batch, network in networks.items():
        subjects[network_name(batch)] = network.subject(cache)
    return _Bench(name, bundle, staged, subjects)


def _check(name: str, staged: StagedPipeline, detector: Detector, pictures: Sequence[Picture]) -> list[str]:
    """Make sure that the stages find what the product finds; a note where the last bits differ.

    Raises:
        BackendError: they find something else.
    """
    clock = staged.clock("warm")
    try:
        check_against(staged, detector, pictures, clock)
    except BackendError:
        for picture in pictures:
            found, wanted = staged.run(picture, clock), detector.detect(picture.pixels)
            if len(found) != len(wanted) or not np.allclose(found.score, wanted.score, rtol=0, atol=_NEAR):
                raise
        return [f"{name}: with and without the CUDA graph the scores differ, by {_NEAR} at most"]
    return []


def all_recorded(detector: Detector) -> bool:
    """Whether every shape that a detector on a GPU has met so far runs as a CUDA graph."""
    backend = detector._backend
    lanes = backend._lanes if isinstance(backend, GpuBackend) else []
    return all(recorded for lane in lanes for recorded in lane.programs.values())


def _beside_host(name: str, bundle: EngineBundle, detector: Detector, pictures: Sequence[Picture]) -> str:
    """How far the detections are those of the same graph in ONNX Runtime on the host, in a sentence."""
    images = [picture.pixels for picture in pictures]
    with Detector.load(bundle, backend="onnxruntime") as host:
        found = agreement(host.detect_batch(images), detector.detect_batch(images), threshold=_SURE)
    if not found.reference + found.candidate:
        return f"{name}: nothing scores {_SURE} or more, so there are no detections to hold to ONNX Runtime's"
    return (
        f"{name}: {found.matched} of {found.candidate} detections at or above score {_SURE} are among the "
        f"{found.reference} of ONNX Runtime on the host (F1 {found.f1:.4f}, scores at most {found.score_max:.4f} apart)"
    )


def product_subject(
    detector: Detector,
    pictures: Sequence[Picture],
    timer: GpuTimer,
    cache: CacheState,
    now: Callable[[], float],
) -> Subject:
    """`Detector.detect`, by a clock of the host; the flush is over before the clock starts."""
    turn = count()

    def call() -> Sample:
        image = pictures[next(turn) % len(pictures)].pixels
        if cache == "cold":
            timer.flush()
            timer.stream.synchronize()
        start = now()
        detector.detect(image)
        return {WHOLE: now() - start}

    return Subject(call, len(pictures))
