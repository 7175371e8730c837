"""Runs a graph on images in ONNX Runtime and hands out the tensors asked for, batch after batch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from centernet_trt.builder import graph as g
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.inference import element_types, open_session
from centernet_trt.errors import BackendError, ModelError
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.preprocess import preprocess
from centernet_trt.runtime.spec import InputSpec

__all__ = ["Batch", "Simulation", "batches", "with_outputs"]

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Images that go through the network together: their names, the input tensor (N, 3, H, W), where each lies."""

    names: tuple[str, ...]
    tensor: Values
    placements: tuple[Placement, ...]


def batches(images: Sequence[CalibrationImage], spec: InputSpec, size: int = 1) -> Iterator[Batch]:
    """The images, pre-processed as for inference, `size` at a time, or fewer where the network's size changes."""
    waiting: list[tuple[str, BgrImage, Placement]] = []
    for image in images:
        pixels = image.read()
        placement = place(spec, pixels.shape[1], pixels.shape[0])
        shape = (placement.height, placement.width)
        if waiting and (len(waiting) == size or shape != (waiting[0][2].height, waiting[0][2].width)):
            yield _batch(waiting, spec)
            waiting = []
        waiting.append((image.name, pixels, placement))
    if waiting:
        yield _batch(waiting, spec)


def _batch(rows: Sequence[tuple[str, BgrImage, Placement]], spec: InputSpec) -> Batch:
    names, pixels, placements = zip(*rows, strict=True)
    tensor = preprocess(pixels, placements, spec).astype(np.float32, copy=False)
    return Batch(names, tensor, placements)


def with_outputs(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Return the model with these tensors for its outputs, and without what they do not need.

    Args:
        model: its `value_info` states every tensor's type (`inference.refresh_shapes`).
        tensors: computed by nodes of the graph.

    Raises:
        ModelError: a tensor that no node computes.
    """
    made, types = g.producers(model.graph), element_types(model)
    for name in tensors:
        if name not in made:
            near = ", ".join(g.near_names(name, made.keys()))
            raise ModelError(f"no node of the graph computes {name!r}", f"near names: {near}" if near else "")
    model = g.copy_model(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in tensors)
    g.prune(model.graph)
    return model


class Simulation:
    """A graph in ONNX Runtime on the CPU: fp32 nodes in fp32, and Q/DQ as ONNX defines them.

    ONNX Runtime's optimisations stay on, but for those that know Q/DQ: they would replace a convolution between Q/DQ
    by an integer kernel with a rounding of its own. A product of two int8 values is exact in fp32, so what is left
    differs from int8 arithmetic by the fp32 rounding of the accumulation only.

    A graph with fp16 tensors is not for this class: see `runtime.faithful`.
    """

    def __init__(self, model: ModelProto, threads: int = 1, *, in_order: bool = False) -> None:
        """Load the graph.

        Args:
            model: one input, (N, 3, H, W) float32.
            threads: of one run. One by default: on a shared machine a second one mostly waits.
            in_order: run the nodes in the graph's order, so that a tensor whose last reader comes early is freed early.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
        """
        self._session = _open(model, threads, in_order)
        self._input = model.graph.input[0].name
        self.outputs = tuple(value.name for value in model.graph.output)

    def run(self, tensor: Values) -> Mapping[str, Values]:
        """Each output for one input tensor.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        try:
            found = self._session.run(list(self.outputs), {self._input: tensor})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, map(np.asarray, found), strict=True))


def _open(model: ModelProto, threads: int, in_order: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return open_session(model, options)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime refuses the graph: {error}") from error
