"""Graphs that the builder accepts: the tiny CenterNet as exporters and users make it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.guess.spec import Guess, guess_spec
from centernet_trt.runtime import EngineBundle
from centernet_trt.runtime.manifest import Precision, ShapeRange
from centernet_trt.runtime.spec import ModelSpec
from helpers import variants
from helpers.tiny_centernet import save_tiny_model, tiny_model, tiny_spec


def external(folder: Path) -> Path:
    path = folder / "external.onnx"
    onnx.save_model(tiny_model(), path, save_as_external_data=True, location="external.bin", size_threshold=0)
    return path


def saved(make: Callable[[], ModelProto]) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        onnx.save(make(), folder / "model.onnx")
        return folder / "model.onnx"

    return save


def quantised_by_onnxruntime(folder: Path) -> Path:
    """Symmetric int8 by `quantize_static`, biases quantised to int32 as it does."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    levels = np.linspace(0, 1, 5, dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None, None], (5, 1, 3, 32, 32)).copy()

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        rows: Iterator[Any] = iter([{"image": image} for image in images])

        def get_next(self) -> Any:
            return next(self.rows, None)

    path = folder / "quantised.onnx"
    logging.disable(logging.WARNING)  # it advises on the pre-processing of models
    try:
        quantize_static(
            save_tiny_model(folder),
            path,
            Reader(),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
    finally:
        logging.disable(logging.NOTSET)
    return path


def fake_quantised() -> ModelProto:
    """Float weights behind Q/DQ of their own, per channel, as PyTorch exports fake quantisation: scales and zero points
    that are alike are one constant, handed on through Identity.
    """
    model = tiny_model()
    graph = model.graph

    def pair(source: str, scale: np.ndarray[Any, Any], axis: int) -> list[onnx.NodeProto]:
        constants = {"scale": scale.astype(np.float32), "zero": np.zeros(scale.shape, np.int8)}
        graph.initializer.extend(numpy_helper.from_array(v, f"{source}/{k}") for k, v in constants.items())
        named = {"name": f"{source}/Quantize", "axis": axis}, {"name": f"{source}/Dequantize", "axis": axis}
        parameters = [f"{source}/shared", f"{source}/int8"]
        return [
            helper.make_node("Identity", [f"{source}/scale"], [f"{source}/shared"]),
            helper.make_node("Identity", [f"{source}/zero"], [f"{source}/int8"]),
            helper.make_node("QuantizeLinear", [source, *parameters], [f"{source}/q"], **named[0]),
            helper.make_node("DequantizeLinear", [f"{source}/q", *parameters], [f"{source}/dq"], **named[1]),
        ]

    nodes = pair("image", np.array(1 / 127), 1)
    for node in graph.node:
        weight = numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[1]))
        nodes += pair(node.input[1], np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-3) / 127, 0)
        node.input[0], node.input[1] = "image/dq", f"{node.input[1]}/dq"
    convs = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *convs])
    return model


MMDET = {"hm": "center_heatmap", "wh": "wh", "reg": "offset"}
GRAPHS: dict[str, Callable[[Path], Path]] = {
    "dynamic": saved(tiny_model),
    "static": saved(lambda: tiny_model(size=(64, 96))),
    "mmdet names": saved(lambda: variants.renamed(MMDET)),
    "sigmoid baked in": saved(variants.baked_sigmoid),
    "peaks baked in": saved(variants.baked_peaks),
    "decode baked in": saved(variants.baked_decode),
    "one concatenated output": saved(variants.concatenated),
    "channels last": saved(variants.channels_last),
    "identities, strays": saved(variants.with_identities),
    "fp16": saved(variants.half_exported),
    "external data": external,
    "Q/DQ, ONNX Runtime's quantiser": quantised_by_onnxruntime,
    "Q/DQ, as training exports it": saved(fake_quantised),
    **{f"opset {version}": saved(lambda v=version: variants.at_opset(v)) for version in (9, 11, 13, 17, 19, 21, 23, 25)},
}  # fmt: skip


def as_tiny(guessed: ModelSpec, tiny: ModelSpec) -> ModelSpec:
    """The guess, with the tiny network's own normalisation: that no graph tells."""
    fields = ("channel_order", "scale", "mean", "std")
    image = guessed.input.model_copy(update={name: getattr(tiny.input, name) for name in fields})
    return guessed.model_copy(update={"input": image, "class_names": tiny.class_names})


def precision_of(name: str) -> Precision:
    """A graph that is quantised is built as int8, all others as fp16."""
    return "int8" if name.startswith("Q/DQ") else "fp16"


def build_case(name: str, folder: Path) -> tuple[Guess, EngineBundle]:
    """Guess the spec of a case's graph, and build it with a plan for TensorRT for RTX."""
    path = GRAPHS[name](folder)
    guess = guess_spec(load_model(path))
    spec = as_tiny(guess.require_spec(), tiny_spec())
    side = ShapeRange.of(32, 64, 128)
    ranges = {} if spec.input.size.rule == "fixed" else {"height": side, "width": side}
    options = BuildOptions(precision=precision_of(name), flavour="rtx", **ranges)
    return guess, build(path, spec, folder / "b", options)
