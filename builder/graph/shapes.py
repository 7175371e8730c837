"""Check models, infer their shapes and open them in ONNX Runtime, also above 2 GB."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorShapeProto, ValueInfoProto, checker, helper
from onnx.shape_inference import InferenceError, infer_shapes

from centernet_trt.builder.graph.diagnose import TYPES_HINT
from centernet_trt.builder.graph.external_data import (
    PROTOBUF_LIMIT,
    data_folder,
    inline_constant,
    save_with_external_data,
    serialised_size,
)
from centernet_trt.errors import BackendError, ModelError
from centernet_trt.runtime.host import onnxruntime
from centernet_trt.runtime.host.onnxruntime import SessionMode

__all__ = [
    "PROTOBUF_LIMIT",
    "check",
    "element_types",
    "holds_half",
    "loadable",
    "open_session",
    "refresh_shapes",
    "saved",
    "serialised_size",
]

# Shape inference reads the values of small tensors only (shapes, axes, scales); copying larger ones is wasted.
_INFERENCE_VALUE_ELEMENTS = 1024


@contextmanager
def saved(model: ModelProto) -> Iterator[Path]:
    """Yield the path of the model in a temporary folder, its weights in files beside it; of any size."""
    beside = data_folder(model)
    if beside is None:
        with TemporaryDirectory(prefix="centernet-trt-") as folder:
            path = Path(folder) / "model.onnx"
            save_with_external_data(model, path, "weights.bin")
            yield path
        return
    path = beside / f"{secrets.token_hex(6)}.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        yield path
    finally:
        path.unlink()


@contextmanager
def loadable(model: ModelProto) -> Iterator[bytes | str]:
    """Yield what parsers and ONNX Runtime read: the model's bytes, or the path of one too large for that."""
    if _fits_in_memory(model):
        yield model.SerializeToString()
    else:
        with saved(model) as path:
            yield str(path)


def _fits_in_memory(model: ModelProto) -> bool:
    return data_folder(model) is None and serialised_size(model) < PROTOBUF_LIMIT


def open_session(
    model: ModelProto, mode: SessionMode = "fast", threads: int | None = None, *, in_order: bool = False
) -> Any:
    """Open an onnxruntime.InferenceSession of a model of any size; the model itself stays as it is.

    A model whose weights are in files runs with `low_memory`: see `runtime.host.onnxruntime.open_session`.

    Raises:
        BackendError: ONNX Runtime is missing or refuses the graph, or a temporary file cannot be written.
        ModelError: shapes or types contradict each other (`faithful`, fp16 only).
    """
    if mode == "faithful" and holds_half(model):
        copy = ModelProto()
        copy.CopyFrom(model)
        refresh_shapes(copy)  # rounding needs the type of every tensor
        model = copy
    if _fits_in_memory(model):
        return onnxruntime.open_session(model, mode, threads, in_order=in_order)
    low_memory = data_folder(model) is not None
    try:
        with saved(model) as path:
            return onnxruntime.open_session(path, mode, threads, low_memory=low_memory, in_order=in_order)
    except OSError as error:
        raise BackendError(
            f"cannot write the graph for ONNX Runtime: {error}",
            "check the temporary folder and its free space",
        ) from error


def holds_half(model: ModelProto) -> bool:
    """Whether inputs, outputs or weights of a graph are fp16."""
    half = onnx.TensorProto.FLOAT16
    values = (*model.graph.input, *model.graph.output)
    return any(value.type.tensor_type.elem_type == half for value in values) or any(
        tensor.data_type == half for tensor in model.graph.initializer
    )


def _skeleton(model: ModelProto, limit: int) -> ModelProto:
    """The model with each constant of more than `limit` elements turned into an input."""
    bare = ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    inputs = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= limit:
            graph.initializer.append(inline_constant(tensor))
        elif tensor.name not in inputs:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return bare


def check(model: ModelProto, *, full: bool = False) -> None:
    """Run ONNX's checker.

    Args:
        model: of any size; the large constants of one above 2 GB or in files are checked by type and shape only.
        full: also run strict shape inference.

    Raises:
        ModelError: the checker refuses the model.
    """
    small = data_folder(model) is None and serialised_size(model) < PROTOBUF_LIMIT
    try:
        checker.check_model(model if small else _skeleton(model, _INFERENCE_VALUE_ELEMENTS), full_check=full)
    except (checker.ValidationError, InferenceError, ValueError) as error:
        raise ModelError(
            f"the graph is not valid ONNX: {error}", "export the model again, or report the pass that made it"
        ) from error


def refresh_shapes(model: ModelProto, *, clear_outputs: bool = True) -> None:
    """Infer all shapes of the model again from its inputs (in place).

    Args:
        model: the shapes of its inputs are right, all others are discarded.
        clear_outputs: also discard the declared shapes of the outputs (their element types stay).

    Raises:
        ModelError: shapes or types contradict each other.
    """
    graph = model.graph
    del graph.value_info[:]
    ranks: dict[str, int] = {}
    for value in graph.output if clear_outputs else ():
        ranks[value.name] = len(value.type.tensor_type.shape.dim)
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = infer_shapes(
            _skeleton(model, _INFERENCE_VALUE_ELEMENTS), check_type=True, strict_mode=True
        )
    except (InferenceError, ValueError) as error:
        raise ModelError(
            f"shape inference fails: {error}",
            TYPES_HINT
            if any(
                words in str(error) for words in ("inconsistent type", "TypeInferenceError", "element type")
            )
            else "the graph holds a shape that does not fit its inputs; export it with dynamic axes",
        ) from error
    graph.value_info.extend(inferred.graph.value_info)
    types = {value.name: value for value in inferred.graph.output}
    for value in graph.output:
        value.type.CopyFrom(types[value.name].type)
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
            # After an operator unknown to ONNX: an output must have a shape, so its old rank stays.
            tensor.shape.dim.extend(TensorShapeProto.Dimension() for _ in range(ranks.get(value.name, 0)))
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                # A name that inference made up for an unknown size; it differs from run to run.
                dim.ClearField("dim_param")


def element_types(model: ModelProto) -> dict[str, int]:
    """TensorProto.DataType of every tensor of known type, by name (call `refresh_shapes` first)."""
    graph = model.graph
    values: Iterable[ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return {name: kind for name, kind in types.items() if kind != onnx.TensorProto.UNDEFINED}
