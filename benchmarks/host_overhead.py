"""What a call of the detector costs on the host beside the network: our Python, and the driver's calls.

    python benchmarks/host_overhead.py [--driver cuda-bindings] [--profile] [--json FILE]

The network does nothing. Without `--driver` the CUDA driver does nothing either, and what is measured is Python alone; with it,
the driver's own time is told apart. The wait for the GPU is left out, as no work of the host's. All figures are microseconds,
medians of many calls. The parts are measured apart from the whole: each watched function costs some tenths of a microsecond more.
"""

import argparse
import cProfile
import json
import os
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from null_device import DRIVER, Watch, WatchedDriver, null_backend, open_device
from rich.console import Console
from rich.table import Table

from centernet_trt.evaluation.environment import environment
from centernet_trt.evaluation.tables import text_table
from centernet_trt.runtime.backend import GpuOptions
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.manifest import FileRecord, Manifest, ProfileRecord, ShapeRange, TensorRecord
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.serving.types import Batching

SIDE = 640, 480
FOUND = 20  # detections an image
ROUNDS = 20
Call = Callable[[], object]
Sample = tuple[dict[str, float], dict[str, int]]


@dataclass(frozen=True)
class Cost:
    """Medians of one kind of call.

    Attributes:
        call: what is called, with what.
        host: microseconds from call to return, without the wait for the GPU.
        driver: microseconds in each function of the CUDA driver's binding but that wait, all its calls together.
        parts: microseconds of our own Python by function, without what it calls; they add up to more than `python`,
            by the cost of watching.
        driver_calls: how often each call of the driver is made.
    """

    call: str
    host: float
    driver: dict[str, float]
    parts: dict[str, float]
    driver_calls: dict[str, int]

    @property
    def python(self) -> float:
        """Microseconds that are not the driver's."""
        return self.host - sum(self.driver.values())


def bundle(side: int, batch: int) -> EngineBundle:
    """A bundle of the official spec, 80 classes, `side` pixels square, that exists in memory alone."""
    spec = preset("official")
    size = {"rule": "fixed", "width": side, "height": side}
    spec = type(spec).model_validate(
        spec.model_dump()
        | {"input": spec.input.model_dump() | {"size": size, "resize": {"policy": "fix_res"}}}
    )
    file = FileRecord(file="none", sha256="0" * 64, bytes=0)
    square = ShapeRange.of(side, side, side)
    channels = {"hm": 80, "wh": 2, "reg": 2}
    manifest = Manifest(
        name="nothing",
        product="centernet-trt",
        created="2026-01-01T00:00:00+00:00",
        command="none",
        precision="fp16",
        spec=spec,
        profiles=(ProfileRecord(batch=ShapeRange.of(1, 1, batch), height=square, width=square),),
        input=TensorRecord(name="input", dtype="float16", channels=3),
        heads=tuple(
            TensorRecord(name=name, dtype="float16", channels=channels[name]) for name in spec.heads.tensors
        ),
        source=file,
        model=file,
    )
    return EngineBundle(Path("nothing"), manifest)


@contextmanager
def detector(driver: BindingName | None, side: int, batch: int) -> Iterator[tuple[Detector, GpuBackend]]:
    """A detector whose network does nothing, with its pipeline; the rows of each image hold `FOUND` detections."""
    made = bundle(side, batch)
    options = GpuOptions(streams=1, max_batch=batch, max_pixels=SIDE[0] * SIDE[1])
    pipeline = null_backend(made, options, open_device(driver))
    with Detector(made, pipeline, Batching(max_wait=0.0)) as loaded:
        yield loaded, pipeline


def calls_of(loaded: Detector, pipeline: GpuBackend, batch: int) -> dict[str, Call]:
    """The kinds of call, warmed up: every shape is recorded, and finds its detections."""
    width, height = SIDE
    plain = np.full((height, width, 3), 128, np.uint8)
    pinned = [loaded.pinned_image(height, width) for _ in range(batch)]
    pixels = pipeline.device.allocate(plain.nbytes)
    told = {"shape": plain.shape, "typestr": "|u1", "data": (pixels.address, False), "version": 3}
    resident: Any = SimpleNamespace(__cuda_array_interface__=told)
    calls: dict[str, Call] = {
        "detect, pinned": lambda: loaded.detect(pinned[0]),
        "detect, on the GPU": lambda: loaded.detect(resident),
        "detect, pageable": lambda: loaded.detect(plain),
        f"detect_batch of {batch}, pinned": lambda: loaded.detect_batch(pinned),
        "submit and wait, pinned": lambda: loaded.submit(pinned[0]).result(),
    }
    for call in calls.values():
        call(), call()
    for lane in pipeline._lanes:
        for program in lane._programs.values():
            program.rows.count[...] = FOUND
    return calls


class Plain:
    """The calls as they are; only the wait for the GPU is watched, since that is no work of the host's."""

    def __init__(self, loaded: Detector, pipeline: GpuBackend, batch: int) -> None:
        self._watch = Watch()
        binding: Any = pipeline.device.binding
        binding.synchronize_event = self._watch.wrap("wait", binding.synchronize_event)
        self.calls = calls_of(loaded, pipeline, batch)

    def samples(self, kind: str, count: int) -> list[float]:
        """Microseconds of each of `count` calls, without the wait."""
        call, now, watch, found = self.calls[kind], time.perf_counter_ns, self._watch, []
        for _ in range(count):
            watch.spent.clear()
            start = now()
            call()
            found.append((now() - start - watch.spent["wait"]) / 1e3)
        return found


