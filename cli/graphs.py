"""What the evaluation commands need of graphs: a source ONNX file made comparable to a bundle, and counts."""

from pathlib import Path

from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.spec import FixedSize


def comparable_source(path: Path, manifest: Manifest) -> bytes:
    """An ONNX file with the heads, batch and input size that a bundle has, otherwise as it is; serialised.

    Args:
        path: the file, as it was given to `build`.
        manifest: of the bundle.

    Raises:
        ModelError: the file cannot be read, or does not have the tensors that the spec names.
    """
    from centernet_trt.builder.loading import load_model
    from centernet_trt.builder.passes.heads import keep_heads
    from centernet_trt.builder.passes.shapes import make_dynamic, set_input_size

    spec, name = manifest.spec, manifest.input.name
    model, size = load_model(path), spec.input.size
    if isinstance(size, FixedSize):
        model = set_input_size(model, name, size.height, size.width)
    model = make_dynamic(model, name, size=not isinstance(size, FixedSize))
    return bytes(keep_heads(model, spec.heads.tensors).SerializeToString())


def count_work(bundle: EngineBundle, height: int, width: int) -> tuple[int, int]:
    """(multiply-adds, parameters) of a bundle's graph for one input of height x width pixels.

    The graph is the compiled one: its batch norms are folded, so that it has fewer parameters than the source.

    Raises:
        ModelError: the graph has tensors of unknown size.
    """
    import onnx

    from centernet_trt.builder.complexity import count_complexity

    found = count_complexity(onnx.load(bundle.model_path), height, width)
    return found.multiply_adds, found.parameters


def try_count(bundle: EngineBundle, height: int, width: int) -> tuple[int, int] | None:
    """`count_work`, or None where it cannot be counted."""
    try:
        return count_work(bundle, height, width)
    except CenterNetError:
        return None
