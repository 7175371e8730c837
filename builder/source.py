"""Read source ONNX files as every command does: any variant of deformable convolution becomes ONNX DeformConv."""

from pathlib import Path

import onnx
from onnx import ModelProto

from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.graph.io import keep_heads, make_dynamic, set_input_size
from centernet_trt.builder.graph.load import load_model, read_model
from centernet_trt.builder.passes.branches import inline_constant_branches
from centernet_trt.builder.passes.deform_conv import FOREIGN_OPS, standardise_deform_conv
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.spec import FixedSize

__all__ = [
    "comparable_source",
    "count_work",
    "load_source",
    "read_original",
    "read_source",
    "try_count",
]


def load_source(path: Path) -> ModelProto:
    """Load an ONNX file, its deformable convolutions as they are, its constant conditions resolved.

    Args:
        path: the .onnx file.

    Raises:
        ModelError: the file cannot be read.
    """
    model = load_model(path, foreign_ops=FOREIGN_OPS, plugins_behind_heads=True)
    return inline_constant_branches(model, free_sizes=True)


def read_original(path: Path) -> ModelProto:
    """Read an ONNX file as it is: of its own opset, deformable convolutions as they are.

    Args:
        path: the .onnx file.

    Raises:
        ModelError: the file cannot be read.
    """
    return read_model(path, foreign_ops=FOREIGN_OPS, plugins_behind_heads=True)


def read_source(path: Path) -> ModelProto:
    """Load an ONNX file with every deformable convolution as ONNX `DeformConv`, as a build does.

    Args:
        path: the .onnx file.

    Raises:
        ModelError: the file cannot be read, or the attributes of a deformable convolution are missing.
    """
    return standardise_deform_conv(load_source(path))


def comparable_source(path: Path, manifest: Manifest) -> bytes:
    """Read an ONNX file with the heads, batch and input size of a bundle, otherwise unchanged.

    Args:
        path: the file that was given to `build`.
        manifest: of the bundle.

    Returns:
        The serialised graph.

    Raises:
        ModelError: the file cannot be read, or does not have the tensors that the spec names.
    """
    spec, name = manifest.spec, manifest.input.name
    model, size = read_source(path), spec.input.size
    if isinstance(size, FixedSize):
        model = set_input_size(model, name, size.height, size.width)
    # Cut first: what follows the heads (a top-K, a reshape) may know one size only.
    model = keep_heads(model, spec.heads.tensors)
    return bytes(make_dynamic(model, name, size=not isinstance(size, FixedSize)).SerializeToString())


def count_work(bundle: EngineBundle, height: int, width: int) -> tuple[int, int]:
    """Count the multiply-adds and parameters of a bundle's graph.

    The graph is the compiled one: its batch norms are folded, so it has fewer parameters than the source.

    Args:
        bundle: any.
        height: rows of the network input in pixels.
        width: columns, likewise.

    Returns:
        (multiply-adds, parameters).

    Raises:
        ModelError: the graph has tensors of unknown size.
    """
    found = count_complexity(onnx.load(bundle.model_path), height, width)
    return found.multiply_adds, found.parameters


def try_count(bundle: EngineBundle, height: int, width: int) -> tuple[int, int] | None:
    """`count_work`, or None if the graph cannot be counted."""
    try:
        return count_work(bundle, height, width)
    except CenterNetError:
        return None
