"""BenchOptions, and what is timed of one bundle: the Detector's call, its stages, the network alone, baselines."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.agreement import agreement
from centernet_trt.evaluation.bench.baselines import SOURCE_GRAPH, GpuNetwork, HostNetwork
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor, GpuTimer
from centernet_trt.evaluation.bench.report import NETWORK_ALONE
from centernet_trt.evaluation.bench.roofline import COPY_BYTES, MachineRates
from centernet_trt.evaluation.bench.stages import EventTimer, StageTimer, WallTimer
from centernet_trt.evaluation.bench.throughput import BenchImage, Served
from centernet_trt.evaluation.bench.timing import (
    WHOLE,
    CacheState,
    ChosenBackend,
    InputKind,
    Now,
    Sample,
    Subject,
    TimingRules,
)
from centernet_trt.evaluation.environment import device_label, device_record
from centernet_trt.progress import Progress
from centernet_trt.runtime.backend import Backend, GpuOptions, InferenceRequest
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.host.backend import HostBackend
from centernet_trt.runtime.host.onnxruntime import Mode, OnnxRuntimeExecutor
from centernet_trt.runtime.images import read_image
from centernet_trt.runtime.inputs import InputPreparer
from centernet_trt.runtime.manifest import Manifest

Counter = Callable[[EngineBundle, int, int], tuple[int, int]]
"""(multiply-adds, parameters) of a bundle's network for one input of height x width pixels."""

PIPELINE = "pipeline"
STAGED = "stage by stage"
HOST_CPU = "processor time of a call"
_SURE = 0.3
"""Score from which detections are compared with the host's."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        rules: how long.
        backend: where the network runs.
        loads: (threads, batch) pairs of the throughput mode, on a GPU with a stream for each thread; empty leaves it
            out.
        in_flight: numbers of single images always in flight in `Detector.submit`; empty leaves it out.
        cold_rounds: new interpreters that are started for the time to first detection.
        mode: of ONNX Runtime.
        threads: of ONNX Runtime; None for its own choice.
        read: on the host, reading the image file is a stage too.
        rates: the host's, for the lower bounds; None measures them.
        torch: run the PyTorch baselines where PyTorch is installed; on the host only.
        gpu: how the Detector uses the GPU; its `streams` are those of `in_flight`, latency has one.
        cache: state of the L2 cache before every call.
        input: memory that the images come from.
        copy_bytes: of the copies that measure the GPU's bandwidth.
    """

    rules: TimingRules = field(default_factory=TimingRules)
    backend: ChosenBackend = "onnxruntime"
    loads: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (1, 4))
    in_flight: tuple[int, ...] = (8,)
    cold_rounds: int = 3
    mode: Mode = "fast"
    threads: int | None = None
    read: bool = False
    rates: MachineRates | None = None
    torch: bool = True
    gpu: GpuOptions = field(default_factory=GpuOptions)
    cache: CacheState = "warm"
    input: InputKind = "pageable"
    copy_bytes: int = COPY_BYTES


@dataclass
class Bench:
    """One bundle under measurement: its subjects by name, how it runs in words, and Detectors for the throughput."""

    name: str
    bundle: EngineBundle
    subjects: dict[str, Subject]
    executor: str
    mode: str
    serve: Callable[[int | None], Served]
    timer: GpuTimer | None = None


@dataclass
class Run:
    """What the bundles of one run share."""

    options: BenchOptions
    images: Sequence[BenchImage]
    counter: Counter | None
    sources: Mapping[Path, bytes]
    progress: Progress
    cores: int
    notes: list[str] = field(default_factory=list)


def place_images(
    kind: InputKind, images: Sequence[BenchImage], user: Detector | GpuBackend, stream: Stream
) -> tuple[list[BenchImage], list[DeviceTensor]]:
    """The images with their pixels in the memory that they are to come from, and what must be closed afterwards.

    Args:
        kind: `pageable` leaves them; `pinned` copies them to memory of `pinned_image`; `device` to GPU memory.
        images: on the host.
        user: will be given the images.
        stream: for the copies to GPU memory.
    """
    if kind == "pageable":
        return list(images), []
    placed: list[BenchImage] = []
    made: list[DeviceTensor] = []
    for image in images:
        pixels: Any
        if kind == "pinned":
            pixels = user.pinned_image(image.height, image.width)
            pixels[...] = image.pixels
        else:
            pixels = DeviceTensor.of(stream.device, image.pixels, stream)
            made.append(pixels)
        placed.append(replace(image, pixels=pixels))
    return placed, made


