"""Executor: what runs a bundle's network, whichever backend does it."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.manifest import Manifest

Buffer = Any  # a NumPy array for a host executor, a device buffer for a GPU executor
Shape = tuple[int, int, int, int]


class Executor(Protocol):
    """Runs the network on caller-owned buffers."""

    @property
    def note(self) -> str:
        """What the user must know about how the network was run; empty for a TensorRT engine on a GPU."""

    def output_shapes(self, batch: int, height: int, width: int) -> dict[str, Shape]:
        """Shapes (N, C, H, W) of the heads by name for an input of `batch` images of height x width pixels."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: Any = None) -> None:
        """Compute `outputs` from `inputs`, by tensor name; asynchronous where there is a stream."""

    def close(self) -> None:
        """Free what the executor holds."""


def head_shapes(manifest: Manifest, batch: int, height: int, width: int) -> dict[str, Shape]:
    """Shapes of the head tensors by name, from the manifest alone."""
    stride = manifest.spec.stride
    return {head.name: (batch, head.channels, height // stride, width // stride) for head in manifest.heads}


def allocate_heads(
    manifest: Manifest, batch: int, height: int, width: int
) -> dict[str, npt.NDArray[np.floating]]:
    """Host arrays for the heads, by name, in the element types of the manifest."""
    dtypes = {head.name: np.dtype(head.dtype) for head in manifest.heads}
    return {
        name: np.empty(shape, dtype=dtypes[name])
        for name, shape in head_shapes(manifest, batch, height, width).items()
    }
