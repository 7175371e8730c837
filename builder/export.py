"""A seed network and its checkpoint become one ONNX file: no source tree, no PyTorch, no compiled extension."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from centernet_trt._version import __version__
from centernet_trt.builder.architectures.network import IR_VERSION, OPSET, Network
from centernet_trt.builder.architectures.registry import ARCHITECTURES, INPUT, Architecture, architecture
from centernet_trt.builder.checkpoint import read_checkpoint
from centernet_trt.builder.checkpoint_match import match_checkpoint
from centernet_trt.builder.inference import PROTOBUF_LIMIT, check, serialised_size
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.cache import atomic_write
from centernet_trt.errors import ModelError

__all__ = ["architecture_names", "export_model", "random_weights", "save_model"]

Array = NDArray[Any]

_IN_FILE = 1024  # constants of fewer bytes stay in the .onnx file when the rest goes to a file beside it


def architecture_names() -> tuple[str, ...]:
    """Names that `export_model` knows (it also takes the aliases in `registry.ALIASES`)."""
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
) -> ModelProto:
    """Return a seed network as an ONNX model of opset 19.

    Args:
        arch: one of `architecture_names()`, or an alias.
        weights: a checkpoint file (.pth, .safetensors, .npz), tensors by checkpoint name, or None for random weights
            (the same every time), which serve to try a build.
        classes: channels of the heatmap.
        heads: channels of other outputs, such as {"hps": 34}; they come after the architecture's own. 0 leaves an
            output of the official networks out, such as {"reg": 0} for one trained without offsets.
        head_conv: width inside the heads; None for the architecture's default.
        fold_bn: fold batch normalisation into the convolutions.
        strict: refuse tensors that the network has no place for; else they are left out.

    Returns:
        Input `input`: (batch, 3, height, width) float32, sides multiples of 32 (Hourglass: 128). Outputs at a quarter
        of the size: official `hm` (logits), `wh`, `reg`; mmdetection `center_heatmap` (probability), `wh`, `offset`.
        Constants have the checkpoint's names, nodes the names of its layers. Metadata: the architecture, the
        ModelSpec preset that fits, and where the weights come from.

    Raises:
        ModelError: no such architecture; a checkpoint that cannot be read, or does not fit: every missing, extra and
            misshaped tensor is listed, with the architecture that fits best or the number of classes that it has.
    """
    chosen = architecture(arch)
    network = chosen.network(classes, heads, head_conv)
    if weights is None:
        source, values = "random", random_weights(network.parameters)
    elif isinstance(weights, Mapping):
        source, tensors = "tensors given by the caller", weights
        values = match_checkpoint(chosen, network, tensors, where="the given weights", strict=strict)
    else:
        path = Path(weights)
        source = path.name
        values = match_checkpoint(
            chosen, network, read_checkpoint(path).tensors, where=str(path), strict=strict
        )
    model = _model(chosen, network, values, source)
    if fold_bn:
        model = fold_batch_norm(model)
    check(model)
    return model


def random_weights(parameters: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """Random float32 values that keep the activations of any depth finite; the same for the same seed.

    Convolutions are normal with variance 1 / fan-in: half of what keeps the variance through a ReLU, since residual
    sums double it. Offsets of deformable convolutions are about half a cell, batch norms near the identity.
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


def _model(arch: Architecture, network: Network, values: dict[str, Array], source: str) -> ModelProto:
    """Put the model together; `values` is emptied on the way, so that large weights are held once."""
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
