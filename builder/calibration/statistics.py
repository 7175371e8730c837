"""Run a graph over calibration images: ranges, then histograms."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from centernet_trt.builder.calibration.histogram import Histogram
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import element_types, open_session
from centernet_trt.errors import BackendError, CalibrationError, ModelError
from centernet_trt.progress import Progress
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.spec import InputSpec

__all__ = [
    "Batch",
    "ChannelStatistics",
    "Simulation",
    "batches",
    "collect_histograms",
    "collect_statistics",
    "with_outputs",
]

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Images that go through the network together: names, input tensor (N, 3, H, W), and placement of each."""

    names: tuple[str, ...]
    tensor: Values
    placements: tuple[Placement, ...]


def batches(images: Sequence[CalibrationImage], spec: InputSpec, size: int = 1) -> Iterator[Batch]:
    """Pre-process images as for inference, `size` at a time, or fewer where the network size changes."""
    waiting: list[tuple[str, BgrImage, Placement]] = []
    for image in images:
        pixels = image.read()
        placement = place(spec, pixels.shape[1], pixels.shape[0])
        shape = (placement.height, placement.width)
        if waiting and (len(waiting) == size or shape != (waiting[0][2].height, waiting[0][2].width)):
            yield _batch(waiting, spec)
            waiting = []
        waiting.append((image.name, pixels, placement))
    if waiting:
        yield _batch(waiting, spec)


def _batch(rows: Sequence[tuple[str, BgrImage, Placement]], spec: InputSpec) -> Batch:
    names, pixels, placements = zip(*rows, strict=True)
    tensor = preprocess(pixels, placements, spec).astype(np.float32, copy=False)
    return Batch(names, tensor, placements)


def with_outputs(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Return the model with these tensors as its outputs, without the nodes that they do not need.

    Args:
        model: every tensor's type known (`graph.shapes.refresh_shapes`).
        tensors: computed by nodes of the graph.

    Raises:
        ModelError: a tensor that no node computes.
    """
    made, types = g.producers(model.graph), element_types(model)
    for name in tensors:
        if name not in made:
            near = ", ".join(g.near_names(name, made.keys()))
            raise ModelError(f"no node of the graph computes {name!r}", f"near names: {near}" if near else "")
    model = g.copy_model(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in tensors)
    g.prune(model.graph)
    return model


class Simulation:
    """A graph in ONNX Runtime on the CPU: fp32 nodes in fp32, and Q/DQ as ONNX defines them.

    ONNX Runtime's optimisations stay on, except those for Q/DQ: they would replace a convolution between Q/DQ by an
    integer kernel with different rounding. A product of two int8 values is exact in fp32, so the result differs from
    int8 arithmetic only by the fp32 rounding of the accumulation.

    Graphs with fp16 tensors need mode `faithful` instead (`runtime.host.onnxruntime`).
    """

    def __init__(self, model: ModelProto, threads: int = 1, *, in_order: bool = False) -> None:
        """Load the graph.

        Args:
            model: one input, (N, 3, H, W) float32.
            threads: of one run. One by default: on a shared machine a second one mostly waits.
            in_order: run the nodes in graph order, so that a tensor is freed after its last reader in that order.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
        """
        self._session = open_session(model, "qdq", threads, in_order=in_order)
        self._input = model.graph.input[0].name
        self.outputs = tuple(value.name for value in model.graph.output)

    def run(self, tensor: Values) -> Mapping[str, Values]:
        """Return each output for one input tensor.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        try:
            found = self._session.run(list(self.outputs), {self._input: tensor})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, map(np.asarray, found), strict=True))


