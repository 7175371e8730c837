"""Compare a typed graph with the source graph that it was made of, head by head."""

from onnx import ModelProto

from centernet_trt.builder.graph.compare import HeadError, compare_models
from centernet_trt.errors import ModelError, SpecError
from centernet_trt.runtime.host.decode import check_heads
from centernet_trt.runtime.manifest import HeadComparison, Precision
from centernet_trt.runtime.spec import InputSpec, ModelSpec

__all__ = ["compare_with_source", "comparison_records", "head_channels", "input_values"]

FP32_TOLERANCE = 1e-4  # of a head's largest magnitude; the passes themselves stay within 1e-5


def input_values(spec: InputSpec) -> tuple[float, float]:
    """The range of the network's input values over all grey levels and channels."""
    low = min(-mean / std for mean, std in zip(spec.mean, spec.std, strict=True))
    high = max((255 * spec.scale - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    return low, high


def head_channels(found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]) -> dict[str, int]:
    """Hold the heads that the source computed to the spec -> their channels by name.

    Args:
        found: from `compare_with_source`.
        spec: says how many channels each head has, and how many pixels a cell.
        shape: (height, width) of the input.

    Raises:
        SpecError: a head is of another shape than the spec says.
    """
    shapes = {name: error.shape for name, error in found.items()}
    check_heads(shapes, spec)
    grid = (shape[0] // spec.stride, shape[1] // spec.stride)
    name, (_, _, height, width) = next(iter(shapes.items()))
    if (height, width) != grid:
        raise SpecError(
            f"head {name!r} has a grid of {height}x{width} cells for an input of {shape[0]}x{shape[1]} pixels; "
            f"the spec's stride {spec.stride} would give {grid[0]}x{grid[1]}",
            f"set stride = {shape[0] // height} in the spec" if height and shape[0] % height == 0 else "",
        )
    return {name: head[1] for name, head in shapes.items()}


def compare_with_source(
    source: ModelProto, typed: ModelProto, spec: ModelSpec, shape: tuple[int, int], precision: Precision
) -> dict[str, HeadError]:
    """Run the source in fp32 and the typed graph true to its types, on random pixels.

    Args:
        source: cut at the heads.
        typed: what was made of it.
        spec: its input's name and normalisation.
        shape: (height, width) of the input.
        precision: of the typed graph; fp32 has to agree within `FP32_TOLERANCE`.

    Raises:
        ModelError: fp32 does not agree, or a head overflows.
        BackendError: ONNX Runtime refuses a graph.
    """
    found = compare_models(
        source,
        typed,
        shapes={spec.input.name or "": (1, 3, *shape)},
        value_range=input_values(spec.input),
        mode="faithful",
    )
    for name, error in found.items():
        if precision == "fp32" and not error.max_rel <= FP32_TOLERANCE:
            raise ModelError(
                f"head {name!r} of the prepared graph differs from the source by {error.max_rel:.2g} of its largest "
                f"magnitude, at most {FP32_TOLERANCE:.0e} was expected",
                "this is a defect of a pass: please report it with the model",
            )
        if not error.max_abs < float("inf"):
            raise ModelError(
                f"head {name!r} overflows in {precision}: an infinity or NaN where the source has a number",
                "build with --precision fp32",
            )
    return found


def comparison_records(
    found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]
) -> dict[str, HeadComparison]:
    """What the manifest keeps of a comparison."""
    low, high = input_values(spec.input)
    where = f"one random image of {shape[1]}x{shape[0]} pixels, values {low:.3g} to {high:.3g}, seed 0"
    return {
        name: HeadComparison(max_abs=error.max_abs, max_rel=error.max_rel, mode="faithful", input=where)
        for name, error in found.items()
    }
