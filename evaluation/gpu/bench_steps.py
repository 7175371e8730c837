"""The steps of `make gpu-bench`: kernels, TensorRT for RTX, a long run, and the benchmark of the bundles at hand."""

import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from centernet_trt.evaluation.gpu.step import Step

ENGINES = Path("engines")
KEPT = Path("build/gpu/bundles")
"""Where the step `rtx` leaves the bundles that it builds, for the steps after it."""
ARCHITECTURE = "res_18"
_SMALL_KERNELS = (
    "--batches 1 2 --classes 3 1 --grid 32x24 --k 10 --source 40x30 --target 32x32 --copy-mib 1 --duration 0.01 "
    "--iterations 3"
)

_SMALL_SOAK = "--side 32 --classes 2"
_SMALL_BENCH = "--allow-short --duration 0.05 --iterations 3 --warmup 0 --batches 1,2 --threads 1"


def bundles_at_hand(more: Sequence[Path]) -> list[Path]:
    """Folders of bundles: those given and those in `engines/`; with none, those that the step `rtx` has built."""
    found = [*more, *(path.parent for path in sorted(ENGINES.glob("*/manifest.json")))]
    return found or [path.parent for path in sorted(KEPT.glob("*-portable/manifest.json"))]


def steps_of_bench(
    output: Path,
    beside: Path,
    bundles: Sequence[Path],
    images: Path | None,
    calls: int,
    small: bool = False,
) -> list[Step]:
    """The steps.

    Args:
        output: for the results.
        beside: for pages to look at, which are no results.
        bundles: given besides those in `engines/`; with none at all, one of random weights is built.
        images: folder of images for the benchmark of bundles; None for the pictures that ship.
        calls: of the long run.
        small: sizes for a dry run.
    """
    given = [str(path) for path in bundles_at_hand(bundles) if KEPT not in path.parents]
    kernels = [*_module("kernels"), "--json", str(output / "gpu-kernels.json")]
    rtx = [*_module("rtx"), *given, "--json", str(output / "gpu-rtx.json")]
    if small:
        kernels += _SMALL_KERNELS.split()
        rtx += ["--duration", "0.05"]
    else:  # whatever is at hand: plans built for this very GPU are part of the question
        rtx += ["--arch", ARCHITECTURE, "--keep", str(KEPT)]
    return [
        Step("kernels", partial(list, kernels), 300),
        Step("rtx", partial(list, rtx), 480),
        Step("soak", partial(_soak, output, bundles, calls, small), 240),
        Step("bench-warm", partial(_bench, output, beside, bundles, images, "warm", small), 420),
        Step("bench-cold", partial(_bench, output, beside, bundles, images, "cold", small), 420),
    ]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"centernet_trt.evaluation.gpu.{name}"]


def _soak(output: Path, bundles: Sequence[Path], calls: int, small: bool) -> list[str]:
    # One bundle: the calls count, not the networks.
    command = [*_module("soak"), *map(str, bundles_at_hand(bundles)[:1]), "--calls", str(calls)]
    return [*command, "--json", str(output / "gpu-soak.json"), *(_SMALL_SOAK.split() if small else [])]


def _bench(
    output: Path, beside: Path, bundles: Sequence[Path], images: Path | None, cache: str, small: bool
) -> list[str]:
    # Never on the host: its figures must not come to lie under a GPU's name.
    command = [sys.executable, "-m", "centernet_trt.cli", "bench", *map(str, bundles_at_hand(bundles))]
    command += ["--backend", "tensorrt", "--input", "pinned", "--l2", cache]
    # Few sizes: TensorRT for RTX compiles kernels for each, in each of the detectors that are loaded.
    command += ["--max-images", "3"]
    command += ["--json", str(output / f"gpu-bench-{cache}.json")]
    if importlib.util.find_spec("matplotlib") is not None:
        command += ["--html", str(beside / f"gpu-bench-{cache}.html")]
    command += [] if images is None else ["--images", str(images)]
    # One cold series is for latency; throughput has no state of the cache to begin with.
    command += ["--latency-only"] if cache == "cold" else ["--threads", "1,2,4", "--batches", "1,8"]
    return [*command, *(_SMALL_BENCH.split() if small else [])]