def stages(
    manifest: Manifest,
    backend: Backend,
    images: Sequence[BenchImage],
    timer: StageTimer,
    *,
    read: bool = False,
) -> Subject:
    """The product's own path from an image to its detections, each stage marked by the backend.

    Args:
        manifest: of the backend's bundle.
        backend: runs one image at a time, with the spec's threshold and top K.
        images: rotated over.
        timer: its `mark` goes to the backend.
        read: read the image's file in every call, as a stage of its own, instead of using the pixels in memory.
    """
    turn, preparer = count(), InputPreparer(manifest)

    def call() -> Sample:
        image = images[next(turn) % len(images)]
        pixels = image.pixels
        timer.start()
        if read:
            pixels = read_image(image.path)
            timer.mark("read")
        request = InferenceRequest(*preparer.prepare(pixels, backend.check_image))
        backend.run([[request]], timer.mark)
        return timer.finish()

    return Subject(call, len(images))


def detect_call(
    detector: Detector, images: Sequence[BenchImage], timer: GpuTimer, cache: CacheState, now: Now
) -> Subject:
    """`Detector.detect`, by a clock of the host; the cache is flushed before the clock starts."""
    turn = count()

    def call() -> Sample:
        image = images[next(turn) % len(images)].pixels
        if cache == "cold":
            timer.flush()
            timer.stream.synchronize()
        start = now()
        detector.detect(image)
        return {WHOLE: now() - start}

    return Subject(call, len(images))


def open_on_host(
    stack: ExitStack, bundle: EngineBundle, options: BenchOptions
) -> tuple[HostBackend, Detector]:
    """The backend that is timed, and the Detector that owns it; the stack closes both."""
    executor = OnnxRuntimeExecutor(bundle.model_path, bundle.manifest, options.mode, options.threads)
    backend = HostBackend(executor, bundle.manifest)
    return backend, stack.enter_context(Detector(bundle, backend))


def host_stages(
    bundle: EngineBundle, backend: HostBackend, images: Sequence[BenchImage], *, read: bool = False
) -> Subject:
    """The stages on the host, by the wall clock.

    Raises:
        InputError: an image that the bundle does not take: here, before anything is measured.
    """
    subject = stages(bundle.manifest, backend, images, WallTimer(), read=read)
    for _ in images:
        subject.call()
    return subject


def host_bench(stack: ExitStack, name: str, bundle: EngineBundle, run: Run) -> Bench:
    """Load a bundle in ONNX Runtime.

    Args:
        stack: closes what is opened.
        name: of the bundle in the report.
        bundle: to measure.
        run: what all bundles share.

    Raises:
        InputError: an image that the bundle does not take.
        BackendError: a network fails, or a baseline disagrees with the product.
    """
    options = run.options
    backend, detector = open_on_host(stack, bundle, options)
    made = {PIPELINE: host_stages(bundle, backend, run.images, read=options.read)}
    network = HostNetwork(bundle, backend, [image.pixels for image in run.images])
    made[NETWORK_ALONE] = network.alone()
    if bundle.path in run.sources:
        made[SOURCE_GRAPH] = network.source_graph(run.sources[bundle.path])
    if options.torch:
        decodes, notes = network.torch_decodes(run.cores)
        made |= decodes
        run.notes += notes
    return Bench(
        name, bundle, made, backend.note, options.mode, lambda threads: nullcontext((detector, run.images))
    )


