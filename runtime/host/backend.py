"""HostBackend: pre-processing, ONNX Runtime and decode on the CPU."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.backend import Batch, Heads, LoadedImage, Mark, MemoryUse, ignore_mark
from centernet_trt.runtime.cuda.interop import DeviceImage
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import check_heads, decode_image
from centernet_trt.runtime.host.onnxruntime import OnnxRuntimeExecutor, allocate_heads
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.profiles import batch_to_run, largest_batch


class HostBackend:
    """Runs a bundle on the host; see `Backend`."""

    stages = ("preprocess", "network", "decode")

    def __init__(
        self, executor: OnnxRuntimeExecutor, manifest: Manifest, max_batch: int | None = None
    ) -> None:
        """Take over an executor; it is closed with the backend."""
        self.executor, self._manifest = executor, manifest
        self.note = executor.note
        self.max_batch = max_batch or max(profile.batch.max for profile in manifest.profiles)
        self.memory = MemoryUse()

    def check_image(self, image: LoadedImage) -> None:
        """Raise InputError for an image in GPU memory."""
        if isinstance(image, DeviceImage):
            raise InputError(
                "an image in GPU memory was given, and the network runs on the host",
                "copy it to the host first, or load the bundle with backend='tensorrt'",
            )

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """An ordinary array, since there is no GPU that would need it pinned."""
        if height < 1 or width < 1:
            raise InputError(f"expected an image of at least 1x1 pixels, got {width}x{height}")
        return np.empty((height, width, 3), np.uint8)

    def run(self, batches: Iterable[Batch], mark: Mark | None = None) -> list[list[Detections]]:
        """Run batches; one that is too large for every profile is cut. See `Backend.run`."""
        mark = mark or ignore_mark
        return [[found for part in self._cut(batch) for found in self._run(part, mark)] for batch in batches]

    def _cut(self, batch: Batch) -> list[Batch]:
        if not batch:
            return []
        side = batch[0].placement
        most = largest_batch(self._manifest.profiles, side.height, side.width) or len(batch)
        most = min(most, self.max_batch)
        return [batch[row : row + most] for row in range(0, len(batch), most)]

    def _run(self, batch: Batch, mark: Mark) -> list[Detections]:
        spec, record = self._manifest.spec, self._manifest.input
        images: list[BgrImage] = []
        for request in batch:
            self.check_image(request.image)
            assert not isinstance(request.image, DeviceImage)
            images.append(request.image)
        tensor = preprocess(
            images, [request.placement for request in batch], spec.input, np.dtype(record.dtype)
        )
        mark("preprocess")
        heads = self.heads(tensor)
        mark("network")
        found = [
            decode_image(
                {name: heads[name][row] for name in spec.heads.tensors},
                spec,
                request.placement,
                request.threshold,
                request.top_k,
            )
            for row, request in enumerate(batch)
        ]
        mark("decode")
        return found

    def heads(self, tensor: npt.NDArray[np.floating]) -> Heads:
        """Head tensors of an input tensor.

        Raises:
            InputError: no profile of the bundle takes its shape; mirrors TensorRT's shape checks.
        """
        manifest = self._manifest
        batch_to_run(manifest.profiles, len(tensor), *tensor.shape[2:])
        heads = allocate_heads(manifest, *(len(tensor), *tensor.shape[2:]))
        check_heads({name: head.shape for name, head in heads.items()}, manifest.spec)
        self.executor.run({manifest.input.name: tensor}, heads)
        return heads

    def warm(self, batches: Iterable[Batch]) -> None:
        """Run each batch once, unmarked."""
        self.run(batches)

    def close(self) -> None:
        """Drop the session."""
        self.executor.close()
