"""The part of docs/performance.md about GPUs, from `gpu-*.json` in evaluation/results/."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench_report import read_report
from centernet_trt.evaluation.bench_tables import tables_of
from centernet_trt.evaluation.gpu import kernel_tables, rtx_tables, soak
from centernet_trt.evaluation.gpu.machine import device_label
from centernet_trt.evaluation.gpu.steps import failures, steps_table

_TITLES = {
    "gpu-test-steps": "Tests on the device",
    "gpu-kernels": "The kernels by themselves",
    "gpu-rtx": "TensorRT for RTX",
    "bench": "Bundles",
    "gpu-soak": "A long run",
    "gpu-bench-steps": "Steps of the measurements",
}
"""Kinds of results in the order of the page."""


def gpu_section(results: Path) -> Iterable[str]:
    """The section's paragraphs; none where nothing was measured.

    Args:
        results: folder of the JSON files.

    Raises:
        InputError: a file that is damaged, or of no known kind.
    """
    found: dict[str, list[tuple[Path, Any]]] = {kind: [] for kind in _TITLES}
    for path in sorted(results.glob("gpu-*.json")):
        data = _read(path)
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind not in found:
            raise InputError(f"{path} is no result of a GPU: its kind is {kind!r}", "measure it again")
        found[str(kind)].append((path, data))
    for kind, files in found.items():
        for path, data in files:
            yield f"### {_TITLES[kind]}\n"
            yield from _PARTS[kind](path, data)


def _bench(path: Path, _: Mapping[str, Any]) -> Iterable[str]:
    report = read_report(path)
    yield f"{report.created}.\n\n```sh\n{report.command}\n```\n"
    yield "\n".join(f"- {text}" for text in report.warnings()) + "\n"
    for table in tables_of(report):
        yield f"{table.title}:\n\n{table.markdown()}\n"


def _steps(_: Path, data: Mapping[str, Any]) -> Iterable[str]:
    device = data["device"]
    cuda = ".".join(map(str, device["driver_cuda"]))
    packages = {name: version for name, version in data["environment"]["packages"].items() if version}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield f"{device_label(device)}, driver for CUDA {cuda}; {listed}.\n"
    yield f"{steps_table(data['rows']).markdown()}\n"
    failed = failures(data["rows"])
    yield ("Failed:\n\n" + "\n".join(f"- {line}" for line in failed) if failed else "Nothing failed.") + "\n"
    skipped = {
        f"{row['step']}: {reason} ({number})": None
        for row in data["rows"]
        for reason, number in row.get("skips", {}).items()
    }
    if skipped:
        yield "Skipped:\n\n" + "\n".join(f"- {line}" for line in skipped) + "\n"


def _told_by(tables: Callable[[Any], str]) -> Callable[[Path, Any], Iterable[str]]:
    def part(_: Path, data: Any) -> Iterable[str]:
        yield f"```sh\n{data['command']}\n```\n"
        yield tables(data)

    return part


_PARTS: dict[str, Callable[[Path, Any], Iterable[str]]] = {
    "gpu-test-steps": _steps,
    "gpu-kernels": _told_by(kernel_tables.tables),
    "gpu-rtx": _told_by(rtx_tables.tables),
    "bench": _bench,
    "gpu-soak": _told_by(soak.table),
    "gpu-bench-steps": _steps,
}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result: {error}", "measure it again") from None
