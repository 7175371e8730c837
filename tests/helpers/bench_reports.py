"""Benchmark reports with samples from known distributions, for tests of everything but the timing itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from centernet_trt.evaluation.bench.report import BenchReport

ENVIRONMENT = {
    "python": "3.11.7",
    "system": "Linux",
    "cpu": "A made-up processor <fast>",
    "cores": 2,
    "packages": {"numpy": "2.4.0", "torch": None},
    "driver": {"cuda": None, "gpus": [], "problem": "no driver"},
}
MEDIANS = {"preprocess": 0.002, "network": 0.040, "decode": 0.003}


def made_up_entry(
    name: str, seed: int, factor: float = 1.0, drift: float = 0.0, **over: Any
) -> dict[str, Any]:
    """An entry of six windows of 16 calls: log-normal stages, `factor` times as long, each window `drift` slower."""
    rng = np.random.default_rng(seed)
    windows = []
    for window in range(6):
        stages = {
            stage: np.round(factor * (1 + drift) ** window * median * rng.lognormal(0, 0.03, 16), 9)
            for stage, median in MEDIANS.items()
        }
        stages["whole"] = np.round(sum(stages.values()), 9)  # type: ignore[arg-type]
        windows.append({stage: values.tolist() for stage, values in stages.items()})
    alone = {"network alone": {"windows": [{"whole": window["network"]} for window in windows]}}
    ends = np.cumsum(factor * 0.02 * rng.lognormal(0, 0.02, 30))
    return {
        "name": name,
        "precision": "fp16",
        "source_sha256": "a" * 64,
        "model_sha256": "b" * 64,
        "executor": "network ran in ONNX Runtime (fast mode)",
        "mode": "fast",
        "inputs": ["512x512"],
        "multiply_adds": 1_000_000,
        "parameters": 2_000,
        "pipeline": {"windows": windows},
        "alone": alone,
        "throughput": [
            {"threads": 1, "batch": batch, "requests": [[float(e) - 0.01, float(e), batch] for e in ends]}
            for batch in (1, 4)
        ],
        "cold": [{"import": 0.3, "load": 0.1, "first": 0.05, "second": 0.04, "total": 0.45}],
        "floors": {
            stage: {
                "bytes": 1000,
                "operations": 10,
                "counted": "all",
                "seconds": median / 4,
                "bound": "bytes",
            }
            for stage, median in MEDIANS.items()
        },
        **over,
    }


def made_up_report(entries: Sequence[dict[str, Any]], **over: Any) -> BenchReport:
    """A report of these entries."""
    return BenchReport.model_validate(
        {
            "schema": 2,
            "kind": "bench",
            "created": "2026-01-01T00:00:00+00:00",
            "command": "centernet-trt bench b",
            "rules": {"warmup": 0.2, "duration": 3.0, "iterations": 10, "windows": 6, "short": False},
            "images": [{"name": "a.png", "width": 96, "height": 64}],
            "rates": {"bytes_per_second": 1e10, "operations_per_second": 1e11, "source": "given"},
            "environment": ENVIRONMENT,
            "entries": list(entries),
            **over,
        }
    )
