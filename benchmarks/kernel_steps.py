"""The two kernels by themselves, ready to be timed: data in GPU memory, launches, and the host's own answer to hold them to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor
from centernet_trt.kernels.launch import DecodeLayout, plan_decode, plan_preprocess
from centernet_trt.kernels.structs import DecodeParams, PreprocessParams
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.gpu.kernels import (
    Kernels,
    decode_params,
    extra_columns,
    image_descriptor,
    preprocess_params,
    rows_to_detections,
)
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.preprocess import level_table, preprocess
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.spec import FixedSize, FixRes, ModelSpec

Array = npt.NDArray[Any]


def official_spec(classes: int, width: int, height: int) -> ModelSpec:
    """The official spec with so many classes and a fixed network input (`fix_res`), in pixels."""
    found = preset("official")
    size = FixedSize(width=width, height=height)
    shape = found.input.model_copy(update={"size": size, "resize": FixRes()})
    names = tuple(f"class {number}" for number in range(classes))
    return found.model_copy(update={"input": shape, "class_names": names, "category_ids": ()})


def random_heads(batch: int, classes: int, height: int, width: int, seed: int) -> dict[str, Array]:
    """fp16 heads as the official network gives them: logits about N(-4, 2), sizes and offsets in cells."""
    rng = np.random.default_rng(seed)
    return {
        "hm": (2 * rng.standard_normal((batch, classes, height, width), dtype=np.float32) - 4).astype(
            np.float16
        ),
        "wh": rng.uniform(1, 30, (batch, 2, height, width)).astype(np.float16),
        "reg": rng.uniform(0, 1, (batch, 2, height, width)).astype(np.float16),
    }


class DecodeStep:
    """`decode` of fp16 heads (batch, classes, height, width), on one or more copies of them. Close it."""

    def __init__(
        self,
        device: Device,
        kernels: Kernels,
        stream: Stream,
        shape: tuple[int, int, int, int],
        k: int,
        copies: int = 1,
        threshold: float | None = None,
    ) -> None:
        """Upload everything.

        Args:
            device: the GPU.
            kernels: loaded there.
            stream: to launch on.
            shape: of the heatmap.
            k: detections an image.
            copies: of the heads, each at an address of its own: launched in turn they find a cold cache.
            threshold: lowest score wanted; None for the spec's, which is none.

        Raises:
            DriverError: out of memory.
        """
        batch, classes, height, width = shape
        self.stream, self._kernels, self.k, self.threshold = stream, kernels, k, threshold
        self.spec = official_spec(classes, 4 * width, 4 * height)
        self.heads = random_heads(batch, classes, height, width, seed=1)
        self.placements = [place(self.spec.input, 5 * width, 4 * height - 3)] * batch
        self._plan = plan_decode(batch, classes, height, width, k, True, device.info.multiprocessors)
        self._layout = DecodeLayout(batch, k, extra_columns(self.spec.heads))
        self._made: list[DeviceTensor] = []
        images = self._keep(device, _descriptors(self.placements, self.spec, k, threshold))
        counters = self._keep(device, np.zeros(self._plan.counter_bytes, np.uint8))
        keys = self._keep(device, np.zeros(self._plan.key_bytes, np.uint8))
        self._output = self._keep(device, np.zeros(self._layout.nbytes, np.uint8))
        self.inputs = [
            {name: self._keep(device, head) for name, head in self.heads.items()} for _ in range(copies)
        ]
        self._params: list[DecodeParams] = [
            decode_params(
                self.spec,
                self._plan,
                (classes, height, width),
                {name: (tensor.address, True) for name, tensor in heads.items()},
                images.address,
                counters.address,
                keys.address,
                self._output.address,
                self._layout,
            )
            for heads in self.inputs
        ]

    def _keep(self, device: Device, array: Array) -> DeviceTensor:
        self._made.append(DeviceTensor.of(device, array, self.stream))
        return self._made[-1]

    @property
    def nbytes(self) -> int:
        """Bytes that no decode can leave unread: the heatmap."""
        return int(self.heads["hm"].nbytes)

    def launch(self, copy: int = 0) -> None:
        """Enqueue it on one of the copies."""
        self._kernels.decode(self.stream, self._plan, self._params[copy])

    def detections(self) -> list[Detections]:
        """What the last launch found."""
        rows = self._layout.view(self._output.read())
        return [rows_to_detections(rows, row, self.spec) for row in range(len(self.placements))]

    def wanted(self) -> list[Detections]:
        """The host's own answer."""
        return decode(self.heads, self.spec, self.placements, self.threshold, self.k)

    def check(self) -> None:
        """Hold the kernel's answer to the host's, on every copy.

        Raises:
            BackendError: they differ.
        """
        wanted = self.wanted()
        for copy in range(len(self._params)):
            self._output.write(np.full(self._layout.nbytes, 0x5A, np.uint8))
            self.launch(copy)
            for image, (found, expected) in enumerate(zip(self.detections(), wanted, strict=True)):
                _same(found, expected, f"decode, copy {copy}, image {image}")

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        self.stream.synchronize()
        close_all(list(reversed(self._made)))


