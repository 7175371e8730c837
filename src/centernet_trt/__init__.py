"""centernet-trt: CenterNet ("Objects as Points") detectors, fast and exact on NVIDIA GPUs.

Import from the rooms: ``from centernet_trt.runtime import Detector``,
``from centernet_trt.builder import build``. This package itself only carries the version and the errors.
"""

from centernet_trt._version import __version__
from centernet_trt.errors import (
    BackendError,
    BundleError,
    CalibrationError,
    CenterNetError,
    CudaError,
    InputError,
    ModelError,
    SpecError,
)

__all__ = [
    "BackendError",
    "BundleError",
    "CalibrationError",
    "CenterNetError",
    "CudaError",
    "InputError",
    "ModelError",
    "SpecError",
    "__version__",
]
