"""Where TensorRT does not run on a GPU: pre-processing and decode there, the network in ONNX Runtime on the host.

    python -m centernet_trt.evaluation.gpu.mixed BUNDLE --json FILE

`Detector` has no such mixture, since two copies of whole tensors make it slow; this exercises both kernels on a real
network's data with `GpuOps`, holds each to the host's own, and says how long each part takes by the wall clock.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from centernet_trt.errors import BackendError, CenterNetError
from centernet_trt.evaluation.bench_report import Series
from centernet_trt.evaluation.clock import StageClock, WallClock
from centernet_trt.evaluation.gpu.arrays import DeviceTensor
from centernet_trt.evaluation.gpu.machine import check_target, device_record, result, write_result
from centernet_trt.evaluation.host_pipeline import Heads, Picture, load_pictures, pick_images
from centernet_trt.evaluation.latency import one_image
from centernet_trt.evaluation.timing import Subject, TimingRules, measure
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.decode import decode
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.driver import Device
from centernet_trt.runtime.executor import allocate_heads
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu_ops import GpuOps
from centernet_trt.runtime.onnxruntime_executor import OnnxRuntimeExecutor
from centernet_trt.runtime.preprocess import preprocess

_LEVELS = 1.2
"""Grey levels by which the kernel's input may differ from OpenCV's: one, and the rounding to fp16."""


class MixedPipeline:
    """One image: pre-processed on the GPU, network on the host, decoded on the GPU. Every stage is waited for. Close it."""

    stages = ("preprocess", "download", "network", "upload", "decode")

    def __init__(self, bundle: EngineBundle, max_pixels: int) -> None:
        """Load both halves.

        Raises:
            CudaError: no driver, no GPU, or out of memory.
            BackendError: ONNX Runtime refuses the graph.
        """
        self.bundle = bundle
        self._host = OnnxRuntimeExecutor(bundle.model_path, bundle.manifest)
        self.note = f"kernels on the GPU, {self._host.note}"
        self._ops = GpuOps(bundle.manifest.spec, max_batch=1, max_pixels=max_pixels, binding="cuda-bindings")
        self._device = Device.open(0, "cuda-bindings")
        self._stream = self._device.stream()
        self._tensors: dict[tuple[int, int], tuple[DeviceTensor, dict[str, DeviceTensor], Heads]] = {}

    def run(self, picture: Picture, clock: StageClock) -> Detections:
        """Detect in one image, with the spec's threshold and top K."""
        manifest = self.bundle.manifest
        placement = place(manifest.spec.input, picture.pixels.shape[1], picture.pixels.shape[0])
        tensor, on_gpu, heads = self._buffers(placement.height, placement.width)
        clock.start()
        self._ops.preprocess([picture.pixels], tensor)
        clock.mark("preprocess")
        content = tensor.read()
        clock.mark("download")
        self._host.run({manifest.input.name: content}, heads)
        clock.mark("network")
        for name, head in heads.items():
            on_gpu[name].write(head)
        clock.mark("upload")
        (found,) = self._ops.decode(on_gpu, [placement])
        clock.mark("decode")
        return found

    def _buffers(self, height: int, width: int) -> tuple[DeviceTensor, dict[str, DeviceTensor], Heads]:
        if (height, width) not in self._tensors:
            manifest = self.bundle.manifest
            heads = allocate_heads(manifest, 1, height, width)
            made = {
                name: DeviceTensor(self._device, head.shape, head.dtype, self._stream)
                for name, head in heads.items()
            }
            shape = (1, manifest.input.channels, height, width)
            tensor = DeviceTensor(self._device, shape, manifest.input.dtype, self._stream)
            self._tensors[height, width] = tensor, made, heads
        return self._tensors[height, width]

    def check(self, picture: Picture) -> float:
        """Hold both kernels to the host's own -> the input's largest error in grey levels.

        Raises:
            BackendError: one of them differs.
        """
        found = self.run(picture, WallClock())
        manifest = self.bundle.manifest
        spec, pixels = manifest.spec, picture.pixels
        placement = place(spec.input, pixels.shape[1], pixels.shape[0])
        tensor, _, heads = self._buffers(placement.height, placement.width)
        wanted = preprocess([pixels], [placement], spec.input, np.dtype(manifest.input.dtype))
        level = (np.array(spec.input.std) / spec.input.scale)[:, None, None]
        gap = float((np.abs(tensor.read().astype(np.float64) - wanted.astype(np.float64)) * level).max())
        if not gap <= _LEVELS:
            raise BackendError(f"{picture.path.name}: the input is {gap:.2f} grey levels from the host's")
        (expected,) = decode(heads, spec, [placement])
        same = np.array_equal(found.label, expected.label) and np.allclose(
            found.score, expected.score, rtol=1e-6
        )
        if not (same and np.allclose(found.xyxy, expected.xyxy, rtol=1e-5, atol=1e-2)):
            raise BackendError(
                f"{picture.path.name}: decoded on the GPU there are {len(found)} objects, on the host {len(expected)}, "
                "and they are not the same"
            )
        return gap

    def close(self) -> None:
        """Free everything."""
        self._ops.close()
        self._device.close()
        self._host.close()


def measure_mixed(bundle: EngineBundle, images: Sequence[Path], rules: TimingRules) -> dict[str, Any]:
    """Check every image, then time -> `images`, `grey_levels`, `note`, and seconds by stage.

    Raises:
        InputError: an image cannot be used.
        BackendError: an answer is not the host's.
        CudaError: the driver refuses.
    """
    pictures = load_pictures(images)
    pipeline = MixedPipeline(bundle, max(p.pixels.shape[0] * p.pixels.shape[1] for p in pictures))
    try:
        gap = max(pipeline.check(picture) for picture in pictures)
        subject = Subject(one_image(pipeline, pictures, WallClock()), len(pictures))
        series = Series.of(measure({"mixed": subject}, rules)["mixed"])
    finally:
        pipeline.close()
    return {
        "bundle": bundle.manifest.name,
        "images": len(pictures),
        "grey_levels": gap,
        "note": pipeline.note,
        "stages": {stage: series.summary(stage).to_json() for stage in series.stages},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure one bundle; 1 where something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, default=Path(__file__).parents[2] / "calib_data")
    parser.add_argument("--max-images", type=int, default=8)
    parser.add_argument("--duration", type=float, default=3.0)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    words = ["python", "-m", "centernet_trt.evaluation.gpu.mixed", *(arguments or sys.argv[1:])]
    try:
        with Device.open(0, "cuda-bindings") as device:
            record = device_record(device)
        check_target(given.json, record)
        rules = TimingRules(0.1, given.duration, 10, 3, allow_short=True)
        found = measure_mixed(
            EngineBundle.load(given.bundle), pick_images(given.images, given.max_images), rules
        )
    except CenterNetError as error:
        print(error, file=sys.stderr)
        return 1
    write_result(given.json, result("gpu-mixed", record, shlex.join(words), **found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
