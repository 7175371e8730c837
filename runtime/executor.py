"""The head tensors of a bundle's network: their shapes, and host arrays for them."""

import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.manifest import Manifest

Shape = tuple[int, int, int, int]


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
