"""A long run on a GPU: free device memory and the process's memory must stay flat, and the answers the same.

    python benchmarks/soak.py --json benchmarks/results/gpu-soak.json [BUNDLE ...]

Every bundle is asked through `Detector`, with images of changing sizes one by one and in batches; and the kernels by
themselves through `GpuOps`, on a stream of the caller's. Free memory is that of the whole device: nothing else may run on it.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import check_target, command_line, result, write_result
from kernel_steps import official_spec, random_heads

from centernet_trt.errors import BackendError, CenterNetError
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor
from centernet_trt.evaluation.environment import device_label, device_record
from centernet_trt.evaluation.tables import text_table
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.ops import GpuOps
from centernet_trt.runtime.images import BgrImage

CALLS = 100_000
DEVICE_TOLERANCE = 2 << 20
"""Bytes of free device memory: drivers allocate in pieces of 2 MiB."""
HOST_TOLERANCE = 8 << 20
_SAMPLES = 200
Ask = Callable[[int], list[Detections]]


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def soak(name: str, ask: Ask, kinds: int, device: Device, calls: int) -> dict[str, Any]:
    """Ask so often, look at the memory in between, and judge.

    The first tenth does not count: caches fill. After it, free device memory may not fall below what it was by more
    than a driver's granule; the process may not be larger in its last quarter than in its second by more than 8 MiB.

    Args:
        name: of what is asked.
        ask: called with the number of the call; answers depend on number modulo `kinds`.
        kinds: different calls.
        device: whose free memory is watched.
        calls: how many.

    Raises:
        BackendError: an answer changed.
    """
    first = [ask(kind) for kind in range(kinds)]
    every = max(1, calls // _SAMPLES)
    free, resident = list[int](), list[int]()
    began = time.perf_counter()
    for call in range(calls):
        found = ask(call)
        if call % every == 0:
            _same(name, call, found, first[call % kinds])
            gc.collect()
            free.append(device.free_memory())
            resident.append(resident_bytes())
    seconds = time.perf_counter() - began
    return {"name": name, "calls": calls, "seconds": seconds, **judge(free, resident)}


def judge(free: Sequence[int], resident: Sequence[int]) -> dict[str, Any]:
    """Growth in bytes of device and host memory, from samples taken at equal distances; and whether both are flat."""
    settled = free[len(free) // 10 :]
    quarter = max(1, len(resident) // 4)
    device = settled[0] - min(settled)
    host = int(np.median(resident[-quarter:]) - np.median(resident[quarter : 2 * quarter] or resident[:1]))
    flat = device <= DEVICE_TOLERANCE and host <= HOST_TOLERANCE
    return {
        "device_growth": device,
        "host_growth": host,
        "flat": flat,
        "free": list(free),
        "resident": list(resident),
    }


def _same(name: str, call: int, found: Sequence[Detections], wanted: Sequence[Detections]) -> None:
    for one, other in zip(found, wanted, strict=True):
        if not (
            np.array_equal(one.label, other.label)
            and np.allclose(one.score, other.score, rtol=0, atol=2e-3)
            and np.allclose(one.xyxy, other.xyxy, rtol=1e-3, atol=1)
        ):
            raise BackendError(
                f"{name}: call {call} found {len(one)} objects, the first such call {len(other)}"
            )


def soak_detector(bundle: EngineBundle, device: Device, calls: int) -> dict[str, Any]:
    """Images of three sizes, each alone and as many as a batch takes (four at most).

    Raises:
        BundleError, BackendError, CudaError: the bundle does not run here, or an answer changed.
    """
    profile = bundle.manifest.profile
    sides = [(profile.height.opt - 1 - cut, profile.width.opt - 1 - cut // 2) for cut in (0, 7, 16)]
    rng = np.random.default_rng(0)
    images: list[BgrImage] = [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    batches = [[image] * count for image in images for count in (1, min(4, profile.batch.max))]
    with Detector.load(bundle, backend="tensorrt", max_pixels=max(h * w for h, w in sides)) as detector:
        detector.warmup([(w, h) for h, w in sides], sorted({len(batch) for batch in batches}))

        def ask(call: int) -> list[Detections]:
            return detector.detect_batch(batches[call % len(batches)])

        return soak(bundle.manifest.name, ask, len(batches), device, calls)


def soak_kernels(device: Device, calls: int, side: int = 512, classes: int = 80) -> dict[str, Any]:
    """`GpuOps`: pre-processing of images from the host and decode of heads in GPU memory, on a caller's stream.

    Raises:
        CudaError, BackendError: the driver refuses, or an answer changed.
    """
    spec = official_spec(classes, side, side)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side - cut, side + cut, 3), dtype=np.uint8) for cut in (0, 9, 20)]
    with device.stream() as stream, GpuOps(spec, max_batch=1, max_pixels=2 * side * side) as ops:
        out = DeviceTensor(device, (1, 3, side, side), np.float16, stream)
        grid = side // 4
        heads = {
            name: DeviceTensor.of(device, head, stream)
            for name, head in random_heads(1, classes, grid, grid, seed=0).items()
        }
        placements = [place(spec.input, image.shape[1], image.shape[0]) for image in images]

        def ask(call: int) -> list[Detections]:
            row = call % len(images)
            ops.preprocess([images[row]], out, stream)
            return ops.decode(heads, [placements[row]], stream=stream)

        try:
            return soak("kernels by themselves", ask, len(images), device, calls)
        finally:
            stream.synchronize()
            for tensor in (out, *heads.values()):
                tensor.close()


def table(data: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for row in data["rows"]:
        if "problem" in row:
            rows.append((row["name"], "-", "-", "-", "-", f"did not run: {row['problem'].splitlines()[0]}"))
            continue
        rows.append(
            (
                row["name"],
                str(row["calls"]),
                f"{row['seconds']:.1f}",
                f"{row['device_growth'] / 2**20:.2f}",
                f"{row['host_growth'] / 2**20:.2f}",
                "flat" if row["flat"] else "GROWS",
            )
        )
    columns = ("what", "calls", "seconds", "device memory, MiB more", "host memory, MiB more", "verdict")
    return f"Device: {device_label(data['device'])}.\n\n{text_table('', columns, rows).markdown()}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the result; 3 where memory grows or answers change, 0 otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="*", help="folders of bundles")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--side", type=int, default=512, help="of the kernels' network input")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true", help="a dry run: 12 calls, a small network input")
    given = parser.parse_args(arguments)
    if given.small:
        given.calls, given.side, given.classes = 12, 32, 2
    command = command_line(__file__, arguments)
    rows: list[dict[str, Any]] = []
    with Device.open(0, "cuda-bindings") as device:
        record = device_record(device)
        if given.json is not None:
            check_target(given.json, record)
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "kernels by themselves": lambda: soak_kernels(device, given.calls, given.side, given.classes)
        }
        for path in given.bundles:
            works[path.name] = lambda path=path: soak_detector(EngineBundle.load(path), device, given.calls)  # type: ignore[misc]
        data: dict[str, Any] = {}
        for name, work in works.items():
            print(name, file=sys.stderr, flush=True)
            try:
                rows.append(work())
            except CenterNetError as error:  # the others are told all the same
                rows.append({"name": name, "problem": str(error)})
            data = result("gpu-soak", record, command, rows=rows)
            if given.json is not None:  # after each: this process may be ended before its time
                write_result(given.json, data)
    print(table(data))
    return 0 if all(row.get("flat") for row in rows) else 3


if __name__ == "__main__":
    sys.exit(main())
