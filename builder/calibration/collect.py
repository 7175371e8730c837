"""The two passes over the calibration images: ranges, then histograms between them. Memory is that of one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from centernet_trt.builder.calibration.activations import Batch, Simulation, Values, batches, with_outputs
from centernet_trt.builder.calibration.histogram import Histogram
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.errors import CalibrationError
from centernet_trt.runtime.spec import InputSpec

__all__ = ["ChannelStatistics", "collect_histograms", "collect_statistics"]

Progress = Callable[[str, int, int], None]
Channels = npt.NDArray[np.float64]
# Means are summed as whole numbers of 2^-60, for a sum of whole numbers does not depend on the order of the images.
_MEAN_UNIT = 2.0**60


@dataclass(frozen=True)
class ChannelStatistics:
    """What the first pass finds out about a tensor (N, C, ...): largest |x| and mean of each channel, both (C,)."""

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
    """The first pass: the largest |x| and the mean of every channel of tensors (N, C, ...), over all images.

    Args:
        model: fp32, shapes inferred; one input.
        spec: the pre-processing, that of inference.
        images: go through the network once.
        tensors: names of activations of the graph; its input may be one.
        batch: images at a time; the result does not depend on it, or on their order.
        threads: of ONNX Runtime.
        progress: called with (what, images done, images in all).

    Returns:
        By tensor, in the order asked for. Every image counts the same in a mean, whatever its size.

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
            # Two passes without a copy are cheaper than the absolute values of everything.
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
    """The second pass: histograms of |x| from 0 to the range of each tensor; the other arguments as `collect_statistics`.

    Args:
        ranges: largest |x| of each tensor over these images.
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
    """The tensors of every batch of images."""
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
    """CalibrationError when a value is NaN or infinite; the first image that has one is named."""
    # One sum is far cheaper than isfinite of each; it is finite unless a value is not, or the sum overflows.
    if not values.size or np.isfinite(np.sum(values, dtype=np.float64)):
        return
    for name, row in zip(names, values, strict=True):
        bad = ~np.isfinite(row)
        if bad.any():
            kind = "NaN" if np.isnan(row).any() else "infinite"
            raise CalibrationError(
                f"tensor {tensor!r} is {kind} at {int(bad.sum())} of {row.size} places on the image {name}",
                "int8 has no number for that; see whether the fp32 model is sound on this image, or leave it out",
            )
