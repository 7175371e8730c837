"""Variants of a small CenterNet as exporters and users make them: for the guess and for the whole build.

Each function takes the tiny network of `tiny_centernet` (heads hm, wh, reg) or of a number of classes, and returns a
model whose heads can be found again.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

from helpers.tiny_centernet import tiny_model


def renamed(names: dict[str, str], weights: str = "") -> ModelProto:
    """Head tensors, their nodes and weights under other names; `weights` is a prefix of the weights' names."""
    model = tiny_model()
    for n in model.graph.node:
        old = n.output[0]
        n.name = n.output[0] = names[old]
        for i in (1, 2):
            n.input[i] = weights + n.input[i].replace(old, names[old])
    for tensor in model.graph.initializer:
        head = tensor.name.split(".")[0]
        tensor.name = weights + tensor.name.replace(head, names[head])
    for value in model.graph.output:
        value.name = names[value.name]
    return model


def outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with these tensors as its outputs."""
    del model.graph.output[:]
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    model.graph.output.extend(known[name] for name in names)
    return model


def baked_sigmoid() -> ModelProto:
    """The heatmap output is a probability, clamped as the official code does in training."""
    model = tiny_model()
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1e-4, dtype=np.float32), "low"),
            numpy_helper.from_array(np.array(1 - 1e-4, dtype=np.float32), "high"),
        ]
    )
    model.graph.node.extend(
        [node("Sigmoid", ["hm"], ["hm_sigmoid"]), node("Clip", ["hm_sigmoid", "low", "high"], ["prob"])]
    )
    return outputs(model, ["prob", "wh", "reg"])


def baked_peaks() -> ModelProto:
    """Sigmoid and 3x3 max-pool peaks baked in: the heatmap output is zero but at its peaks."""
    model = tiny_model()
    model.graph.node.extend(
        [
            node("Sigmoid", ["hm"], ["heat"]),
            node("MaxPool", ["heat"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
            node("Equal", ["heat", "pooled"], ["is_peak"]),
            node("Cast", ["is_peak"], ["mask"], to=TensorProto.FLOAT),
            node("Mul", ["heat", "mask"], ["peaks"]),
        ]
    )
    return outputs(model, ["peaks", "wh", "reg"])


def baked_decode() -> ModelProto:
    """The whole post-processing baked in: peaks, top-K over all classes, gathers; outputs scores, labels, boxes."""
    model = baked_peaks()
    ints = {"flat": [0, -1], "pairs": [0, 2, -1], "k": [10], "cells": [16 * 16], "last": [2]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in ints.items()
    )
    model.graph.node.extend(
        [
            node("Reshape", ["peaks", "flat"], ["flat_peaks"]),
            node("TopK", ["flat_peaks", "k"], ["scores", "index"], axis=1),
            node("Div", ["index", "cells"], ["labels"]),
            node("Mod", ["index", "cells"], ["cell"]),
            node("Reshape", ["wh", "pairs"], ["wh_flat"]),
            node("Reshape", ["reg", "pairs"], ["reg_flat"]),
            node("Gather", ["wh_flat", "cell"], ["sizes"], axis=2),
            node("Gather", ["reg_flat", "cell"], ["offsets"], axis=2),
        ]
    )
    return outputs(model, ["scores", "sizes", "offsets"])


def concatenated() -> ModelProto:
    """All heads in one output, as some runtimes want it."""
    model = tiny_model()
    model.graph.node.append(node("Concat", ["hm", "wh", "reg"], ["out"], axis=1))
    return outputs(model, ["out"])


def channels_last() -> ModelProto:
    """Outputs transposed to N, H, W, C, as TensorFlow users have them."""
    model = tiny_model()
    for name in ("hm", "wh", "reg"):
        model.graph.node.append(node("Transpose", [name], [f"{name}_nhwc"], perm=[0, 2, 3, 1]))
    return outputs(model, ["hm_nhwc", "wh_nhwc", "reg_nhwc"])


def half_exported() -> ModelProto:
    """Exported in fp16: weights, input and outputs."""
    model = tiny_model()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def with_identities() -> ModelProto:
    """Identity chains, unnamed nodes, an unused weight, a weight listed as input, a stray scalar input."""
    model = tiny_model()
    for name in ("hm", "wh", "reg"):
        model.graph.node.extend(
            [node("Identity", [name], [f"{name}_1"]), node("Identity", [f"{name}_1"], [f"{name}_2"])]
        )
    for n in model.graph.node:
        n.name = ""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, dtype=np.float32), "unused"))
    weight = model.graph.initializer[0]
    model.graph.input.extend(
        [
            helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, list(weight.dims)),
            helper.make_tensor_value_info("bn.num_batches_tracked", TensorProto.INT64, []),
        ]
    )
    return outputs(model, ["hm_2", "wh_2", "reg_2"])


def at_opset(version: int) -> ModelProto:
    """The tiny network as an exporter of that opset writes it."""
    model = tiny_model()
    model.opset_import[0].version = version
    onnx.checker.check_model(model)
    return model