def gpu_bench(stack: ExitStack, name: str, bundle: EngineBundle, run: Run) -> Bench:
    """Load a bundle twice on a GPU: waiting by spinning as users have it, and sleeping, for a call's processor time.

    Args:
        stack: closes what is opened.
        name: of the bundle in the report.
        bundle: to measure.
        run: what all bundles share.

    Raises:
        InputError: an image that the bundle does not take.
        BackendError: TensorRT refuses.
        CudaError: the driver refuses.
    """
    options, cache = run.options, run.options.cache
    backend = GpuBackend.load(bundle, replace(options.gpu, streams=1, spin=True))
    detector = stack.enter_context(Detector(bundle, backend))
    sleeper = stack.enter_context(
        Detector(bundle, GpuBackend.load(bundle, replace(options.gpu, streams=1, spin=False)))
    )
    timer = stack.enter_context(GpuTimer(backend.device, *backend.streams))
    for image in run.images:  # every shape is recorded, or refused, before anything is measured
        detector.detect(image.pixels)
    run.notes.append(_beside_host(name, bundle, detector, run.images))
    graph = options.gpu.cuda_graph
    if graph and not backend.recorded:
        run.notes.append(f"{name}: Detector ran without CUDA graphs: the log of the run says why")
    placed = []
    for user in (detector, sleeper):
        images, made = place_images(options.input, run.images, user, timer.stream)
        stack.callback(close_all, made)
        placed.append(images)
    events = EventTimer(timer, backend.stages[-1], cache)
    timed = {
        PIPELINE: detect_call(detector, placed[0], timer, cache, time.perf_counter),
        STAGED: stages(bundle.manifest, backend, placed[0], events),
        HOST_CPU: detect_call(sleeper, placed[1], timer, cache, time.thread_time),
    }
    networks = []
    for batch in sorted({1, *(batch for _, batch in options.loads)}):
        try:
            network = stack.enter_context(
                GpuNetwork(backend, timer, [image.pixels for image in run.images], batch, graph)
            )
        except InputError as error:
            run.notes.append(f"{name}: batch {batch} was left out: {error.message}")
            continue
        networks.append(network)
        timed[NETWORK_ALONE if batch == 1 else f"{NETWORK_ALONE}, batch {batch}"] = network.subject(cache)
    if graph and not all(network.graph for network in networks):
        run.notes.append(f"{name}: the network alone could not be recorded as a CUDA graph")
    plan, device = backend.executor.plan, device_record(timer.device)
    executor = f"TensorRT {plan.flavour} {plan.version} ({plan.target}) on {device_label(device)}"
    how = f"{'CUDA graph' if graph else 'no CUDA graph'}, {cache} L2 cache, {options.input} input, {device['binding']}"
    return Bench(name, bundle, timed, executor, how, partial(_serve_on_gpu, bundle, run), timer)


@contextmanager
def _serve_on_gpu(
    bundle: EngineBundle, run: Run, streams: int | None
) -> Iterator[tuple[Detector, list[BenchImage]]]:
    """A Detector with so many streams, None for the options', and the images in the memory that they come from."""
    options = replace(run.options.gpu, streams=streams or run.options.gpu.streams)
    with (
        Detector(bundle, GpuBackend.load(bundle, options), workers=options.streams) as detector,
        Device.open(options.device, options.binding) as device,
        ExitStack() as stack,
    ):
        images, made = place_images(run.options.input, run.images, detector, device.stream())
        stack.callback(close_all, made)
        largest = max(profile.batch.max for profile in bundle.manifest.profiles)
        batches = {1, *(batch for _, batch in run.options.loads if batch <= largest)}
        detector.warmup(sorted({(image.width, image.height) for image in run.images}), sorted(batches))
        yield detector, images


def _beside_host(name: str, bundle: EngineBundle, detector: Detector, images: Sequence[BenchImage]) -> str:
    """How far the detections agree with those of the same graph in ONNX Runtime on the host, in a sentence."""
    pixels = [image.pixels for image in images]
    with Detector.load(bundle, backend="onnxruntime") as host:
        found = agreement(host.detect_batch(pixels), detector.detect_batch(pixels), threshold=_SURE)
    if not found.reference + found.candidate:
        return f"{name}: nothing scores {_SURE} or more, so there are no detections to compare with ONNX Runtime's"
    return (
        f"{name}: {found.matched} of {found.candidate} detections at or above score {_SURE} are among the "
        f"{found.reference} of ONNX Runtime on the host (F1 {found.f1:.4f}, scores at most {found.score_max:.4f} apart)"
    )
