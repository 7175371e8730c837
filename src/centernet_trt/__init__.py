"""centernet-trt: CenterNet ("Objects as Points") detectors, fast and exact on NVIDIA GPUs.

Build a bundle from an ONNX file once, then detect objects with it::

    from centernet_trt import Detector, ModelSpec, build

Importing this package is cheap: each name is imported with its dependencies when it is first used.

Logging: all loggers are children of ``logging.getLogger("centernet_trt")``; only that name needs a level or a handler.
The package installs no handler that prints, and sets no level.

- WARNING: something works worse than expected, such as ONNX Runtime instead of a plan on a machine with a GPU, or
  requests abandoned by `close`.
- INFO: choices, such as the backend, and why.
- DEBUG: details of the driver, of captures and of threads.
- ``centernet_trt.tensorrt``: TensorRT's own messages, at their severity (VERBOSE is DEBUG). They are not printed
  unless a handler is installed; those of a failing call are in its exception too.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from centernet_trt.builder import BuildOptions, build
    from centernet_trt.runtime import (
        Batching,
        Detections,
        Detector,
        EngineBundle,
        ModelSpec,
        TestTimeAugmentation,
    )
    from centernet_trt.runtime.gpu.ops import GpuOps

__all__ = [
    "BackendError",
    "Batching",
    "BuildOptions",
    "BundleError",
    "CalibrationError",
    "CenterNetError",
    "CudaError",
    "Detections",
    "Detector",
    "EngineBundle",
    "GpuOps",
    "InputError",
    "ModelError",
    "ModelSpec",
    "SpecError",
    "TestTimeAugmentation",
    "__version__",
    "build",
]

_LAZY = {
    "Batching": "centernet_trt.runtime",
    "BuildOptions": "centernet_trt.builder",
    "Detections": "centernet_trt.runtime",
    "Detector": "centernet_trt.runtime",
    "EngineBundle": "centernet_trt.runtime",
    "GpuOps": "centernet_trt.runtime.gpu.ops",
    "ModelSpec": "centernet_trt.runtime",
    "TestTimeAugmentation": "centernet_trt.runtime",
    "build": "centernet_trt.builder",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
