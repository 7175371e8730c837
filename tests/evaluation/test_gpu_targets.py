"""The verdicts on the targets: who is judged, by which row, and what a missing row says."""

from typing import Any

import pytest

from centernet_trt.evaluation.gpu.targets import (
    MET,
    MISSED,
    NOT_JUDGED,
    judge_bundle,
    judge_kernels,
    targets_table,
)

H100 = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": [9, 0]}
FLOOR = {"copy": 3e12}


def row(
    step: str,
    shape: str,
    batch: int,
    p50: float,
    form: str = "graph",
    cache: str = "warm",
    who: str = "kernel",
) -> dict[str, Any]:
    return {
        "step": step,
        "shape": shape,
        "batch": batch,
        "form": form,
        "cache": cache,
        "who": who,
        "p50": p50,
    }


def rows(decode: float = 8e-6, many: float = 40e-6) -> list[dict[str, Any]]:
    """Everything that the targets ask for."""
    big, small, picture = "80x128x128", "1x128x128", "640x480 to 512x512"
    return [
        row("decode", big, 1, decode),
        row("decode", big, 1, 9e-6, "alone"),
        row("decode", big, 1, 9e-6, "graph", "cold"),
        row("decode", small, 1, 5e-6),
        row("decode", big, 32, many, "alone", "cold"),
        row("decode", big, 1, 200e-6, "alone", "warm", "PyTorch eager"),
        row("decode", big, 1, 50e-6, "alone", "warm", "torch.compile"),
        row("preprocess", picture, 1, 4e-6),
    ]


def verdicts(judged: list[Any]) -> list[str]:
    return [found.verdict for found in judged]


def test_all_is_met_but_the_stretch() -> None:
    judged = judge_kernels(H100, FLOOR, rows())
    assert verdicts(judged) == [MET, MISSED, MET, MET, MET, MET, MET]
    assert judged[0].found == "8.00 us"
    # 83.9 MB in 40 us are 2.1 TB/s.
    assert judged[2].found == "0.70"


@pytest.mark.parametrize(
    ("change", "which"),
    [
        ({"decode": 10.1e-6}, 0),
        ({"many": 47e-6}, 2),  # 1.79 TB/s of 3
    ],
)
def test_a_slower_kernel_misses(change: dict[str, float], which: int) -> None:
    assert verdicts(judge_kernels(H100, FLOOR, rows(**change)))[which] == MISSED


def test_one_class_must_not_be_slower() -> None:
    slow = [found | ({"p50": 9e-6} if found["shape"] == "1x128x128" else {}) for found in rows()]
    assert verdicts(judge_kernels(H100, FLOOR, slow))[5] == MISSED


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"name": "stand-in", "compute_capability": [9, 0]}, "STAND-IN DRIVER, no GPU"),
        (
            {"name": "NVIDIA A100", "compute_capability": [8, 0]},
            "the targets are an H100's, this is NVIDIA A100",
        ),
    ],
)
def test_other_devices_are_not_judged(device: dict[str, Any], reason: str) -> None:
    for found in [
        *judge_kernels(device, FLOOR, rows()),
        *judge_bundle(device, "b", {"whole": 1.0, "network": 0.5}),
    ]:
        assert found.verdict.startswith(f"{NOT_JUDGED}: {reason}"), found


def test_what_was_not_measured_is_not_judged() -> None:
    for found in [*judge_kernels(H100, FLOOR, []), *judge_bundle(H100, "b", {"input": "pinned"})]:
        assert found.verdict == f"{NOT_JUDGED}: not measured"
        assert found.found == "-"


def test_bundles() -> None:
    measured = {"whole": 250e-6, "network": 200e-6, "host_cpu": 60e-6, "throughput": {8: 0.98, 1: 0.5}}
    judged = judge_bundle(H100, "b", measured | {"input": "pinned"})
    assert verdicts(judged) == [MET, MISSED, MISSED, MET]
    assert judged[2].target.endswith("batch 1")
    # The target is for images that are pinned, or on the GPU already.
    assert judge_bundle(H100, "b", measured | {"input": "pageable"})[0].verdict.startswith(
        f"{NOT_JUDGED}: pageable"
    )
    assert verdicts(judge_bundle(H100, "b", measured | {"input": "device", "whole": 261e-6}))[0] == MISSED


def test_the_table_takes_both_forms() -> None:
    judged = judge_kernels(H100, FLOOR, rows())
    assert targets_table(judged) == targets_table([found.to_json() for found in judged])
    assert "| decode, batch 1, in a graph | <= 10.00 us | 8.00 us | met |" in targets_table(judged).markdown()
