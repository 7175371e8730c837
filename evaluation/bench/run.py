"""`run_bench`: bundles in, a BenchReport out, on the host or on a GPU. All that is compared is interleaved in one run.

What is timed is the product itself: `Detector` as users call it, and its backend with a stage timer as its `mark`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.evaluation.bench.cold_start import cold_start
from centernet_trt.evaluation.bench.report import BenchReport, Entry, ImageRecord, LowerBound, Rules, Series
from centernet_trt.evaluation.bench.roofline import (
    GpuRates,
    MachineRates,
    StageCost,
    faster,
    lower_bound,
    measure_gpu_rates,
    measure_rates,
    stage_costs,
)
from centernet_trt.evaluation.bench.subjects import (
    PIPELINE,
    STAGED,
    Bench,
    BenchOptions,
    Counter,
    Run,
    gpu_bench,
    host_bench,
    host_stages,
    open_on_host,
)
from centernet_trt.evaluation.bench.throughput import load_images, measure_throughput
from centernet_trt.evaluation.bench.timing import Sample, TimingRules, measure
from centernet_trt.evaluation.environment import device_label, device_record, environment
from centernet_trt.progress import Progress
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.onnxruntime import Mode

_SERIES = (
    "`whole` is the wall time of Detector.detect with nothing else in its way; the stages are a second series, by CUDA "
    "events and without the CUDA graph, which events cannot look into"
)
_RATES_RULES = TimingRules(0.02, 0.2, 10, 3, allow_short=True)


def run_bench(
    bundles: Sequence[EngineBundle],
    images: Sequence[Path],
    options: BenchOptions | None = None,
    *,
    counter: Counter | None = None,
    sources: Mapping[Path, bytes] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> BenchReport:
    """Measure bundles side by side.

    Args:
        bundles: one or more; for TensorRT each with a plan that runs on the GPU.
        images: files, rotated over; pixels are held in memory.
        options: see `BenchOptions`.
        counter: counts a network's operations; without it the lower bounds are of bytes only.
        sources: by a bundle's folder, its source graph for the plain ONNX Runtime baseline; on the host only.
        command: recorded in the report.
        progress: see `Progress`.

    Returns:
        The report, with every sample.

    Raises:
        InputError: no bundles, or an image that one of them cannot take.
        BackendError: a network fails, or a baseline disagrees with the product.
        CudaError: the driver refuses.
    """
    if not bundles:
        raise InputError("no bundle was given", "name the folder of one or more")
    options = options or BenchOptions()
    found = environment()
    loaded, quiet = load_images(images), lambda what, done, total: None
    run = Run(options, loaded, counter, sources or {}, progress or quiet, found.cores)
    prepare = gpu_bench if options.backend == "tensorrt" else host_bench
    with ExitStack() as stack:
        benches: list[Bench] = []
        for name, bundle in zip(distinct_names(bundles), bundles, strict=True):
            run.progress(f"{name}: load and check", 0, 1)
            benches.append(prepare(stack, name, bundle, run))
        run.progress("machine", 0, 1)
        rates = _measure_rates(benches[0], run)
        samples = measure(
            {f"{b.name}: {name}": subject for b in benches for name, subject in b.subjects.items()},
            options.rules,
            progress=run.progress,
        )
        if isinstance(rates, MachineRates) and options.rates is None:
            # Before and after everything else: a lower bound must not be high because the machine was busy for a second.
            rates = faster(rates, measure_rates(found.cores))
        record = _rates_record(rates, benches[0])
        if isinstance(rates, GpuRates):
            run.notes[:0] = [f"device: {device_label(record['device'])}", _SERIES]
        entries = [_entry(bench, samples, rates, run) for bench in benches]
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        rules=Rules.of(options.rules),
        images=tuple(ImageRecord(name=i.path.name, width=i.width, height=i.height) for i in run.images),
        rates=record,
        environment=found.to_json(),
        entries=tuple(entries),
        notes=tuple(dict.fromkeys(run.notes)),
    )


def measure_latency(
    bundles: Sequence[EngineBundle],
    images: Sequence[Path],
    progress: Progress | None = None,
    rules: TimingRules | None = None,
    mode: Mode = "fast",
) -> list[tuple[Series, str]]:
    """Only the latency of one image on the host, of several bundles interleaved.

    Returns:
        For each bundle, its samples and the note on how its network ran.

    Raises:
        InputError, BackendError: as `run_bench`.
    """
    loaded, names = load_images(images), distinct_names(bundles)
    with ExitStack() as stack:
        opened = [open_on_host(stack, bundle, BenchOptions(mode=mode)) for bundle in bundles]
        timed = {
            name: host_stages(bundle, backend, loaded)
            for name, bundle, (backend, _) in zip(names, bundles, opened, strict=True)
        }
        found = measure(timed, rules or TimingRules(), progress=progress)
        return [
            (Series.of(found[name]), backend.note) for name, (backend, _) in zip(names, opened, strict=True)
        ]


def distinct_names(bundles: Sequence[EngineBundle]) -> list[str]:
    """A unique name for each bundle: the manifest's, numbered where two share it."""
    names: list[str] = []
    for bundle in bundles:
        name, number = bundle.manifest.name, 2
        while name in names:
            name, number = f"{bundle.manifest.name} #{number}", number + 1
        names.append(name)
    return names


