"""Runs a bundle: pre-processing, network, decode, detections.

Importing this loads neither TensorRT nor ONNX Runtime; they are imported where they are used.
"""

from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.inputs import BatchError
from centernet_trt.runtime.presets import PRESET_NAMES, preset, read_spec
from centernet_trt.runtime.serving.types import Batching, QueueFullError, RequestStatistics
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.tta.augment import TestTimeAugmentation

__all__ = [
    "PRESET_NAMES",
    "BatchError",
    "Batching",
    "Detections",
    "Detector",
    "EngineBundle",
    "ModelSpec",
    "QueueFullError",
    "RequestStatistics",
    "TestTimeAugmentation",
    "preset",
    "read_spec",
]
