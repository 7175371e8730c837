"""Convert a TensorFlow.js graph model of a convolutional network to ONNX: `convert_tfjs`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from centernet_trt.builder.fetch.tfjs_graph import TfjsConverter
from centernet_trt.builder.fetch.tfjs_weights import read_weights
from centernet_trt.errors import ModelError

__all__ = ["COCO_MOBILENETV3_OUTPUTS", "convert_tfjs"]

COCO_MOBILENETV3_OUTPUTS: Mapping[str, str] = {
    # The logits: the graph's own output `tower_0/keypoints` is their sigmoid.
    "hm": "tower_0/CenternetHead/centernet_cls_output/BiasAdd",
    "wh_ltrb": "tower_0/wh",
}
"""Outputs of `models/centernet.json` of the npm package @vladmandic/human, by the names of preset `ttf-ltrb`."""


def convert_tfjs(
    model_json: Path,
    outputs: Mapping[str, str] = COCO_MOBILENETV3_OUTPUTS,
    *,
    input_name: str = "images",
) -> ModelProto:
    """Convert the part of a graph model that computes the given outputs to ONNX, opset 19.

    Args:
        model_json: the graph model, with its weight files in the same folder.
        outputs: output of the ONNX model -> node of the graph model, a tensor of four dimensions.
        input_name: name of the ONNX model's input.

    Returns:
        Input (batch, C, H, W) float32 with C, H and W of the graph model: they are fixed, since TensorFlow's SAME
        padding depends on the size. Outputs (batch, C', H', W') float32. Nodes and weights keep their names.

    Raises:
        ModelError: not a graph model, weights that do not fit it, or an unknown operator.
    """
    model_json = Path(model_json)
    document = _read(model_json)
    nodes = {node["name"]: node for node in _nodes(document, model_json)}
    weights = read_weights(document.get("weightsManifest"), model_json.parent)
    for name, source in outputs.items():
        if source not in nodes:
            raise ModelError(
                f"{model_json} has no node {source!r} for the output {name!r}", "give nodes of this graph"
            )
    converter = TfjsConverter(nodes, weights, input_name, frozenset(outputs))
    made = {name: converter.value(source) for name, source in outputs.items()}
    return converter.model(made, model_json.stem)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}", "give the .json file of a graph model"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", "give the .json file of a graph model") from None
    if not isinstance(document, dict) or document.get("format", "graph-model") != "graph-model":
        raise ModelError(
            f"{path} is not a TensorFlow.js graph model", "convert a layers model to a graph model first"
        )
    return document


def _nodes(document: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    topology = document.get("modelTopology")
    nodes = topology.get("node") if isinstance(topology, dict) else None
    if not isinstance(nodes, list) or not all(
        isinstance(n, dict) and {"name", "op"} <= n.keys() for n in nodes
    ):
        raise ModelError(f"{path} has no graph (modelTopology.node)", "give the .json file of a graph model")
    return nodes