def _measure_rates(bench: Bench, run: Run) -> MachineRates | GpuRates:
    if bench.timer is not None:
        return measure_gpu_rates(bench.timer, _RATES_RULES, run.options.copy_bytes)
    return run.options.rates or measure_rates(run.cores)


def _rates_record(rates: MachineRates | GpuRates, bench: Bench) -> dict[str, Any]:
    """The rates as the report records them."""
    if isinstance(rates, MachineRates):
        return rates.to_json()
    assert bench.timer is not None
    return {
        "bytes_per_second": rates.copy,
        "operations_per_second": 0.0,
        "source": f"{rates.memory.source}; operations were not rated",
        "floor": rates.to_json(),
        "device": device_record(bench.timer.device),
    }


def _entry(
    bench: Bench, samples: Mapping[str, list[list[Sample]]], rates: MachineRates | GpuRates, run: Run
) -> Entry:
    manifest = bench.bundle.manifest
    series = {name: Series.of(samples[f"{bench.name}: {name}"]) for name in bench.subjects}
    sizes = {manifest.spec.input.size.network_size(image.width, image.height) for image in run.images}
    work, floors = _lower_bounds(bench, rates, run)
    throughput = measure_throughput(
        bench.serve,
        bench.bundle,
        run.options.loads,
        run.options.in_flight,
        run.options.rules,
        lambda what, done, total: run.progress(f"{bench.name}: {what}", done, total),
    )
    run.progress(f"{bench.name}: new interpreters", 0, 1)
    cold = _cold_starts(bench, run)
    if bench.timer is not None and bench.timer.late:
        run.notes.append(
            f"{bench.name}: in {bench.timer.late} measurements by events the host was late, and there are gaps in them"
        )
    return Entry(
        name=bench.name,
        precision=manifest.precision,
        source_sha256=manifest.source.sha256,
        model_sha256=manifest.model.sha256,
        executor=bench.executor,
        mode=bench.mode,
        inputs=tuple(f"{width}x{height}" for width, height in sorted(sizes)),
        multiply_adds=work[0] if work else None,
        parameters=work[1] if work else None,
        pipeline=series.pop(PIPELINE),
        staged=series.pop(STAGED, None),
        alone=series,
        throughput=tuple(throughput),
        cold=tuple(cold),
        floors=floors,
    )


def _cold_starts(bench: Bench, run: Run) -> list[dict[str, float]]:
    options = run.options
    try:
        return cold_start(
            bench.bundle.path,
            run.images[0].path,
            options.mode,
            options.threads,
            options.cold_rounds,
            options.backend,
            options.gpu.device,
        )
    except BackendError as error:  # what was measured so far must not be lost
        run.notes.append(f"{bench.name}: no time to first detection: {error.message}")
        return []


def _lower_bounds(
    bench: Bench, rates: MachineRates | GpuRates, run: Run
) -> tuple[tuple[int, int] | None, dict[str, LowerBound]]:
    """The network's operations for the first image that could be counted, and the lower bound of every stage."""
    manifest = bench.bundle.manifest
    counted: dict[tuple[int, int], tuple[int, int] | None] = {}
    costs: dict[str, list[StageCost]] = {}
    for image in run.images:
        placement = place(manifest.spec.input, image.width, image.height)
        size = placement.height, placement.width
        if size not in counted:
            counted[size] = _count(bench, size, run)
        work = counted[size]
        for stage, cost in stage_costs(manifest, placement, work[0] if work else None).items():
            costs.setdefault(stage, []).append(cost)
    work = next(filter(None, counted.values()), None)
    if isinstance(rates, MachineRates):
        return work, {stage: lower_bound(found, rates) for stage, found in costs.items()}
    without = "the rate of operations is not known, so bytes alone count"
    bounds = {
        stage: lower_bound(
            [replace(cost, counted=f"{cost.counted}; {without}") for cost in found], rates.memory
        )
        for stage, found in costs.items()
    }
    if run.options.input != "device":
        uploads = [StageCost(image.pixels.nbytes, 0, "the image's pixels") for image in run.images]
        bounds["upload"] = lower_bound(uploads, rates.transfer)
    return work, bounds


def _count(bench: Bench, size: tuple[int, int], run: Run) -> tuple[int, int] | None:
    try:
        return run.counter(bench.bundle, *size) if run.counter else None
    except CenterNetError as error:
        run.notes.append(f"{bench.name}: operations were not counted: {error.message}")
        return None
