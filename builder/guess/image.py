"""Find the image input of a graph, and a normalisation inside the graph: ImageInput."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.io import find_image_input, further_inputs, set_input_size
from centernet_trt.builder.guess.sizes import Sizes, run_part
from centernet_trt.builder.guess.walk import CONVOLUTIONS
from centernet_trt.errors import CenterNetError, ModelError, SpecError
from centernet_trt.runtime.presets import preset

_PROBE_SIDE = 512  # pixels; a graph of dynamic size is examined at this size
_POINTWISE = frozenset({"Identity", "Cast", "Sub", "Add", "Mul", "Div", "Gather"})


@dataclass(frozen=True)
class ImageInput:
    """The image input of a graph.

    Attributes:
        name: of the tensor.
        size: (height, width) in pixels that the graph is examined with.
        fixed: whether the graph fixes that size.
    """

    name: str
    size: tuple[int, int]
    fixed: bool


@dataclass(frozen=True)
class InnerNormalisation:
    """A normalisation that the graph does itself: value = gain * pixel + shift.

    Attributes:
        gain: by channel of the input; None if channels are mixed.
        shift: by channel of the input.
        order: order of the input's channels, where the statistics are public ones; else None.
        scale: factor for the pixels in front of the graph, likewise.
    """

    gain: tuple[float, ...] | None
    shift: tuple[float, ...]
    order: Literal["bgr", "rgb"] | None = None
    scale: float | None = None


def image_input(model: ModelProto) -> ImageInput:
    """Find the input that is the image: the one that the convolutions read.

    Raises:
        ModelError: the only input cannot be an image.
        SpecError: no input, or several, could be the image, or the network reads further inputs.
    """
    constants = g.initializers(model.graph)
    inputs = [value for value in model.graph.input if value.name not in constants]
    used = further_inputs(model, [n.output[0] for n in model.graph.node if n.op_type in CONVOLUTIONS])
    read = [value for value in inputs if value.name in used] or inputs
    if len(read) == 1:
        return _sized(find_image_input(model, read[0].name))
    images = []
    for value in read:
        try:
            images.append(find_image_input(model, value.name))
        except CenterNetError:
            continue
    listed = ", ".join(value.name for value in read)
    raise SpecError(
        f"expected a network with one input, the image, got {len(read)} inputs that its convolutions read ({listed}); "
        f"{len(images)} of them could be an image",
        "networks with further inputs, such as trackers that take the previous frame, are not supported: "
        "export one whose further inputs are constants",
    )


def _sized(value: ValueInfoProto) -> ImageInput:
    dims = value.type.tensor_type.shape.dim
    fixed = all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims[2:])
    size = (dims[2].dim_value, dims[3].dim_value) if fixed else (_PROBE_SIDE, _PROBE_SIDE)
    return ImageInput(value.name, size, fixed)


def sized_model(model: ModelProto, image: ImageInput) -> ModelProto:
    """The graph for one image of the size that it is examined with; an undeclared batch stays where 1 does not fit."""
    single = g.copy_model(model)
    for value in single.graph.input:
        if value.name == image.name and not value.type.tensor_type.shape.dim[0].dim_value:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        return set_input_size(single, image.name, *image.size)
    except ModelError:
        return model if image.fixed else set_input_size(model, image.name, *image.size)


def inner_normalisation(sizes: Sizes, name: str) -> InnerNormalisation | None:
    """Find the arithmetic between the image and the first convolution; None without any."""
    graph = sizes.model.graph
    consumers, made = g.consumers(graph), g.producers(graph)
    constants = g.initializers(graph)
    current, arithmetic = name, False
    while len(readers := consumers.get(current, [])) == 1 and readers[0].op_type in _POINTWISE:
        (reader,) = readers
        others = [other for other in reader.input if other != current]
        if not all(o in constants or (o in made and made[o].op_type == "Constant") for o in others):
            break
        arithmetic |= reader.op_type not in ("Identity", "Cast")
        current = reader.output[0]
    shape = sizes.get(name)
    if not arithmetic or len(shape) != 4:
        return None
    answers: list[NDArray[np.float64] | None] = [
        _answer(sizes, name, current, channel) for channel in (None, 0, 1, 2)
    ]
    found = [answer for answer in answers if answer is not None and len(answer) == 3]
    if len(found) != len(answers):
        return InnerNormalisation(None, ())
    zero, *rest = found
    matrix = np.stack([one - zero for one in rest])  # row: input channel
    if np.allclose(matrix, np.eye(3)) and np.allclose(zero, 0):
        return None
    places = np.abs(matrix).argmax(axis=1)
    if sorted(places) != [0, 1, 2] or np.count_nonzero(matrix) != 3:
        return InnerNormalisation(None, tuple(zero.tolist()))
    gain, shift = matrix[range(3), places], zero[places]
    return _recognised(gain, shift)


def _answer(sizes: Sizes, name: str, target: str, channel: int | None) -> NDArray[np.float64] | None:
    image = np.zeros((1, *sizes.get(name)[1:]), dtype=np.float32)
    if channel is not None:
        image[:, channel] = 1
    found = run_part(sizes, {name: image}, target)
    return None if found is None or found.ndim != 4 else found[0, :, 0, 0].astype(np.float64)


def _recognised(gain: NDArray[Any], shift: NDArray[Any]) -> InnerNormalisation:
    """Compare the statistics with those of the presets."""
    known = InnerNormalisation(tuple(gain.tolist()), tuple(shift.tolist()))
    mean, std = -shift / gain, 1 / gain
    for family in ("official", "mmdet"):
        stated = preset(family).input
        stated_mean, stated_std = np.array(stated.mean) / stated.scale, np.array(stated.std) / stated.scale
        for unit in (1, 255):
            for step in (1, -1):
                wanted = stated_mean[::step], stated_std[::step]
                if np.allclose(mean * unit, wanted[0], rtol=0.01) and np.allclose(
                    std * unit, wanted[1], rtol=0.01
                ):
                    other: Literal["bgr", "rgb"] = "rgb" if stated.channel_order == "bgr" else "bgr"
                    order = stated.channel_order if step == 1 else other
                    return InnerNormalisation(known.gain, known.shift, order, 1 / unit)
    return known