class PreprocessStep:
    """`preprocess` of `batch` random images into an fp16 input, on one or more copies of the images. Close it."""

    def __init__(
        self,
        device: Device,
        kernels: Kernels,
        stream: Stream,
        batch: int,
        source: tuple[int, int],
        target: tuple[int, int],
        copies: int = 1,
    ) -> None:
        """Upload everything.

        Args:
            device: the GPU.
            kernels: loaded there.
            stream: to launch on.
            batch: images.
            source: their (width, height).
            target: (width, height) of the network input.
            copies: of images and of the input, each at an address of its own.

        Raises:
            DriverError: out of memory.
        """
        width, height = target
        self.stream, self._kernels = stream, kernels
        self.spec = official_spec(80, width, height)
        rng = np.random.default_rng(2)
        self.images = rng.integers(0, 256, (batch, source[1], source[0], 3), dtype=np.uint8)
        self.placements = [place(self.spec.input, *source)] * batch
        self._plan = plan_preprocess(batch, height, width, half=True)
        self._made: list[DeviceTensor] = []
        levels = self._keep(DeviceTensor.of(device, level_table(self.spec.input), stream))
        self.inputs, self.outputs, self._params = [], [], list[PreprocessParams]()
        for _ in range(copies):
            pixels = self._keep(DeviceTensor.of(device, self.images, stream))
            output = self._keep(DeviceTensor(device, (batch, 3, height, width), np.float16, stream))
            at = [pixels.address + row * self.images[0].nbytes for row in range(batch)]
            images = self._keep(
                DeviceTensor.of(device, _descriptors(self.placements, self.spec, 1, None, at), stream)
            )
            self.inputs.append(pixels)
            self.outputs.append(output)
            self._params.append(
                preprocess_params(
                    self.spec.input, height, width, images.address, levels.address, output.address
                )
            )

    def _keep(self, tensor: DeviceTensor) -> DeviceTensor:
        self._made.append(tensor)
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes that it cannot leave out: pixels read, input written."""
        return self.inputs[0].nbytes + self.outputs[0].nbytes

    def launch(self, copy: int = 0) -> None:
        """Enqueue it on one of the copies."""
        self._kernels.preprocess(self.stream, self._plan, self._params[copy])

    def wanted(self) -> Array:
        """The host's own input tensor, fp16."""
        return preprocess(list(self.images), self.placements, self.spec.input, np.dtype(np.float16))

    def grey_levels(self, tensor: Array) -> Array:
        """A tensor's values in grey levels, 0 to 255, as float64."""
        mean, std = (
            np.array(values)[:, None, None] for values in (self.spec.input.mean, self.spec.input.std)
        )
        return np.asarray((tensor.astype(np.float64) * std + mean) / self.spec.input.scale)

    def check(self) -> None:
        """Hold every copy's input to the host's, to one grey level.

        Raises:
            BackendError: they differ by more.
        """
        wanted = self.grey_levels(self.wanted())
        for copy, output in enumerate(self.outputs):
            output.write(np.full(output.shape, np.nan, np.float16))
            self.launch(copy)
            gap = float(np.abs(self.grey_levels(output.read()) - wanted).max())
            # One level, and what fp16 takes from the largest values (about 2.6) of both.
            if not gap <= 1.2:
                raise BackendError(
                    f"preprocess, copy {copy}: {gap:.2f} grey levels from the host's, 1 is allowed"
                )

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        self.stream.synchronize()
        close_all(list(reversed(self._made)))


def _descriptors(
    placements: Sequence[Placement],
    spec: ModelSpec,
    k: int,
    threshold: float | None,
    pixels: Sequence[int] | None = None,
) -> Array:
    addresses = pixels or [0] * len(placements)
    told = (
        bytes(image_descriptor(placement, spec, threshold, k, address))
        for placement, address in zip(placements, addresses, strict=True)
    )
    return np.frombuffer(b"".join(told), dtype=np.uint8)


def _same(found: Detections, wanted: Detections, what: str) -> None:
    same = len(found) == len(wanted) and np.array_equal(found.label, wanted.label)
    near = same and np.allclose(found.score, wanted.score, rtol=1e-6, atol=0)
    if not (near and np.allclose(found.xyxy, wanted.xyxy, rtol=1e-5, atol=1e-3)):
        raise BackendError(
            f"{what}: the kernel's {len(found)} detections are not the host's {len(wanted)}: its time means nothing"
        )
