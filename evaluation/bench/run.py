"""The latency benchmark: bundles in, a report out. Everything that is compared is measured in turn in one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.evaluation.bench.baselines import SOURCE_GRAPH, network_alone, source_graph, torch_decodes
from centernet_trt.evaluation.bench.cold_start import cold_start
from centernet_trt.evaluation.bench.host_stages import (
    HostPipeline,
    Picture,
    check_against,
    load_pictures,
    make_batches,
)
from centernet_trt.evaluation.bench.latency import distinct_names, one_image
from centernet_trt.evaluation.bench.report import (
    NETWORK_ALONE,
    BenchReport,
    Entry,
    FloorRecord,
    ImageRecord,
    Rules,
    Series,
    ThroughputRecord,
)
from centernet_trt.evaluation.bench.roofline import (
    MachineRates,
    StageCost,
    faster,
    measure_rates,
    stage_costs,
)
from centernet_trt.evaluation.bench.throughput import Request, drive
from centernet_trt.evaluation.bench.timing import Sample, Subject, TimingRules, WallClock, measure
from centernet_trt.evaluation.environment import environment
from centernet_trt.progress import Progress
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.serving.types import RequestStatistics

Counter = Callable[[EngineBundle, int, int], tuple[int, int]]
"""(multiply-adds, parameters) of a bundle's network for one input of height x width pixels."""
PIPELINE = "pipeline"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        rules: how long.
        mode: of ONNX Runtime.
        threads: of ONNX Runtime; None for its own choice.
        read: reading the image file is a stage too.
        loads: (threads, batch) pairs of the throughput mode; empty leaves it out.
        in_flight: of the throughput mode too: so many single images always under way in `Detector.submit`.
        rates: the machine's, for the floor; None measures them.
        cold_rounds: new interpreters that are started for the time to first detection.
        torch: run the PyTorch baselines where PyTorch is installed.
    """

    rules: TimingRules = field(default_factory=TimingRules)
    mode: Mode = "fast"
    threads: int | None = None
    read: bool = False
    loads: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (1, 4))
    in_flight: tuple[int, ...] = (8,)
    rates: MachineRates | None = None
    cold_rounds: int = 3
    torch: bool = True


@dataclass
class _Bench:
    """One bundle under measurement."""

    name: str
    bundle: EngineBundle
    pipeline: HostPipeline
    subjects: dict[str, Subject]
    costs: dict[str, list[StageCost]]
    work: tuple[int, int] | None


def run_bench(
    bundles: Sequence[EngineBundle],
    images: Sequence[Path],
    options: BenchOptions | None = None,
    *,
    counter: Counter | None = None,
    sources: Mapping[Path, bytes] | None = None,
    command: str = "",
    progress: Progress | None = None,
    pipeline_of: Callable[..., HostPipeline] = HostPipeline,
) -> BenchReport:
    """Measure bundles side by side.

    Args:
        bundles: one or more.
        images: files, rotated over; pixels are held in memory.
        options: see `BenchOptions`.
        counter: counts a network's operations; without it the floor has bytes only.
        sources: by a bundle's folder, its source graph for the plain ONNX Runtime baseline.
        command: recorded in the report.
        progress: called with (what, done, in all).
        pipeline_of: makes the pipeline that is timed.

    Raises:
        InputError: no bundles, or an image that one of them cannot take.
        BackendError: a network fails, or what is timed does not give the product's answers.
    """
    if not bundles:
        raise InputError("no bundle was given", "name the folder of one or more")
    options = options or BenchOptions()
    tell = progress or (lambda what, done, total: None)
    found = environment()
    tell("machine", 0, 1)
    rates = options.rates or measure_rates(found.cores)
    pictures = load_pictures(images)
    notes: list[str] = []
    benches: list[_Bench] = []
    try:
        for name, bundle in zip(distinct_names(bundles), bundles, strict=True):
            tell(f"{name}: load and check", 0, 1)
            pipeline = pipeline_of(bundle, options.mode, options.threads, read=options.read)
            subjects = {PIPELINE: Subject(one_image(pipeline, pictures, WallClock()), len(pictures))}
            bench = _Bench(name, bundle, pipeline, subjects, {}, None)
            benches.append(bench)
            _check(bench, pictures, options)
            _count(bench, pictures, counter, notes)
            _add_baselines(bench, pictures, options, sources or {}, found.cores, notes)
        series = measure(
            {f"{bench.name}: {name}": s for bench in benches for name, s in bench.subjects.items()},
            options.rules,
            progress=tell,
        )
        if options.rates is None:
            # Before and after everything else: a floor must not be high because the machine was busy for a second.
            rates = faster(rates, measure_rates(found.cores))
        entries = [_entry(bench, series, pictures, images[0], options, rates, tell) for bench in benches]
    finally:
        for bench in benches:
            bench.pipeline.close()
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        rules=Rules.of(options.rules),
        images=tuple(
            ImageRecord(name=p.path.name, width=p.pixels.shape[1], height=p.pixels.shape[0]) for p in pictures
        ),
        rates=rates.to_json(),
        environment=found.to_json(),
        entries=tuple(entries),
        notes=tuple(dict.fromkeys(notes)),
    )


def _host_detector(bench: _Bench, options: BenchOptions) -> Detector:
    """The product on the host, which is what `HostPipeline` times, whether there is a GPU or not."""
    return Detector.load(bench.bundle, backend="onnxruntime", mode=options.mode, threads=options.threads)


def _check(bench: _Bench, pictures: Sequence[Picture], options: BenchOptions) -> None:
    with _host_detector(bench, options) as detector:
        check_against(bench.pipeline, detector, pictures, WallClock())


def _count(bench: _Bench, pictures: Sequence[Picture], counter: Counter | None, notes: list[str]) -> None:
    """Fill in the network's operations and every stage's cost, image by image."""
    manifest = bench.bundle.manifest
    counted: dict[tuple[int, int], tuple[int, int] | None] = {}
    for picture in pictures:
        placement = place(manifest.spec.input, picture.pixels.shape[1], picture.pixels.shape[0])
        size = (placement.height, placement.width)
        if size not in counted:
            counted[size] = None
            try:
                counted[size] = counter(bench.bundle, *size) if counter else None
            except CenterNetError as error:
                notes.append(f"{bench.name}: operations were not counted: {error.message}")
        work = counted[size]
        bench.work = bench.work or work
        costs = stage_costs(manifest, placement, work[0] if work else None)
        for stage, cost in costs.items():
            bench.costs.setdefault(stage, []).append(cost)


def _add_baselines(
    bench: _Bench,
    pictures: Sequence[Picture],
    options: BenchOptions,
    sources: Mapping[Path, bytes],
    cores: int,
    notes: list[str],
) -> None:
    bench.subjects[NETWORK_ALONE] = network_alone(bench.pipeline, pictures)
    if bench.bundle.path in sources:
        graph = sources[bench.bundle.path]
        bench.subjects[SOURCE_GRAPH] = source_graph(graph, bench.pipeline, pictures)
    if options.torch:
        decodes, said = torch_decodes(bench.pipeline, pictures, cores)
        bench.subjects |= decodes
        notes += said


def _entry(
    bench: _Bench,
    series: Mapping[str, list[list[Sample]]],
    pictures: Sequence[Picture],
    image: Path,
    options: BenchOptions,
    rates: MachineRates,
    tell: Progress,
) -> Entry:
    manifest = bench.bundle.manifest
    measured = {name: Series.of(series[f"{bench.name}: {name}"]) for name in bench.subjects}
    sizes = [manifest.spec.input.size.network_size(p.pixels.shape[1], p.pixels.shape[0]) for p in pictures]
    tell(f"{bench.name}: new interpreters", 0, 1)
    cold = cold_start(bench.bundle.path, image, options.mode, options.threads, options.cold_rounds)
    return Entry(
        name=bench.name,
        precision=manifest.precision,
        source_sha256=manifest.source.sha256,
        model_sha256=manifest.model.sha256,
        executor=bench.pipeline.note or "TensorRT",
        mode=options.mode,
        inputs=tuple(f"{width}x{height}" for width, height in sorted(set(sizes))),
        multiply_adds=bench.work[0] if bench.work else None,
        parameters=bench.work[1] if bench.work else None,
        pipeline=measured.pop(PIPELINE),
        alone=measured,
        throughput=tuple(_throughput(bench, pictures, options, tell)),
        cold=tuple(cold),
        floors={stage: _floor(costs, rates) for stage, costs in bench.costs.items()},
    )


def _floor(costs: Sequence[StageCost], rates: MachineRates) -> FloorRecord:
    """The floor of the median image."""
    cost = sorted(costs, key=lambda cost: cost.floor(rates))[len(costs) // 2]
    return FloorRecord(
        bytes=cost.bytes,
        operations=cost.operations,
        counted=cost.counted,
        seconds=cost.floor(rates),
        bound="bytes" if cost.bound(rates) == "bytes" else "operations",
    )


def _throughput(
    bench: _Bench, pictures: Sequence[Picture], options: BenchOptions, tell: Progress
) -> list[ThroughputRecord]:
    largest = max(profile.batch.max for profile in bench.bundle.manifest.profiles)
    # A batch above the largest would be split by the detector: not a batch of this size.
    calls = [(threads, batch) for threads, batch in options.loads if batch <= largest]
    total = len(calls) + len(options.in_flight)
    rows = []
    with _host_detector(bench, options) as detector:
        for done, (threads, batch) in enumerate(calls):
            tell(f"{bench.name}: {threads} threads, batch {batch}", done, total)
            batches = make_batches(pictures, bench.bundle, batch)
            requests = drive(detector.detect_batch, batches, threads, options.rules, time.perf_counter)
            rows.append(ThroughputRecord(threads=threads, batch=batch, requests=_since_first(requests)))
        singles = make_batches(pictures, bench.bundle, 1)
        for done, waiting in enumerate(options.in_flight, len(calls)):
            tell(f"{bench.name}: {waiting} submitted at once", done, total)
            before = detector.stats
            requests = drive(
                lambda one: detector.submit(one[0]).result(),
                singles,
                waiting,
                options.rules,
                time.perf_counter,
            )
            rows.append(
                ThroughputRecord(
                    threads=waiting,
                    batch=1,
                    way="submit",
                    mean_batch=_mean_batch(before, detector.stats),
                    requests=_since_first(requests),
                )
            )
    return rows


def _since_first(requests: Sequence[Request]) -> tuple[tuple[float, float, int], ...]:
    began = min(request.start for request in requests)
    return tuple((round(r.start - began, 9), round(r.end - began, 9), r.images) for r in requests)


def _mean_batch(before: RequestStatistics, after: RequestStatistics) -> float:
    """Images in a batch, between two readings of a detector's statistics."""
    made = {size: count - before.batch_sizes.get(size, 0) for size, count in after.batch_sizes.items()}
    return sum(size * count for size, count in made.items()) / max(1, sum(made.values()))
