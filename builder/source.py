"""Source ONNX files as every command reads them: loaded, every deformable convolution in the standard's form."""

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto

from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.graph.io import keep_heads, make_dynamic, set_input_size
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.passes.deform_conv import FOREIGN_OPS, has_deform_conv, standardise_deform_conv
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.spec import FixedSize

__all__ = ["RunPass", "comparable_source", "count_work", "read_source", "try_count"]

RunPass = Callable[[str, Callable[[], ModelProto]], ModelProto]
"""Runs a named step; a build passes `Passes.run`, which measures each."""


def _plainly(_: str, step: Callable[[], ModelProto]) -> ModelProto:
    return step()


def read_source(path: Path, run: RunPass = _plainly) -> ModelProto:
    """Read an ONNX file as a build does: any public spelling of deformable convolution becomes ONNX `DeformConv`.

    Args:
        path: the .onnx file.
        run: runs the steps `load` and, where there is such a convolution, `deformable`.

    Raises:
        ModelError: the file cannot be read, or a deformable convolution does not say what it computes.
    """
    model = run("load", lambda: load_model(path, foreign_ops=FOREIGN_OPS))
    if has_deform_conv(model):
        model = run("deformable", lambda: standardise_deform_conv(model))
    return model


def comparable_source(path: Path, manifest: Manifest) -> bytes:
    """An ONNX file with the heads, batch and input size that a bundle has, otherwise as it is; serialised.

    Args:
        path: the file, as it was given to `build`.
        manifest: of the bundle.

    Raises:
        ModelError: the file cannot be read, or does not have the tensors that the spec names.
    """
    spec, name = manifest.spec, manifest.input.name
    model, size = read_source(path), spec.input.size
    if isinstance(size, FixedSize):
        model = set_input_size(model, name, size.height, size.width)
    # Cut first: what hangs behind the heads (a top-K, a reshape) may know one size only.
    model = keep_heads(model, spec.heads.tensors)
    return bytes(make_dynamic(model, name, size=not isinstance(size, FixedSize)).SerializeToString())


def count_work(bundle: EngineBundle, height: int, width: int) -> tuple[int, int]:
    """(multiply-adds, parameters) of a bundle's graph for one input of height x width pixels.

    The graph is the compiled one: its batch norms are folded, so that it has fewer parameters than the source.

    Raises:
        ModelError: the graph has tensors of unknown size.
    """
    found = count_complexity(onnx.load(bundle.model_path), height, width)
    return found.multiply_adds, found.parameters


def try_count(bundle: EngineBundle, height: int, width: int) -> tuple[int, int] | None:
    """`count_work`, or None where it cannot be counted."""
    try:
        return count_work(bundle, height, width)
    except CenterNetError:
        return None