class Watched:
    """The same calls, watched in their parts."""

    def __init__(self, loaded: Detector, pipeline: GpuBackend, batch: int) -> None:
        self._watch = Watch()
        device: Any = pipeline.device
        device.binding, device.graphs = (
            WatchedDriver(one, self._watch) for one in (device.binding, device.graphs)
        )
        self._calls = calls_of(loaded, pipeline, batch)
        places: list[tuple[Any, str, str]] = [
            (loaded._inputs, "prepare", "check and place the image"),
            (pipeline, "run", "take a stream"),
        ]
        for lane in pipeline._lanes:
            places += [
                (lane, "start", "enqueue"),
                (lane, "finish", "wait, detections"),
                (lane.buffers, "upload", "descriptors and copies"),
            ]
        for place, name, told in places:
            setattr(place, name, self._watch.wrap(told, getattr(place, name)))

    def samples(self, kind: str, count: int) -> list[Sample]:
        """Of each of `count` calls: microseconds by part, and how often each part was called."""
        call, watch = self._watch.wrap("the call itself", self._calls[kind]), self._watch
        found: list[Sample] = []
        for _ in range(count):
            watch.spent.clear()
            watch.calls.clear()
            call()
            found.append(({part: ns / 1e3 for part, ns in watch.spent.items()}, dict(watch.calls)))
        return found


def measure(driver: BindingName | None, side: int, batch: int, count: int) -> list[Cost]:
    """The costs of all kinds of call.

    Args:
        driver: a binding, or None for a driver that does nothing.
        side: of the network's input in pixels; it matters where a stand-in driver runs the kernels.
        batch: images of the batched call.
        count: calls of each kind.
    """
    whole: dict[str, list[float]] = {}
    parts: dict[str, list[Sample]] = {}
    with detector(driver, side, batch) as plain, detector(driver, side, batch) as other:
        calls, watched = Plain(*plain, batch), Watched(*other, batch)
        for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine meets all of them
            for kind in calls.calls:
                whole.setdefault(kind, []).extend(calls.samples(kind, -(-count // ROUNDS)))
                parts.setdefault(kind, []).extend(watched.samples(kind, -(-count // ROUNDS)))
    return [_cost(kind, whole[kind], parts[kind]) for kind in whole]


def _cost(kind: str, whole: list[float], samples: list[Sample]) -> Cost:
    names = samples[-1][0]
    spent = {name: statistics.median(times.get(name, 0.0) for times, _ in samples) for name in names}
    driver = {
        name.removeprefix(DRIVER): value
        for name, value in spent.items()
        if name.startswith(DRIVER) and name != DRIVER + "synchronize_event"
    }
    own = {name: value for name, value in spent.items() if not name.startswith(DRIVER)}
    made = {name: samples[-1][1][DRIVER + name] for name in driver}
    return Cost(kind, statistics.median(whole), driver, own, made)


def show(costs: list[Cost], console: Console) -> None:
    """Print the tables."""
    table = Table("call", "host, us", "driver, us", "Python, us", "of which, us", "driver: us, calls")
    for cost in costs:
        parts = sorted(cost.parts.items(), key=lambda part: -part[1])
        table.add_row(
            cost.call,
            f"{cost.host:.1f}",
            f"{sum(cost.driver.values()):.1f}",
            f"{cost.python:.1f}",
            "\n".join(f"{value:.1f} {name}" for name, value in parts),
            "\n".join(f"{cost.driver[name]:.1f} {n} {name}" for name, n in cost.driver_calls.items()),
        )
    console.print(table)


def markdown(costs: list[Cost]) -> str:
    """The figures in short, in Markdown."""
    rows = [
        [cost.call, f"{cost.host:.0f}", ", ".join(f"{n} {name}" for name, n in cost.driver_calls.items())]
        for cost in costs
    ]
    return text_table("", ["call", "Python on the host, us", "calls of the driver"], rows).markdown()


def profile(driver: BindingName | None, side: int, count: int) -> None:
    """Print where the time of `detect` on a pinned image goes, function by function, by cProfile."""
    with detector(driver, side, 1) as (loaded, pipeline):
        call = calls_of(loaded, pipeline, 1)["detect, pinned"]
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(count):
            call()
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/host_overhead.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--driver", choices=("cuda-bindings", "pycuda"), help="measure with this binding's driver"
    )
    parser.add_argument("--side", type=int, default=512, help="of the network's input in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of the batched call")
    parser.add_argument("--calls", type=int, default=2000, help="of each kind")
    parser.add_argument("--profile", action="store_true", help="print the functions by their own time")
    parser.add_argument("--markdown", action="store_true", help="print the short table")
    parser.add_argument("--json", type=Path, help="write the figures and the machine to this file")
    asked = parser.parse_args()
    if asked.profile:
        profile(asked.driver, asked.side, asked.calls)
        return
    costs = measure(asked.driver, asked.side, asked.batch, asked.calls)
    if asked.markdown:
        print(markdown(costs))
    else:
        show(costs, Console())
    if asked.json is not None:
        told = {
            "driver": asked.driver or "none",
            "calls": asked.calls,
            "costs": [asdict(cost) for cost in costs],
            "load": os.getloadavg()[
                0
            ],  # processes that want a core: with more than there are, all of it is slower
            "environment": environment().to_json(),
        }
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
