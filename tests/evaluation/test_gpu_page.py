"""The GPU's part of the page, from made-up results: every kind, the order, and what is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from centernet_trt.errors import InputError
from centernet_trt.evaluation.gpu.page import gpu_section
from centernet_trt.evaluation.gpu.rtx_tables import speed_table, tables
from centernet_trt.evaluation.performance_page import page

DEVICE = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": [9, 0], "driver_cuda": [13, 0]}
HEAD = {
    "schema": 1,
    "device": DEVICE,
    "command": "python -m x",
    "environment": {"packages": {"torch": "2", "x": None}},
}


def tried(precision: str, target: str = "portable", **over: Any) -> dict[str, Any]:
    """A try that ran."""
    seconds = {"fp32": 4e-4, "fp16": 2e-4, "int8": 1e-4}[precision]
    return {
        "bundle": f"m-{precision}",
        "plan": "p.plan",
        "target": target,
        "precision": precision,
        "source": "abc",
        "batch": 1,
        "outcome": "done",
        "reached": "done",
        "compare": {"hm": {"max_abs": 0.5, "magnitude": 100.0}, "wh": {"max_abs": 0.1, "magnitude": 10.0}},
        "inspect": {"convolutions": 20, "int8_convolutions": 17, "detailed": True},
        "seconds": {"read": 9.0, "deserialise": 0.5, "context": 1.0, "run": 0.25},
        "time": {"p50": seconds},
        "graph": {"p50": seconds / 2},
        **over,
    }


REFUSED = {
    "reached": "deserialise",
    "outcome": "exit code 1",
    "problem": {"message": "TensorRT refuses the plan p.plan"},
    "log": [f"[ERROR] line {number}" for number in range(20)],
}


def rtx(**over: Any) -> dict[str, Any]:
    rows = [tried("fp16"), tried("int8"), {**tried("fp32", "sm_80"), **REFUSED}]
    for key in ("compare", "inspect", "seconds", "time", "graph"):
        del rows[2][key]
    return {**HEAD, "kind": "gpu-rtx", "builds": [], "tries": rows, "mixed": {}, "notes": ["a note"], **over}


def test_tensorrt_s_own_words_where_it_refused() -> None:
    text = tables(rtx())
    assert "| m-int8 | int8 | portable | 1 | runs | 1.75 | 1.0e-02 | 17 of 20 |" in text
    assert "| m-fp32 | fp32 | sm_80 | 1 | exit code 1 at 'deserialise' | - | - | - |" in text
    assert "TensorRT refuses the plan p.plan\n[ERROR] line 12\n" in text
    assert "[ERROR] line 11\n" not in text
    assert "[ERROR] line 19\n" in text
    assert text.rstrip().endswith("- a note")


def test_a_crash_shows_the_end_of_what_it_wrote() -> None:
    row = {
        **tried("fp16"),
        "reached": "run",
        "outcome": "crashed: SIGSEGV",
        "output": "a\nSegmentation fault\n",
    }
    assert "crashed: SIGSEGV.\n\n```\na\nSegmentation fault\n```" in tables(rtx(tries=[row]))


def test_speed_is_that_over_fp16_of_the_same_model() -> None:
    other = {**tried("int8"), "source": "another"}
    refused = tried("fp32", graph={"refused": "no"})
    text = speed_table([tried("fp16"), tried("int8"), other, refused]).markdown()
    assert "| m-int8 | int8 | portable | 1 | 0.1000 | 0.0500 | 2.00 |" in text
    assert "| m-int8 | int8 | portable | 1 | 0.1000 | 0.0500 | - |" in text
    assert "| m-fp32 | fp32 | portable | 1 | 0.4000 | not recorded | 0.50 |" in text


def test_the_page(tmp_path: Path) -> None:
    steps = [
        {"step": "kernels", "outcome": "exit code 1", "good": False, "seconds": 3.0, "passed": 5, "failed": 1}
        | {"skipped": 2, "failures": ["test_x"], "skips": {"no torch": 2}},
        {"step": "racecheck", "outcome": "left out: it is not installed", "good": True},
    ]
    soak = {
        "name": "b",
        "calls": 100,
        "seconds": 2.0,
        "device_growth": 3 << 20,
        "host_growth": 0,
        "flat": False,
    }
    results = {
        "gpu-test-steps": {**HEAD, "kind": "gpu-test-steps", "rows": steps},
        "gpu-soak": {**HEAD, "kind": "gpu-soak", "rows": [soak]},
        "gpu-rtx": rtx(),
    }
    for name, data in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    text = page(tmp_path)
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert titles == ["### Tests on the device", "### TensorRT for RTX", "### A long run"]
    assert "NVIDIA H100 80GB HBM3, driver for CUDA 13.0; torch 2." in text
    assert "Failed:\n\n- kernels: exit code 1\n- kernels: test_x\n" in text
    assert "Skipped:\n\n- kernels: no torch (2)\n" in text
    assert "| b | 100 | 2.0 | 3.00 | 0.00 | GROWS |" in text
    assert "STAND-IN" not in text


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert list(gpu_section(tmp_path)) == []
    assert "On a GPU" not in page(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ("[]", "is no result"), ('{"kind": "x"}', "kind is 'x'")])  # fmt: skip
def test_damaged_results_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "gpu-x.json").write_text(content)
    with pytest.raises(InputError, match=message):
        list(gpu_section(tmp_path))
