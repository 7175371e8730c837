"""Run two graphs on the same inputs and compare their outputs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.diagnose import TRAINING_HINT, TYPES_HINT, mixes_images
from centernet_trt.builder.graph.external_data import make_constant
from centernet_trt.builder.graph.shapes import open_session
from centernet_trt.errors import BackendError, ModelError
from centernet_trt.runtime.host.onnxruntime import Mode

__all__ = [
    "HeadError",
    "check_dynamic_batch",
    "compare_models",
    "own_spread",
    "random_feeds",
    "run_model",
]

# Operators whose inputs but the first are weights.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "BatchNormalization"})
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class HeadError:
    """How far one output is from the reference.

    Attributes:
        max_abs: largest absolute difference; inf if one is not finite and the other differs from it.
        max_rel: `max_abs` divided by the largest finite magnitude of the reference.
        magnitude: that largest magnitude.
        shape: of both.
    """

    max_abs: float
    max_rel: float
    magnitude: float
    shape: tuple[int, ...]


def random_feeds(
    model: ModelProto,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    seed: int = 0,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> dict[str, NDArray[Any]]:
    """Return a uniform random array for each input of the model, of numbers that fp16 represents exactly.

    Args:
        model: any; the arrays have its inputs' dtypes.
        shapes: the shape of each input that has a dynamic dimension.
        seed: the same seed gives the same numbers, whether the input is fp32 or fp16.
        value_range: lowest and highest value, such as (0, 255) for a network that takes grey levels.

    Returns:
        Input name -> array.

    Raises:
        ModelError: no shape is given for an input with a dynamic dimension.
    """
    feeds: dict[str, NDArray[Any]] = {}
    for value in _inputs(model):
        shape = (shapes or {}).get(value.name)
        if shape is None:
            dims = value.type.tensor_type.shape.dim
            if any(not dim.HasField("dim_value") for dim in dims):
                named = [dim.dim_param or dim.dim_value or "?" for dim in dims]
                raise ModelError(
                    f"expected a shape for input {value.name!r}, which has the dynamic shape {named}",
                    "give a shape to run it at",
                )
            shape = [dim.dim_value for dim in dims]
        numbers = np.random.default_rng(seed).uniform(*value_range, size=tuple(shape))
        # Rounded to fp16 first, so that an fp32 and an fp16 model get the same input.
        feeds[value.name] = numbers.astype(np.float16).astype(
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
    return feeds


def run_model(
    model: ModelProto, feeds: Feeds, *, mode: Mode = "faithful", threads: int = 2
) -> dict[str, NDArray[Any]]:
    """Run a model once in ONNX Runtime on the CPU.

    Args:
        model: of any size.
        feeds: input name -> array; cast to the input's dtype if it has another.
        mode: see `Mode`.
        threads: the most threads that an operator may use.

    Returns:
        Output name -> array.

    Raises:
        ModelError: `feeds` lacks an input, or has one that the model does not have.
        BackendError: ONNX Runtime refuses the model or the input.
    """
    return _runner(model, mode, threads)(feeds)


def _runner(model: ModelProto, mode: Mode, threads: int) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """`run_model` for several runs of a model that is loaded once."""
    session = open_session(model, mode, threads)
    return lambda feeds: _run(session, model, feeds)


def _run(session: Any, model: ModelProto, feeds: Feeds) -> dict[str, NDArray[Any]]:
    types = {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in _inputs(model)
    }
    unknown, missing = sorted(set(feeds) - set(types)), sorted(set(types) - set(feeds))
    if unknown or missing:
        raise ModelError(
            f"expected the inputs {sorted(types)}; unknown: {unknown}, not given: {missing}",
            "give one array for each input",
        )
    names = [value.name for value in model.graph.output]
    try:
        values = session.run(
            names, {name: array.astype(types[name], copy=False) for name, array in feeds.items()}
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot run the model: {error}") from error
    return dict(zip(names, map(np.asarray, values), strict=True))


def compare_models(
    reference: ModelProto,
    candidate: ModelProto,
    feeds: Feeds | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    value_range: tuple[float, float] = (0.0, 1.0),
    mode: Mode = "faithful",
    threads: int = 2,
) -> dict[str, HeadError]:
    """Run two models on the same input and measure how far apart their outputs are.

    Args:
        reference: has every output of the candidate.
        candidate: its inputs have the reference's names, and may have another float type.
        feeds: input name -> array; None is `random_feeds(reference, shapes, ...)`.
        shapes: see `random_feeds`.
        seed: see `random_feeds`.
        value_range: see `random_feeds`.
        mode: of both runs; the rounding of fp16 shows in `faithful` only.
        threads: see `run_model`.

    Returns:
        Output name -> distance of the candidate from the reference.

    Raises:
        ModelError: the reference lacks an output, or the outputs have different shapes.
        BackendError: ONNX Runtime refuses one of them.
    """
    if feeds is None:
        feeds = random_feeds(reference, shapes, seed=seed, value_range=value_range)
    known = [value.name for value in reference.graph.output]
    extra = [value.name for value in candidate.graph.output if value.name not in known]
    if extra:
        raise ModelError(
            f"{extra} are not outputs of the reference, which has {known}",
            "cut the reference to the same heads first",
        )
    expected = run_model(reference, feeds, mode=mode, threads=threads)
    found = run_model(candidate, feeds, mode=mode, threads=threads)
    return {name: head_error(name, expected[name], array) for name, array in found.items()}


def head_error(name: str, expected: NDArray[Any], found: NDArray[Any]) -> HeadError:
    """Measure the distance of one output from its reference.

    Raises:
        ModelError: the shapes differ.
    """
    if expected.shape != found.shape:
        raise ModelError(
            f"output {name!r}: expected shape {expected.shape} as in the reference, got {found.shape}",
            "a pass or the source graph has a shape baked in",
        )
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    magnitude = float(np.abs(a, where=finite, out=np.zeros_like(a)).max(initial=0.0))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.where(finite & np.isfinite(b), np.abs(a - b), np.inf))
    max_abs = float(difference.max(initial=0.0))
    max_rel = max_abs / magnitude if magnitude else (np.inf if max_abs else 0.0)
    return HeadError(max_abs, float(max_rel), magnitude, expected.shape)


def own_spread(
    model: ModelProto,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    step: float = 2.0**-23,
    seed: int = 0,
    value_range: tuple[float, float] = (0.0, 1.0),
    threads: int = 2,
) -> dict[str, float]:
    """Measure how much the outputs of a model vary by themselves, numerically.

    Args:
        model: any.
        shapes: see `random_feeds`.
        step: relative change of the input and the weights, that of an fp32 rounding by default.
        seed: see `random_feeds`.
        value_range: see `random_feeds`.
        threads: see `run_model`.

    Returns:
        Output name -> the largest difference, relative to its largest magnitude, between the model as it is, the model
        optimised by ONNX Runtime, and the model with its input and weights changed by `step`.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    feeds = random_feeds(model, shapes, seed=seed, value_range=value_range)
    plain = run_model(model, feeds, mode="faithful", threads=threads)
    random = np.random.default_rng(seed)
    nudged = {name: _nudged(array, step, random) for name, array in feeds.items()}
    others = (
        run_model(model, feeds, mode="fast", threads=threads),
        run_model(_nudged_weights(model, step, random), nudged, mode="faithful", threads=threads),
    )
    return {
        name: max(head_error(name, array, other[name]).max_rel for other in others)
        for name, array in plain.items()
    }


