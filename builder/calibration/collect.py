"""The two passes over the calibration images: ranges, then histograms between them. Memory is that of one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto

from centernet_trt.builder.calibration.activations import Batch, Simulation, Values, batches, with_outputs
from centernet_trt.builder.calibration.histogram import Histogram, Range
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.errors import CalibrationError
from centernet_trt.runtime.spec import InputSpec

__all__ = ["collect_histograms"]

Progress = Callable[[str, int, int], None]


def collect_histograms(
    model: ModelProto,
    spec: InputSpec,
    images: Sequence[CalibrationImage],
    tensors: Sequence[str],
    *,
    batch: int = 1,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Histograms of |x| of tensors over all images; they do not depend on the batch size or the order of the images.

    Args:
        model: fp32, shapes inferred; one input.
        spec: the pre-processing, that of inference.
        images: go through the network twice.
        tensors: names of activations of the graph; its input may be one.
        batch: images at a time.
        threads: of ONNX Runtime.
        progress: called with (what, images done, images in all).

    Returns:
        By tensor, in the order asked for; `amax` 0 for one that is zero on every image.

    Raises:
        CalibrationError: a tensor is NaN or infinite on an image; both are named.
        ModelError: a tensor that the graph does not compute.
        BackendError: ONNX Runtime fails.
    """
    given = model.graph.input[0].name
    computed = [name for name in tensors if name != given]
    simulation = Simulation(with_outputs(model, computed), threads) if computed else None

    def values(what: str) -> Iterator[tuple[Batch, Mapping[str, Values]]]:
        done = 0
        for group in batches(images, spec, batch):
            if progress is not None:
                progress(what, done, len(images))
            found = dict(simulation.run(group.tensor)) if simulation is not None else {}
            yield group, found | {given: group.tensor}
            done += len(group.names)
        if progress is not None:
            progress(what, done, len(images))

    ranges = {name: Range() for name in tensors}
    for group, found in values("ranges"):
        for name, seen in ranges.items():
            _refuse_not_finite(name, found[name], group.names)
            seen.add(found[name])
    histograms = {name: Histogram(seen.amax) for name, seen in ranges.items()}
    for _, found in values("histograms"):
        for name, histogram in histograms.items():
            histogram.add(found[name])
    return histograms


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
