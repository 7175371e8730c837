"""Compare a typed graph with the source graph that it was made of, head by head."""

from onnx import ModelProto

from centernet_trt.builder.graph.compare import HeadError, compare_models, own_spread
from centernet_trt.builder.graph.shapes import holds_half
from centernet_trt.errors import ModelError, SpecError, ToleranceError
from centernet_trt.runtime.host.decode import check_heads
from centernet_trt.runtime.manifest import HeadComparison, Precision, ProfileRecord
from centernet_trt.runtime.spec import FixedSize, InputSpec, ModelSpec

__all__ = ["batch_check_shape", "compare_with_source", "comparison_records", "head_channels", "input_values"]

_BATCH_CHECK_SIDE = 128  # pixels; a large network takes seconds per image at its usual size
SPREAD_FACTOR = (
    4.0  # a difference within so many times the source's own numerical spread is not that of a pass
)
FP32_TOLERANCE = 1e-4  # of a head's largest magnitude; the passes by themselves stay within 1e-5


def input_values(spec: InputSpec) -> tuple[float, float]:
    """(lowest, highest) value of the network's input over all grey levels and channels."""
    low = min(-mean / std for mean, std in zip(spec.mean, spec.std, strict=True))
    high = max((255 * spec.scale - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    return low, high


def batch_check_shape(spec: InputSpec, profile: ProfileRecord) -> tuple[int, int]:
    """A small (height, width) of a profile: whether a batch is baked into a graph does not depend on the size."""
    if isinstance(spec.size, FixedSize):
        return spec.size.height, spec.size.width
    step = spec.size.multiple
    side = -(-_BATCH_CHECK_SIDE // step) * step
    height, width = (max(sides.min, min(sides.opt, side)) for sides in (profile.height, profile.width))
    return height, width


def head_channels(found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]) -> dict[str, int]:
    """Check the shapes of the heads that the source computed against the spec.

    Args:
        found: from `compare_with_source`.
        spec: gives the channels of each head and the stride in pixels.
        shape: (height, width) of the input.

    Returns:
        Head name -> number of channels.

    Raises:
        SpecError: a head has another shape than the spec says.
    """
    shapes = {name: error.shape for name, error in found.items()}
    check_heads(shapes, spec)
    grid = (shape[0] // spec.stride, shape[1] // spec.stride)
    name, (_, _, height, width) = next(iter(shapes.items()))
    if (height, width) != grid:
        raise SpecError(
            f"head {name!r}: expected {grid[0]}x{grid[1]} cells for an input of {shape[0]}x{shape[1]} pixels and the "
            f"spec's stride {spec.stride}, got {height}x{width}",
            f"set stride = {shape[0] // height} in the spec" if height and shape[0] % height == 0 else "",
        )
    return {name: head[1] for name, head in shapes.items()}


def compare_with_source(
    source: ModelProto,
    typed: ModelProto,
    spec: ModelSpec,
    shape: tuple[int, int],
    precision: Precision,
    notes: list[str] | None = None,
) -> dict[str, HeadError]:
    """Run the source in fp32 and the typed graph rounded to its types, on random pixels.

    Args:
        source: the source graph, cut at the heads.
        typed: the graph that the passes made of it.
        spec: gives the name of the image input and its normalisation.
        shape: (height, width) of the input.
        precision: of the typed graph; an fp32 graph must agree within `FP32_TOLERANCE`, or within what the source varies
            by itself: run with ONNX Runtime's optimisations and without, or with its input and weights changed by a rounding error.
        notes: receives a note for each head that agrees within the source's own spread only.

    Returns:
        Head name -> difference.

    Raises:
        ModelError: an fp32 graph does not agree, or a head overflows.
        BackendError: ONNX Runtime refuses a graph.
    """
    found = compare_models(
        source,
        typed,
        shapes={spec.input.name or "": (1, 3, *shape)},
        value_range=input_values(spec.input),
        mode="faithful",
    )
    beyond = [name for name, error in found.items() if not error.max_rel <= FP32_TOLERANCE]
    if precision == "fp32" and beyond:
        lines = _judge_by_spread(source, found, beyond, spec, shape)
        if notes is not None:
            notes += lines
    for name, error in found.items():
        if not error.max_abs < float("inf"):
            raise ToleranceError(
                f"head {name!r} overflows in {precision}: expected the source's finite number, got infinity or NaN",
                "build with --precision fp32",
            )
    return found


def _judge_by_spread(
    source: ModelProto,
    found: dict[str, HeadError],
    names: list[str],
    spec: ModelSpec,
    shape: tuple[int, int],
) -> list[str]:
    """Notes for heads that differ as the source varies by itself; ModelError for one that differs more."""
    half = holds_half(source)
    step = 2.0**-10 if half else 2.0**-23
    spread = own_spread(
        source, {spec.input.name or "": (1, 3, *shape)}, step=step, value_range=input_values(spec.input)
    )
    for name in names:
        error, own = found[name].max_rel, spread[name]
        if not error <= max(FP32_TOLERANCE, SPREAD_FACTOR * own):
            raise ModelError(
                f"head {name!r} of the prepared graph: expected at most {FP32_TOLERANCE:.0e} of its largest magnitude as "
                f"difference from the source, which varies by {own:.2g} by itself, got {error:.2g}",
                "this is a defect of a pass: please report it with the model",
            )
    worst = max(names, key=lambda name: found[name].max_rel)
    return [
        (
            f"the heads {', '.join(names)} differ from the source by up to {found[worst].max_rel:.2g} of their largest magnitude "
            f"({worst}, which by itself varies by {spread[worst]:.2g}: run optimised or not, or with its input and weights "
            f"changed by an {'fp16' if half else 'fp32'} rounding)"
        )
    ]


def comparison_records(
    found: dict[str, HeadError], spec: ModelSpec, shape: tuple[int, int]
) -> dict[str, HeadComparison]:
    """The manifest's record of a comparison."""
    low, high = input_values(spec.input)
    where = f"one random image of {shape[1]}x{shape[0]} pixels, values {low:.3g} to {high:.3g}, seed 0"
    return {
        name: HeadComparison(max_abs=error.max_abs, max_rel=error.max_rel, mode="faithful", input=where)
        for name, error in found.items()
    }
