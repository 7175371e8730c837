"""Declares the image input's shape: dynamic where asked, fixed where asked; everything behind it follows."""

from onnx import ModelProto, TensorProto, ValueInfoProto

from centernet_trt.builder import graph as g
from centernet_trt.builder import inference
from centernet_trt.errors import ModelError

__all__ = ["find_image_input", "make_dynamic", "set_input_size"]

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
    inference.refresh_shapes(model)
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
    inference.refresh_shapes(model)
    return model
