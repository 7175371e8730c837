"""How fast the search for entropy thresholds is, and how much memory calibration takes, on a real model.

    python -m centernet_trt.builder.calibration.benchmark MODEL.onnx --spec PRESET --calibration DIR --json FILE

The search over all tensors (2048 bins, 128 levels), beside a plain NumPy loop over the candidates, whose thresholds
must be the same, and beside `get_entropy_threshold` of ONNX Runtime's quantiser on the same counts. Then calibration
of few and of many images, each in a process of its own: the largest resident memory of each.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from rich.progress import Progress

from centernet_trt.builder.calibration.collect import collect_histograms, collect_statistics
from centernet_trt.builder.calibration.histogram import BINS, Histogram
from centernet_trt.builder.calibration.images import images_of
from centernet_trt.builder.calibration.thresholds import LEVELS, entropy_threshold
from centernet_trt.builder.inference import refresh_shapes
from centernet_trt.builder.loading import load_model
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants, remove_identities
from centernet_trt.builder.passes.heads import keep_heads
from centernet_trt.builder.passes.shapes import make_dynamic, set_input_size
from centernet_trt.evaluation.build_table import timed_process
from centernet_trt.evaluation.environment import environment
from centernet_trt.runtime.presets import read_spec
from centernet_trt.runtime.spec import FixedSize, ModelSpec

Thresholds = list[float]


def loop_threshold(histogram: Histogram) -> float:
    """As `entropy_threshold`, one candidate after the other, each with NumPy over its bins."""
    found = [_divergence(histogram.counts, kept) for kept in range(LEVELS, BINS + 1)]
    kept = BINS - int(np.argmin(found[::-1]))
    if kept == BINS or not np.isfinite(found[kept - LEVELS]):
        return histogram.amax
    return float((kept + 0.5) * histogram.width)


def _divergence(counts: npt.NDArray[np.int64], kept: int) -> float:
    counts = counts.copy()
    counts[0] = counts[1]
    count = counts[:kept].astype(np.float64)
    level = np.arange(kept) * LEVELS // kept
    filled = np.bincount(level, count > 0, LEVELS)
    mass = np.bincount(level, count, LEVELS)
    q = np.where(count > 0, (mass / np.maximum(filled, 1))[level], 0.0)
    p = count.copy()
    p[-1] += counts[kept:].sum()
    if not q.sum() or np.any((p > 0) & (q == 0)):
        return float("inf")
    inside = p > 0
    p, q = p[inside] / p.sum(), q[inside] / q.sum()
    return float(np.sum(p * np.log(p / q)))


def onnxruntime_threshold(histogram: Histogram) -> float:
    """The threshold by ONNX Runtime's quantiser, from counts of both signs, half the magnitudes' bins on each side."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("entropy", True, BINS, LEVELS, 99.99, "same")
    side = histogram.counts.reshape(BINS // 2, 2).sum(axis=1)
    both = np.concatenate([np.zeros(BINS // 2, dtype=np.int64), side])
    edges = np.linspace(-histogram.amax, histogram.amax, BINS + 1)
    found = collector.get_entropy_threshold(
        (both, edges, -histogram.amax, histogram.amax, histogram.amax), LEVELS
    )
    return float(found[1])


def histograms_of(model: ModelProto, spec: ModelSpec, calibration: Path, images: int) -> dict[str, Histogram]:
    """Both passes over the first images of a folder or a COCO file: what a build collects."""
    tensors = list(
        dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm"))
    )
    pictures = images_of(calibration).images[:images]
    ranges = collect_statistics(model, spec.input, pictures, tensors)
    amax = {name: float(one.amax.max(initial=0.0)) for name, one in ranges.items()}
    return collect_histograms(model, spec.input, pictures, amax)


def fp32_graph(path: Path, spec: ModelSpec) -> ModelProto:
    """The graph that a build calibrates, but for equalisation."""
    name, size = spec.input.name, spec.input.size
    model = load_model(path)
    name = name or model.graph.input[0].name
    if isinstance(size, FixedSize):
        model = set_input_size(model, name, size.height, size.width)
    model = make_dynamic(keep_heads(model, spec.heads.tensors), name, size=not isinstance(size, FixedSize))
    model = remove_identities(fold_batch_norm(fold_constants(constants_to_initializers(model))))
    refresh_shapes(model)
    return model


def time_searches(histograms: Mapping[str, Histogram], progress: Progress) -> dict[str, Any]:
    """Processor seconds of the three searches over all tensors, and their ratios to ours (median of five)."""
    ours, best = _timed("ours", entropy_threshold, histograms, progress)
    five = sorted([ours, *(_timed("ours", entropy_threshold, histograms, progress)[0] for _ in range(4))])
    loop, same = _timed("NumPy loop", loop_threshold, histograms, progress)
    theirs, _ = _timed("ONNX Runtime", onnxruntime_threshold, histograms, progress)
    np.testing.assert_allclose(same, best, rtol=1e-9, err_msg="the loop finds other thresholds")
    return {
        "tensors": len(histograms),
        "ours_seconds": round(five[2], 4),
        "numpy_loop_seconds": round(loop, 3),
        "onnxruntime_seconds": round(theirs, 3),
        "numpy_loop_ratio": round(loop / five[2], 1),
        "onnxruntime_ratio": round(theirs / five[2], 1),
        "thresholds_equal_to_the_loop": True,
    }


def _timed(
    what: str, search: Callable[[Histogram], float], histograms: Mapping[str, Histogram], progress: Progress
) -> tuple[float, Thresholds]:
    task = progress.add_task(what, total=len(histograms))
    start, found = time.process_time(), []
    for histogram in histograms.values():
        found.append(search(histogram))
        progress.advance(task)
    return time.process_time() - start, found


def peak_memory(arguments: list[str], images: int) -> float:
    """GiB that a process needs for the calibration of so many images."""
    took = timed_process([sys.executable, "-m", __spec__.name, *arguments, "--only", str(images)])
    if took.code:
        raise RuntimeError(took.log)
    return took.peak_gib


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs=2, default=(8, 128), metavar=("FEW", "MANY"))
    parser.add_argument("--only", type=int, help="calibrate on so many images and end")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    spec = read_spec(options.spec)
    given = [str(options.model), "--spec", options.spec, "--calibration", str(options.calibration)]
    few, many = options.images
    found = histograms_of(fp32_graph(options.model, spec), spec, options.calibration, options.only or few)
    if options.only:
        return
    with Progress() as progress:
        searches = time_searches({name: one for name, one in found.items() if one.amax > 0}, progress)
    memory = {images: peak_memory(given, images) for images in (few, many)}
    data = {
        "command": "python -m " + " ".join([__spec__.name, options.model.name, *given[1:3]]),
        "entropy_search": searches,
        "memory": {
            "images": [few, many],
            "peak_gib": [round(memory[few], 3), round(memory[many], 3)],
            "ratio": round(memory[many] / memory[few], 3),
        },
        "environment": environment().to_json(),
    }
    print(json.dumps({key: data[key] for key in ("entropy_search", "memory")}, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
