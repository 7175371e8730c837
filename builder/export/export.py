"""Export a checkpoint as an ONNX graph."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from centernet_trt._version import __version__
from centernet_trt.builder.export.files.checkpoint import open_checkpoint
from centernet_trt.builder.export.files.entries import Checkpoint, array_entries
from centernet_trt.builder.export.match import load_state_dict
from centernet_trt.builder.export.network import Network
from centernet_trt.builder.export.registry import ARCHITECTURES, INPUT, Architecture, architecture
from centernet_trt.builder.export.select import select_tensors
from centernet_trt.builder.graph.edit import IR_VERSION, OPSET
from centernet_trt.builder.graph.shapes import check
from centernet_trt.builder.passes.batch_norm import fold_batch_norm

__all__ = ["architecture_names", "export_model", "random_weights"]

Array = NDArray[Any]


def architecture_names() -> tuple[str, ...]:
    """Names of the architectures; `export_model` also takes the aliases in `registry.ALIASES`."""
    return tuple(ARCHITECTURES)


def export_model(
    arch: str,
    weights: Path | Mapping[str, Array] | None,
    *,
    classes: int = 80,
    heads: Mapping[str, int] | None = None,
    head_conv: int | None = None,
    fold_bn: bool = False,
    strict: bool = True,
    prefix: str | None = None,
    ema: bool = False,
    report: Callable[[str], None] | None = None,
) -> ModelProto:
    """Export a CenterNet of a public architecture as an ONNX model of opset 19.

    Nothing in a checkpoint is executed.

    Args:
        arch: one of `architecture_names()`, or an alias.
        weights: a checkpoint file (.pth, .safetensors, .npz, the index of safetensors in shards), tensors by checkpoint
            name, or None for random weights (always the same), to try a build with.
        classes: channels of the heatmap.
        heads: channels of further outputs, such as {"hps": 34}; they follow the architecture's own. 0 removes an
            output of the official networks, such as {"reg": 0} for a network trained without offsets.
        head_conv: width inside the heads, in channels; None for the architecture's default.
        fold_bn: fold batch normalisation into the convolutions.
        strict: refuse tensors that the network has no parameter for; otherwise they are ignored. Those of optimisers
            and of other networks in the file are left out in any case.
        prefix: what the names of the network's tensors begin with, keys of dictionaries included, such as
            "state_dict.model."; its last parts suffice. None to find it: the network must then fit below one only.
        ema: take the averaged weights (EMA) of the checkpoint.
        report: called with each line that says which weights were taken and what was left out.

    Returns:
        The model. Input `input`: (batch, 3, height, width) float32, sides multiples of 32 (Hourglass: 128). Outputs
        (batch, channels, height / 4, width / 4) float32: official `hm` (logits), `wh`, `reg`; mmdetection
        `center_heatmap` (probability), `wh`, `offset`. Initializers have the checkpoint's tensor names, nodes the
        names of its layers. Metadata: the architecture, the ModelSpec preset that fits, and the origin of the weights.

    Raises:
        ModelError: unknown architecture; a checkpoint that cannot be read or does not fit. Every missing, extra and
            misshaped tensor is listed, with the architecture that fits best or the options that would fit. Also if
            several sets of tensors fit: their prefixes are listed.
    """
    chosen = architecture(arch)
    network = chosen.network(classes, heads, head_conv)
    if weights is None:
        source, values = "random", random_weights(network.parameters)
    else:

        def load(checkpoint: Checkpoint, name: str) -> tuple[str, dict[str, Array]]:
            found = select_tensors(checkpoint, network, chosen.name, prefix=prefix, averaged=ema)
            if report:
                for line in found.summary:
                    report(line)
            below = f" (prefix {found.prefix})" if found.prefix else ""
            where = f"{checkpoint.path}{below}"
            return name + below, load_state_dict(chosen, network, found.tensors, where=where, strict=strict)

        if isinstance(weights, Mapping):
            given = Checkpoint(Path("the given weights"), "arrays", array_entries(weights))
            source, values = load(given, "tensors given by the caller")
        else:
            with open_checkpoint(Path(weights)) as checkpoint:
                source, values = load(checkpoint, Path(weights).name)
    model = _model(chosen, network, values, source)
    if fold_bn:
        model = fold_batch_norm(model)
    check(model)
    return model


def random_weights(parameters: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """Draw random parameters that keep the activations finite at any depth.

    Convolutions are normal with variance 1 / fan-in: half of what preserves the variance through a ReLU, since residual
    sums double it. Offsets of deformable convolutions are about half a cell, batch norms near the identity.

    Args:
        parameters: shapes by name, as `Network.parameters` has them.
        seed: of the generator; a tensor depends on the seed, its name and its shape alone.

    Returns:
        float32 arrays by name.
    """
    values: dict[str, Array] = {}
    for name, shape in parameters.items():
        generator = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])
        z = generator.standard_normal(shape, np.float32)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var":
            values[name] = 1 + np.abs(z) * np.float32(0.1)
        elif len(shape) == 1:
            values[name] = z * np.float32(0.1) + np.float32(leaf == "weight")
        else:
            variance = (0.25 if "conv_offset" in name else 1.0) / np.prod(shape[1:])
            values[name] = z * np.float32(np.sqrt(variance))
    return values


def _model(arch: Architecture, network: Network, values: dict[str, Array], source: str) -> ModelProto:
    """Assemble the model; `values` is emptied meanwhile, so that large weights are in memory once."""
    graph = helper.make_graph(
        network.nodes,
        arch.name,
        [_value(INPUT, ["batch", 3, "height", "width"])],
        [_value(head.name, ["batch", head.channels, "height_4", "width_4"]) for head in network.outputs],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="centernet-trt",
        producer_version=__version__,
    )
    for name in network.parameters:
        if name not in network.unused:
            model.graph.initializer.add().CopyFrom(numpy_helper.from_array(values.pop(name), name))
    for name, value in network.constants.items():
        model.graph.initializer.add().CopyFrom(numpy_helper.from_array(value, name))
    notes = {"architecture": arch.name, "preset": arch.preset, "weights": source}
    helper.set_model_props(model, {f"centernet_trt.{key}": value for key, value in notes.items()})
    return model


def _value(name: str, dims: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
