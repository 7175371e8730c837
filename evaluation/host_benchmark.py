"""Benchmark of the host decode and of the import time, side by side with the official decode in PyTorch.

    python -m centernet_trt.evaluation.host_benchmark --bundle DIR --image FILE --json evaluation/results/host.json

Every timed answer is held to the baseline's in the same run. PyTorch (CPU) is needed for the baseline only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.evaluation.environment import environment
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.executor import allocate_heads
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.images import read_image
from centernet_trt.runtime.peaks import find_peaks, score_of
from centernet_trt.runtime.preprocess import preprocess

Array = npt.NDArray[np.float32]
K = 100


def official_decode(torch: Any, heat: Any) -> tuple[Array, npt.NDArray[np.int64]]:
    """Scores and flat indices of the best K, by the steps of the official code: sigmoid, 3x3 max-pool, two top-Ks."""
    heat = heat.sigmoid()
    pooled = torch.nn.functional.max_pool2d(heat, 3, stride=1, padding=1)
    heat = heat * (pooled == heat).float()
    classes, cells = heat.shape[1], heat.shape[2] * heat.shape[3]
    scores, index = torch.topk(heat.view(1, classes, -1), min(K, cells))
    best, place_of = torch.topk(scores.view(1, -1), K)
    label = torch.div(place_of, scores.shape[2], rounding_mode="floor")
    flat = label * cells + index.view(1, -1).gather(1, place_of)
    return best[0].numpy(), flat[0].numpy()


def timed(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the functions in turn, so that a slow moment of the machine meets all of them."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def maps(bundle: Path | None, image: Path | None) -> dict[str, Array]:
    """The heatmaps to decode, (C, H, W) logits: random, constant, and a real model's on a real picture."""
    random = np.random.default_rng(1)
    found = {
        "random": random.normal(-4, 2, (80, 128, 128)).astype(np.float32),
        "constant": np.full((80, 128, 128), -2.0, dtype=np.float32),
    }
    if bundle is not None and image is not None:
        found["real"] = real_map(bundle, image)
    return found


def real_map(bundle: Path, image: Path) -> Array:
    """The heatmap that a bundle's network computes for a picture, as float32."""
    from centernet_trt.runtime.onnxruntime_executor import OnnxRuntimeExecutor

    with Detector.load(bundle) as detector:
        manifest = detector.bundle.manifest
        picture = read_image(image)
        placement = place(manifest.spec.input, picture.shape[1], picture.shape[0])
        tensor = preprocess([picture], [placement], manifest.spec.input, np.dtype(manifest.input.dtype))
        heads = allocate_heads(manifest, 1, *tensor.shape[2:])
        OnnxRuntimeExecutor(detector.bundle.model_path, manifest).run({manifest.input.name: tensor}, heads)
    return np.asarray(heads[manifest.spec.heads.heatmap.tensor][0], dtype=np.float32)


def compare(name: str, heat: Array, rounds: int) -> dict[str, Any]:
    """One row: medians in milliseconds, ratio, and whether both found the same scores (and cells, where no tie is)."""
    import torch

    torch.set_num_threads(environment().cores)
    tensor = torch.from_numpy(heat[None])
    theirs_score, theirs_index = official_decode(torch, tensor)
    ours = find_peaks(heat, K)
    np.testing.assert_allclose(score_of(ours.value, "logits"), theirs_score, rtol=0, atol=1e-6)
    if len(np.unique(theirs_score)) == K:
        np.testing.assert_array_equal(ours.index, theirs_index)
    seconds = timed(
        {"ours": lambda: find_peaks(heat, K), "official": lambda: official_decode(torch, tensor)}, rounds
    )
    medians = {key: statistics.median(values) * 1e3 for key, values in seconds.items()}
    return {
        "map": name,
        "shape": list(heat.shape),
        "k": K,
        "ours_ms": round(medians["ours"], 4),
        "official_torch_ms": round(medians["official"], 4),
        "ratio": round(medians["official"] / medians["ours"], 2),
        "rounds": rounds,
    }


def import_seconds(module: str, rounds: int = 7) -> float:
    """Median wall time of a new interpreter that imports a module, less that of one that imports nothing."""

    def once(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(once(f"import {module}") - once("pass") for _ in range(rounds))


def table(result: dict[str, Any]) -> str:
    """The decode rows as a Markdown table, as the README has it."""
    lines = ["| map | host decode | official, PyTorch | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {row['map']} | {row['ours_ms']:.1f} ms | {row['official_torch_ms']:.1f} ms | {row['ratio']:.1f} |"
        for row in result["decode"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print, and on request write, its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="a COCO bundle, for the real map")
    parser.add_argument("--image", type=Path, help="a picture, for the real map")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [compare(name, heat, options.rounds) for name, heat in maps(options.bundle, options.image).items()]
    result = {
        "decode": rows,
        "import_seconds": {
            name: round(import_seconds(name), 3)
            for name in ("numpy", "centernet_trt", "centernet_trt.runtime")
        },
        "environment": environment().to_json(),
    }
    print(table(result))
    print("seconds to import:", result["import_seconds"])
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