def _nudged(array: NDArray[Any], step: float, random: np.random.Generator) -> NDArray[Any]:
    return np.asarray(array * (1 + step * random.choice([-1.0, 1.0], array.shape))).astype(array.dtype)


def _nudged_weights(model: ModelProto, step: float, random: np.random.Generator) -> ModelProto:
    model = g.copy_model(model)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    weights = {
        name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input[1:] if name
    }
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type in floats:
            tensor.CopyFrom(make_constant(tensor.name, _nudged(g.as_array(tensor), step, random)))
    return model


def check_dynamic_batch(
    model: ModelProto,
    input_name: str,
    shape: Sequence[int],
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    value_range: tuple[float, float] = (0.0, 1.0),
    threads: int = 2,
) -> None:
    """Check that a batch of two gives what its two images give one by one.

    Args:
        model: has one input, whose batch is declared dynamic.
        input_name: the name of that input.
        shape: (C, H, W) to run at.
        tolerance: largest accepted difference, relative to the output's largest magnitude.
        seed: of the random images.
        value_range: of the random images.
        threads: see `run_model`.

    Raises:
        ModelError: the graph does not run, has a batch size baked in, or lets images of a batch influence each other;
            the message names the likely nodes.
    """
    pair = random_feeds(model, {input_name: (2, *shape)}, seed=seed, value_range=value_range)[input_name]
    try:
        run = _runner(model, "fast", threads)
        alone = [run({input_name: pair[i : i + 1]}) for i in range(2)]
    except BackendError as error:
        raise ModelError(
            f"the graph does not run on one image of {shape[1]}x{shape[2]} pixels: {error.message}",
            _run_hint(error.message),
        ) from error
    try:
        batch = run({input_name: pair})
    except BackendError as error:
        raise _baked(model, f"it runs at batch size 1 but not at 2: {error.message}") from error
    for name, both in batch.items():
        single = [images[name] for images in alone]
        if any(not one.ndim or one.shape != (1, *both.shape[1:]) for one in single) or both.shape[0] != 2:
            shapes = f"{both.shape} for two images, {single[0].shape} for one"
            raise _baked(model, f"output {name!r} has shape {shapes}")
        error_found = head_error(name, np.concatenate(single), both)
        if not error_found.max_rel <= tolerance:
            what = (
                f"output {name!r} of a batch of two differs by {error_found.max_rel:.2g} (relative) from that of single "
                f"images; expected at most {tolerance:.2g}"
            )
            if mixing := mixes_images(model):
                raise ModelError(
                    f"{what}: {', '.join(mixing[:5])} reduce over the batch, as batch norms in training mode do",
                    f"{TRAINING_HINT}; a network that does so by design cannot have a dynamic batch: build with --batch 1",
                )
            raise _baked(model, what)


