"""Set the inputs and outputs of a graph (dynamic axes, the cut at the heads), and write it to a file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.diagnose import check_operators, check_weight_types
from centernet_trt.builder.graph.external_data import PROTOBUF_LIMIT, serialised_size
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.cache import atomic_write
from centernet_trt.errors import ModelError

__all__ = ["find_image_input", "further_inputs", "keep_heads", "make_dynamic", "save_model", "set_input_size"]

_IN_FILE = 1024  # constants of fewer bytes stay in the .onnx file when the rest goes to a file beside it


def keep_heads(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """Cut a graph at its heads.

    Args:
        model: any; a head may be an output or an internal tensor (the logits before a Sigmoid).
        outputs: tensor names, each once.

    Returns:
        The model with exactly these outputs, in this order, without the nodes, constants and inputs that they do not
        need.

    Raises:
        ModelError: there are no names, a name is repeated, no node computes a tensor, or its type is unknown; or what
            remains has operators that ONNX does not define, or weights of float64 or bfloat16.
    """
    if not outputs:
        raise ModelError("expected at least one head, got none", "name at least the heatmap tensor")
    twice = sorted({name for name in outputs if outputs.count(name) > 1})
    if twice:
        raise ModelError(
            f"heads named more than once: {', '.join(twice)}", "each head needs a tensor of its own"
        )
    source, model = model, g.copy_model(model)
    graph = model.graph
    made = g.producers(graph)
    for name in outputs:
        if name not in made:
            raise _missing(model, name)
    del graph.output[:]
    graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    g.prune(graph)
    check_operators(model)
    check_weight_types(model)
    for value in graph.output:
        value.CopyFrom(_value(source, value.name))
    used = {name for node in graph.node for name in g.node_uses(node)}
    g.keep_only(graph.input, lambda value: value.name in used)
    if not graph.input:
        raise ModelError(
            f"the heads {', '.join(outputs)} do not depend on any input of the graph",
            "name the network's heads",
        )
    return model


def _value(model: ModelProto, name: str) -> ValueInfoProto:
    """The declaration of a tensor: the model's own, else by shape inference."""
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
            f"expected a head that the graph computes, got the input or constant {name!r}; "
            f"the graph's outputs are {', '.join(outputs)}",
            "name a tensor that a node computes",
        )
    near = g.near_names(name, g.producers(graph).keys())
    found = f"; near names: {', '.join(near)}" if near else ""
    return ModelError(
        f"the graph has no tensor {name!r}{found}; the graph's outputs are {', '.join(outputs)}",
        "name the heads in the spec by the tensors of this graph",
    )


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _type_hint(kind: int) -> str:
    if kind in (TensorProto.DOUBLE, TensorProto.BFLOAT16):
        return "export the network in float32: model.float() and a float32 example image; --precision fp16 makes it fp16"
    if kind in (TensorProto.UINT8, TensorProto.INT8):
        return "export the network without the conversion from bytes: pre-processing is done by a kernel"
    return "export the network with a float32 image as its input, as the network computes with it"


def further_inputs(model: ModelProto, tensors: Sequence[str], image: str = "") -> list[str]:
    """Inputs of the graph that tensors are computed from, in the graph's order, without the image."""
    made = g.producers(model.graph)
    needed, queue = set(tensors), list(tensors)
    while queue:
        maker = made.get(queue.pop())
        new = [name for name in g.node_uses(maker) if name not in needed] if maker is not None else []
        needed.update(new)
        queue += new
    constants = g.initializers(model.graph)
    names = [value.name for value in model.graph.input if value.name not in constants]
    return [name for name in names if name in needed and name != image]


def find_image_input(model: ModelProto, input_name: str) -> ValueInfoProto:
    """The declaration of an input of shape (N, 3, H, W), float32 or float16.

    Raises:
        ModelError: there is no such input, its rank is not 4, its type is not float, or it has not 3 channels.
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
            f"input {input_name!r}: expected rank 4, (N, C, H, W), got {rank}",
            "export the network alone, with its image batch as the input",
        )
    if tensor.elem_type not in _FLOATS:
        raise ModelError(
            f"input {input_name!r}: expected float, got {TensorProto.DataType.Name(tensor.elem_type)}",
            _type_hint(tensor.elem_type),
        )
    _check_channels(model, value)
    return value


def _check_channels(model: ModelProto, value: ValueInfoProto) -> None:
    sizes = [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
    if sizes[1] == 3 and sizes[3] != 3:
        return
    readers = [node for node in model.graph.node if value.name in node.input]
    turned = [n for n in readers if n.op_type == "Transpose" and g.attribute(n, "perm") == [0, 3, 1, 2]]
    shown = ", ".join(map(str, sizes))
    if sizes[1] != 3 and (sizes[3] == 3 or (turned and not isinstance(sizes[1], int))):
        raise ModelError(
            f"input {value.name!r}: expected (N, 3, H, W), got channels last (NHWC): ({shown})",
            "export the network with channels first: torch.onnx does so; with tf2onnx give --inputs-as-nchw "
            f"{value.name}",
        )
    if isinstance(sizes[1], int) and sizes[1] != 3:
        raise ModelError(
            f"input {value.name!r}: expected 3 channels, (N, 3, H, W), got {sizes[1]} in ({shown})",
            "images have the 3 channels blue, green, red; networks for grey, thermal or depth images are not supported",
        )


def make_dynamic(model: ModelProto, input_name: str, *, batch: bool = True, size: bool) -> ModelProto:
    """Make the batch and the size of the image input dynamic.

    Args:
        model: its input `input_name` is (N, C, H, W), float.
        input_name: the image input; other inputs are left alone.
        batch: make the first dimension dynamic, as `batch`; else it stays as declared.
        size: make the last two dynamic, as `height` and `width`; else they stay as declared.

    Returns:
        The model with all shapes inferred again. `check_dynamic_batch` finds out whether a node has the old batch size
        baked in.

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
    """Fix the size of the image input.

    Args:
        model: its input `input_name` is (N, C, H, W), float.
        input_name: the image input.
        height: rows in pixels.
        width: columns in pixels.

    Returns:
        The model with the input (N, C, height, width), N and C as they were, and all shapes inferred again.

    Raises:
        ModelError: see `find_image_input`; or the size is not positive, or contradicts the graph.
    """
    if height < 1 or width < 1:
        raise ModelError(
            f"expected an input size above 0, got {height}x{width}", "give a height and width above 0"
        )
    model = g.copy_model(model)
    dims = find_image_input(model, input_name).type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = height, width
    refresh_shapes(model)
    return model


def save_model(model: ModelProto, path: Path, *, external_above: int = PROTOBUF_LIMIT) -> tuple[Path, ...]:
    """Write a model. A write that fails leaves an older file of that name intact.

    Args:
        model: of any size.
        path: the .onnx file.
        external_above: above this many bytes the large constants go to `NAME.HASH.data` beside it (a protobuf file is
            limited to 2 GB).

    Returns:
        The files written, `path` first.

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
    """Write the large constants of a model to a file beside `path` -> a model that refers to them, and that file."""
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
    # The hash in the name keeps the old .onnx file usable until it is replaced.
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
