"""Inputs and outputs of a graph: dynamic axes, and the cut at the heads."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.external_data import PROTOBUF_LIMIT, serialised_size
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.cache import atomic_write
from centernet_trt.errors import ModelError

__all__ = ["find_image_input", "keep_heads", "make_dynamic", "save_model", "set_input_size"]

_IN_FILE = 1024  # constants of fewer bytes stay in the .onnx file when the rest goes to a file beside it


def keep_heads(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """Return the model whose outputs are exactly these tensors, in this order, and nothing beyond them.

    Args:
        model: any model; a head may be an output or an internal tensor (the logits before a Sigmoid).
        outputs: tensor names, each once.

    Returns:
        The model without the nodes, constants and inputs that these tensors do not need.

    Raises:
        ModelError: no names, a name twice, a tensor that no node computes, or one of unknown type.
    """
    if not outputs:
        raise ModelError("no heads were named", "name at least the heatmap tensor")
    twice = sorted({name for name in outputs if outputs.count(name) > 1})
    if twice:
        raise ModelError(
            f"heads named more than once: {', '.join(twice)}", "each head needs a tensor of its own"
        )
    model = g.copy_model(model)
    graph = model.graph
    made = g.producers(graph)
    for name in outputs:
        if name not in made:
            raise _missing(model, name)
    kept = [_value(model, name) for name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    g.prune(graph)
    used = {name for node in graph.node for name in g.node_uses(node)}
    g.keep_only(graph.input, lambda value: value.name in used)
    if not graph.input:
        raise ModelError(
            f"the heads {', '.join(outputs)} do not depend on any input of the graph",
            "name the network's heads",
        )
    return model


def _value(model: ModelProto, name: str) -> ValueInfoProto:
    """Return the type of a tensor as the model notes it, else as shape inference finds it."""
    for attempt in range(2):
        for value in (*model.graph.output, *model.graph.value_info):
            if value.name == name and value.type.WhichOneof("value"):
                found = ValueInfoProto()
                found.CopyFrom(value)
                return found
        if not attempt:
            model = g.copy_model(model)
            refresh_shapes(model, clear_outputs=False)
    raise ModelError(
        f"the type of tensor {name!r} is unknown: it comes from an operator that ONNX does not define",
        "make it an output of the graph when exporting",
    )


def _missing(model: ModelProto, name: str) -> ModelError:
    graph = model.graph
    outputs = [value.name for value in graph.output]
    if name in {value.name for value in graph.input} or name in g.initializers(graph):
        return ModelError(
            f"{name!r} is an input or constant of the graph, not something it computes; "
            f"its outputs are {', '.join(outputs)}",
            "name a tensor that a node makes",
        )
    near = g.near_names(name, g.producers(graph).keys())
    found = f"; near names: {', '.join(near)}" if near else ""
    return ModelError(
        f"the graph has no tensor {name!r}{found}; its outputs are {', '.join(outputs)}",
        "name the heads in the spec by the tensors of this graph",
    )


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def find_image_input(model: ModelProto, input_name: str) -> ValueInfoProto:
    """Return the declaration of an input of shape (N, C, H, W), float32 or float16.

    Raises:
        ModelError: there is no such input, or it is not of rank 4, or not float.
    """
    constants = g.initializers(model.graph)
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    value: ValueInfoProto | None = inputs.get(input_name)
    if value is None:
        raise ModelError(
            f"the graph has no input {input_name!r}; it has {', '.join(map(repr, inputs)) or 'none'}",
            "name one of these as the input in the spec",
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or len(tensor.shape.dim) != 4:
        rank = f"rank {len(tensor.shape.dim)}" if tensor.HasField("shape") else "no declared shape"
        raise ModelError(
            f"input {input_name!r} has {rank}; (N, C, H, W), rank 4, was expected",
            "export the network alone, with its image batch as the input",
        )
    if tensor.elem_type not in _FLOATS:
        raise ModelError(
            f"input {input_name!r} is {TensorProto.DataType.Name(tensor.elem_type)}; float was expected",
            "export the network without the conversion from bytes: pre-processing is done by a kernel",
        )
    return value


def make_dynamic(model: ModelProto, input_name: str, *, batch: bool = True, size: bool) -> ModelProto:
    """Return the model with a dynamic batch and, if asked, a dynamic size.

    Args:
        model: a model whose input `input_name` is (N, C, H, W), float.
        input_name: the image input; other inputs are left alone.
        batch: call the first dimension `batch`; else keep it as declared.
        size: call the last two `height` and `width`; else keep them as declared.

    Returns:
        The model with all shapes behind the input inferred again, those of the outputs too. That nothing
        in the graph has the old shape baked in is for `equivalence.check_dynamic_batch` to find out.

    Raises:
        ModelError: see `find_image_input`; or the new shape contradicts the graph.
    """
    model = g.copy_model(model)
    dims = find_image_input(model, input_name).type.tensor_type.shape.dim
    if batch:
        dims[0].dim_param = "batch"
    if size:
        dims[2].dim_param, dims[3].dim_param = "height", "width"
    refresh_shapes(model)
    return model


def set_input_size(model: ModelProto, input_name: str, height: int, width: int) -> ModelProto:
    """Return the model with the input declared as (N, C, height, width); N and C stay as they are.

    Raises:
        ModelError: see `find_image_input`; or the size is not positive, or contradicts the graph.
    """
    if height < 1 or width < 1:
        raise ModelError(
            f"an input size of {height}x{width} was asked for", "give a height and width above 0"
        )
    model = g.copy_model(model)
    dims = find_image_input(model, input_name).type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = height, width
    refresh_shapes(model)
    return model


def save_model(model: ModelProto, path: Path, *, external_above: int = PROTOBUF_LIMIT) -> tuple[Path, ...]:
    """Write the model and return the files that hold it; a write that dies leaves an older file of the name whole.

    Args:
        model: of any size.
        path: the .onnx file. Beyond `external_above` bytes the large constants go to `NAME.HASH.data` beside it (a
            protobuf file ends at 2 GB).
        external_above: see there.

    Raises:
        ModelError: the file cannot be written.
    """
    path = Path(path)
    beside: tuple[Path, ...] = ()
    try:
        if serialised_size(model) > external_above:
            model, data = _write_data(model, path)
            beside = (data,)
        atomic_write(path, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: {error.strerror}", "check the folder and its free space"
        ) from error
    return (path, *beside)


def _write_data(model: ModelProto, path: Path) -> tuple[ModelProto, Path]:
    """Write the large constants of a model to a file beside `path`; the model that refers to them, and that file."""
    bare = ModelProto()
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _IN_FILE]
    large_names = {tensor.name for tensor in large}
    for field in ("ir_version", "producer_name", "producer_version", "doc_string"):
        setattr(bare, field, getattr(model, field))
    bare.opset_import.extend(model.opset_import)
    bare.metadata_props.extend(model.metadata_props)
    bare.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(bare.graph, field).extend(getattr(model.graph, field))
    bare.graph.initializer.extend(t for t in model.graph.initializer if t.name not in large_names)
    digest = hashlib.sha256()
    for tensor in large:
        digest.update(tensor.raw_data)
    # Its name has its hash: until the .onnx file is replaced, the old one finds its own data.
    data = path.with_name(f"{path.name}.{digest.hexdigest()[:12]}.data")

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.writelines(tensor.raw_data for tensor in large)

    atomic_write(data, write)
    offset = 0
    for tensor in large:
        entry = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        entry.data_location = TensorProto.EXTERNAL
        length = len(tensor.raw_data)
        for key, value in (("location", data.name), ("offset", offset), ("length", length)):
            entry.external_data.add(key=key, value=str(value))
        offset += length
    return bare, data