Channels = npt.NDArray[np.float64]
# Means are summed as integer multiples of 2^-60, since a sum of integers does not depend on the order of the images.
_MEAN_UNIT = 2.0**60


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of the channels of a tensor (N, C, ...): largest |x| and mean, both (C,) float64."""

    amax: Channels
    mean: Channels


def collect_statistics(
    model: ModelProto,
    spec: InputSpec,
    images: Sequence[CalibrationImage],
    tensors: Sequence[str],
    *,
    batch: int = 1,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, ChannelStatistics]:
    """Run the first pass: largest |x| and mean of every channel of tensors (N, C, ...), over all images.

    Args:
        model: fp32, shapes inferred; one input.
        spec: pre-processing.
        images: each goes through the network once.
        tensors: names of activations of the graph; its input may be one.
        batch: images at a time; the result depends neither on it nor on the order of the images.
        threads: of ONNX Runtime.
        progress: called with (what, images done, total).

    Returns:
        By tensor, in the order of `tensors`. Every image has the same weight in a mean, whatever its size.

    Raises:
        CalibrationError: a tensor is NaN or infinite on an image; both are named.
        ModelError: a tensor that the graph does not compute.
        BackendError: ONNX Runtime fails.
    """
    ranges: dict[str, Channels] = {}
    sums: dict[str, list[int]] = {}
    count = 0
    for group, found in _values("ranges", model, spec, images, tensors, batch, threads, progress):
        for name in tensors:
            values = found[name]
            _refuse_not_finite(name, values, group.names)
            others = (0, *range(2, values.ndim))
            # Two passes without a copy are cheaper than an array of absolute values.
            seen = np.maximum(values.max(axis=others), -values.min(axis=others)).astype(np.float64)
            ranges[name] = np.maximum(ranges[name], seen) if name in ranges else seen
            for row in values:
                means = row.reshape(len(row), -1).mean(axis=1, dtype=np.float64) * _MEAN_UNIT
                sums[name] = [a + int(b) for a, b in zip(sums.get(name, [0] * len(row)), means, strict=True)]
        count += len(group.names)
    return {
        name: ChannelStatistics(amax, np.array([total / count / _MEAN_UNIT for total in sums[name]]))
        for name, amax in ranges.items()
    }


def collect_histograms(
    model: ModelProto,
    spec: InputSpec,
    images: Sequence[CalibrationImage],
    ranges: Mapping[str, float],
    *,
    batch: int = 1,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Run the second pass: a histogram of |x|, from 0 to the range, of each tensor.

    Args:
        model: as for `collect_statistics`, and so are the other arguments.
        spec: pre-processing.
        images: those of the first pass.
        ranges: largest |x| of each tensor over these images.
        batch: images at a time.
        threads: of ONNX Runtime.
        progress: called with (what, images done, total).
    """
    histograms = {name: Histogram(amax) for name, amax in ranges.items()}
    for _, found in _values("histograms", model, spec, images, list(ranges), batch, threads, progress):
        for name, histogram in histograms.items():
            histogram.add(found[name])
    return histograms


def _values(
    what: str,
    model: ModelProto,
    spec: InputSpec,
    images: Sequence[CalibrationImage],
    tensors: Sequence[str],
    batch: int,
    threads: int,
    progress: Progress | None,
) -> Iterator[tuple[Batch, Mapping[str, Values]]]:
    """Yield each batch of images with the values of the tensors."""
    given = model.graph.input[0].name
    computed = [name for name in tensors if name != given]
    simulation = Simulation(with_outputs(model, computed), threads) if computed else None
    done = 0
    for group in batches(images, spec, batch):
        if progress is not None:
            progress(what, done, len(images))
        found = dict(simulation.run(group.tensor)) if simulation is not None else {}
        yield group, found | {given: group.tensor}
        done += len(group.names)
    if progress is not None:
        progress(what, done, len(images))


def _refuse_not_finite(tensor: str, values: Values, names: Sequence[str]) -> None:
    """Raise CalibrationError if a value is NaN or infinite; the message names the first such image."""
    # One sum is far cheaper than isfinite of each; it is finite unless a value is not, or the sum overflows.
    if not values.size or np.isfinite(np.sum(values, dtype=np.float64)):
        return
    for name, row in zip(names, values, strict=True):
        bad = ~np.isfinite(row)
        if bad.any():
            kind = "NaN" if np.isnan(row).any() else "infinite"
            raise CalibrationError(
                f"tensor {tensor!r} is {kind} in {int(bad.sum())} of {row.size} values on {name}",
                "check the output of the fp32 model on this image, or remove the image",
            )