def _run_hint(text: str) -> str:
    """What to do about a graph that ONNX Runtime does not run, by its message."""
    if "Type Error" in text or "Type parameter" in text:
        return TYPES_HINT
    if "hannels" in text:
        return (
            "the weights of that node are for another number of channels: export the model again, with an image of 3 "
            "channels as its input"
        )
    return "a shape in the graph contradicts its weights or the input size; export it with dynamic axes"


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    constants = g.initializers(model.graph)
    return [value for value in model.graph.input if value.name not in constants]


def _baked(model: ModelProto, what: str) -> ModelError:
    """The error for a batch that is not dynamic, with the nodes that are the likely cause."""
    named = re.search(r"Name:'([^']+)'", what)
    suspects = [named.group(1)] if named else []
    suspects += [name for name in _suspects(model) if name not in suspects]
    nodes = f"; likely because of {', '.join(suspects[:5])}" if suspects else ""
    return ModelError(
        f"the batch of this graph is not dynamic: {what}{nodes}",
        "export the model with a dynamic batch axis (dynamic_axes or dynamic_shapes)",
    )


def _suspects(model: ModelProto) -> list[str]:
    """Names of the nodes that set a whole shape by a constant whose first dimension is a number above 0."""
    constants = g.initializers(model.graph)
    made = g.producers(model.graph)

    def value(name: str) -> NDArray[Any] | None:
        if name in constants:
            return g.as_array(constants[name])
        source: NodeProto | None = made.get(name)
        held = g.attribute(source, "value") if source is not None and source.op_type == "Constant" else None
        return None if held is None else g.as_array(held)

    found = []
    for node in model.graph.node:
        position = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op_type)
        if position is not None and len(node.input) > position and node.input[position]:
            shape = value(node.input[position])
            if shape is not None and shape.size > 1 and int(shape.flat[0]) > (node.op_type == "Expand"):
                found.append(node.name or f"{node.op_type}/{node.output[0]}")
    return found
