"""The latency of one image in flight, of several bundles in turn."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from centernet_trt.evaluation.bench.host_stages import (
    HostPipeline,
    Picture,
    Pipeline,
    check_against,
    load_pictures,
)
from centernet_trt.evaluation.bench.report import Series
from centernet_trt.evaluation.bench.timing import Sample, StageClock, Subject, TimingRules, WallClock, measure
from centernet_trt.progress import Progress
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.host.onnxruntime import Mode


def pipelines_in_turn(
    bundles: Sequence[EngineBundle],
    images: Sequence[Path],
    progress: Progress | None = None,
    rules: TimingRules | None = None,
    mode: Mode = "fast",
) -> list[tuple[Series, str]]:
    """Only the latency of one image, of several bundles in turn: samples, and the note on how each network ran.

    Raises as `run_bench`.
    """
    pictures = load_pictures(images)
    pipelines: list[HostPipeline] = []
    try:
        for bundle in bundles:
            pipelines.append(HostPipeline(bundle, mode))
            with Detector.load(bundle, backend="onnxruntime", mode=mode) as detector:
                check_against(pipelines[-1], detector, pictures, WallClock())
        names = distinct_names(bundles)
        subjects = {
            name: Subject(one_image(pipeline, pictures, WallClock()), len(pictures))
            for name, pipeline in zip(names, pipelines, strict=True)
        }
        found = measure(subjects, rules or TimingRules(), progress=progress)
        return [
            (Series.of(found[name]), pipeline.note) for name, pipeline in zip(names, pipelines, strict=True)
        ]
    finally:
        for pipeline in pipelines:
            pipeline.close()


def distinct_names(bundles: Sequence[EngineBundle]) -> list[str]:
    """A name of its own for each bundle: the manifest's, numbered where two share it."""
    names: list[str] = []
    for bundle in bundles:
        name, number = bundle.manifest.name, 2
        while name in names:
            name, number = f"{bundle.manifest.name} #{number}", number + 1
        names.append(name)
    return names


def one_image(pipeline: Pipeline, pictures: Sequence[Picture], clock: StageClock) -> Callable[[], Sample]:
    """A call for `timing.Subject`: the next picture through the pipeline."""
    turn = count()

    def call() -> Sample:
        pipeline.run(pictures[next(turn) % len(pictures)], clock)
        return clock.finish()

    return call
