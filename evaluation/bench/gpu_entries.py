"""What the benchmark on a GPU measured -> the report that the host's benchmark writes too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from centernet_trt.errors import CenterNetError
from centernet_trt.evaluation.bench.gpu_options import GpuBenchOptions
from centernet_trt.evaluation.bench.host_stages import Picture
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
from centernet_trt.evaluation.bench.roofline import GpuFloor, stage_costs
from centernet_trt.evaluation.bench.run import PIPELINE, Counter
from centernet_trt.evaluation.environment import device_label, environment
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.manifest import PlanRecord

_SERIES = (
    "`whole` is the wall time of Detector.detect with nothing else in its way; the stages are a second series, by CUDA "
    "events and without the CUDA graph, which events cannot look into"
)
STAGED = "stage by stage"
HOST_CPU = "processor time of a call"


@dataclass(frozen=True)
class Measured:
    """One bundle's figures: its series by name, throughput, new interpreters, and notes for the report."""

    name: str
    bundle: EngineBundle
    plan: PlanRecord
    series: Mapping[str, Series]
    throughput: Sequence[ThroughputRecord]
    cold: Sequence[dict[str, float]]


@dataclass(frozen=True)
class Run:
    """What all bundles of one run share: the device as `device_record` gives it, its floor, options and pictures."""

    record: Mapping[str, Any]
    floor: GpuFloor
    options: GpuBenchOptions
    pictures: Sequence[Picture]


def network_name(batch: int) -> str:
    """What the series of the network alone is called."""
    return NETWORK_ALONE if batch == 1 else f"{NETWORK_ALONE}, batch {batch}"


def make_entry(measured: Measured, run: Run, counter: Counter | None, notes: list[str]) -> Entry:
    """The report's entry of a bundle; what could not be counted is added to the notes."""
    manifest, plan = measured.bundle.manifest, measured.plan
    series = dict(measured.series)
    work, floors = _floors(measured, run, counter, notes)
    shapes = [picture.pixels.shape for picture in run.pictures]
    sizes = {manifest.spec.input.size.network_size(shape[1], shape[0]) for shape in shapes}
    return Entry(
        name=measured.name,
        precision=manifest.precision,
        source_sha256=manifest.source.sha256,
        model_sha256=manifest.model.sha256,
        executor=f"TensorRT {plan.flavour} {plan.version} ({plan.target}) on {device_label(dict(run.record))}",
        mode=f"{run.options.how}, {run.record['binding']}",
        inputs=tuple(f"{width}x{height}" for width, height in sorted(sizes)),
        multiply_adds=work[0] if work else None,
        parameters=work[1] if work else None,
        pipeline=series.pop(PIPELINE),
        staged=series.pop(STAGED),
        alone=series,
        throughput=tuple(measured.throughput),
        cold=tuple(measured.cold),
        floors=floors,
    )


def _floors(
    measured: Measured, run: Run, counter: Counter | None, notes: list[str]
) -> tuple[tuple[int, int] | None, dict[str, FloorRecord]]:
    """The network's operations, and what the first picture's stages cost at least: bytes at the bandwidths of this run."""
    manifest, (height, width) = measured.bundle.manifest, run.pictures[0].pixels.shape[:2]
    placement = place(manifest.spec.input, width, height)
    work = None
    try:
        work = counter(measured.bundle, placement.height, placement.width) if counter else None
    except CenterNetError as error:
        notes.append(f"{measured.name}: operations were not counted: {error.message}")
    costs = stage_costs(manifest, placement, work[0] if work else None)
    floors = {}
    for stage, cost in costs.items():
        floors[stage] = FloorRecord(
            bytes=cost.bytes,
            operations=cost.operations,
            counted=f"{cost.counted}; the rate of operations is not known, so bytes alone count",
            seconds=cost.bytes / run.floor.copy,
            bound="bytes",
        )
    if run.options.input != "device":
        nbytes = 3 * height * width
        seconds = nbytes / run.floor.upload
        floors["upload"] = FloorRecord(
            bytes=nbytes, operations=0, counted="the image's pixels", seconds=seconds, bound="bytes"
        )
    return work, floors


def make_report(entries: Sequence[Entry], run: Run, command: str, notes: Sequence[str]) -> BenchReport:
    """The whole report."""
    floor = run.floor
    said = (
        f"device: {device_label(dict(run.record))}",
        _SERIES,
        *notes,
    )
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        rules=Rules.of(run.options.rules),
        images=tuple(
            ImageRecord(name=p.path.name, width=p.pixels.shape[1], height=p.pixels.shape[0])
            for p in run.pictures
        ),
        rates={
            "bytes_per_second": floor.copy,
            "operations_per_second": 0.0,
            "source": f"copy on the device of {floor.copy_bytes >> 20} MiB in this run; operations were not rated",
            "floor": floor.to_json(),
            "device": dict(run.record),
        },
        environment=environment().to_json(),
        entries=tuple(entries),
        notes=tuple(dict.fromkeys(said)),
    )
