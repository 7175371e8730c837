"""Can the benchmark tell 10 % apart on this machine? One bundle three times in turn, the third made slower on purpose.

    python -m centernet_trt.evaluation.planted_slowdown BUNDLE --images DIR --json FILE

The second must come out as "no difference", the third as "slower". Where they do not, no comparison made on this
machine in its present state can be trusted with a smaller difference.
"""

import argparse
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from centernet_trt.evaluation.bench import BenchOptions, run_bench
from centernet_trt.evaluation.bench_report import BenchReport
from centernet_trt.evaluation.bench_tables import tables_of
from centernet_trt.evaluation.clock import WHOLE, Now, StageClock
from centernet_trt.evaluation.host_pipeline import HostPipeline, Picture, pick_images
from centernet_trt.evaluation.timing import TimingRules
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.onnxruntime_executor import Mode

AGAIN, SLOWED = "again", "slowed"


class SlowedClock:
    """A StageClock that lets every stage last longer by a fraction of itself, by waiting with the processor busy."""

    def __init__(self, clock: StageClock, fraction: float, now: Now = time.perf_counter) -> None:
        self._clock, self._fraction, self._now = clock, fraction, now
        self._began = 0.0

    def start(self) -> None:
        """A call begins."""
        self._clock.start()
        self._began = self._now()

    def mark(self, stage: str) -> None:
        """The stage ends here, after the wait."""
        end = self._now()
        until = end + self._fraction * (end - self._began)
        while self._now() < until:
            pass
        self._clock.mark(stage)
        self._began = self._now()

    def finish(self) -> dict[str, float]:
        """Seconds by stage."""
        return self._clock.finish()


class SlowedPipeline(HostPipeline):
    """The host's pipeline with every stage longer by `fraction`."""

    fraction = 0.10

    def run(self, picture: Picture, clock: StageClock) -> Detections:
        """Detect in one image, slowly."""
        return super().run(picture, SlowedClock(clock, self.fraction))


def measure_planted(
    bundle: EngineBundle, images: list[Path], rules: TimingRules, command: str
) -> BenchReport:
    """The report of the bundle, the same bundle `again`, and `slowed`."""
    name = bundle.manifest.name
    three = [
        EngineBundle(bundle.path, bundle.manifest.model_copy(update={"name": f"{name}{suffix}"}))
        for suffix in ("", f" {AGAIN}", f" {SLOWED}")
    ]

    def pipeline_of(
        loaded: EngineBundle, mode: Mode, threads: int | None, *, read: bool = False
    ) -> HostPipeline:
        kind = SlowedPipeline if loaded.manifest.name.endswith(SLOWED) else HostPipeline
        return kind(loaded, mode, threads, read=read)

    # One thread: two of ONNX Runtime wait for each other wherever another program takes a core.
    options = BenchOptions(rules, threads=1, loads=(), in_flight=(), cold_rounds=0, torch=False)
    return run_bench(three, images, options, command=command, pipeline_of=pipeline_of)


def main() -> None:
    """Measure, print the comparison, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--duration", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    words = ["python", "-m", "centernet_trt.evaluation.planted_slowdown", *sys.argv[1:]]
    # Many short windows: the more often they take turns, the more of a drift cancels out.
    rules = replace(TimingRules(), duration=options.duration, windows=40)
    report = measure_planted(
        EngineBundle.load(options.bundle), pick_images(options.images, 4), rules, shlex.join(words)
    )
    print(tables_of(report)[1].markdown())
    medians = {entry.name: entry.pipeline.summary(WHOLE).p50 for entry in report.entries}
    print({name: f"{seconds * 1e3:.2f} ms" for name, seconds in medians.items()})
    if options.json is not None:
        options.json.write_text(report.to_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
