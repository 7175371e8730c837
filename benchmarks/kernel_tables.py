"""The result of `kernels.py` as Markdown, and this project's targets for an H100."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import microseconds

from centernet_trt.evaluation.environment import STANDIN_NAME, device_label
from centernet_trt.evaluation.tables import Table, text_table

Figures = Callable[..., float | None]
"""The median in seconds of (step, shape, batch, form, cache, who)."""
COLUMNS = ("batch", "who", "form", "cache", "p50", "p99", "GB/s", "share of copy", "p50 / empty launch")
_HOPPER = [9, 0]
_MAP, _ONE_CLASS, _IMAGE = "80x128x128", "1x128x128", "640x480 to 512x512"
_HEAT_BYTES = 2 * 32 * 80 * 128 * 128


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


TARGETS: dict[str, tuple[str, float, Callable[[Figures, Mapping[str, float]], float | None]]] = {
    "decode, batch 1, in a graph, seconds": (
        "<=", 10e-6, lambda p50, _: p50("decode", _MAP, 1, "graph", "warm")),
    "decode, batch 1, in a graph, seconds (stretch)": (
        "<=", 6e-6, lambda p50, _: p50("decode", _MAP, 1, "graph", "warm")),
    "decode, batch 32, cold: share of the copy bandwidth": (
        ">=", 0.6, lambda p50, floor: _over(
            _HEAT_BYTES / floor["copy"], p50("decode", _MAP, 32, "alone", "cold"))),
    "decode, batch 1: PyTorch eager / kernel": (
        ">=", 10, lambda p50, _: _over(
            p50("decode", _MAP, 1, "alone", "warm", "PyTorch eager"), p50("decode", _MAP, 1, "alone", "warm"))),
    "decode, batch 1: torch.compile / kernel": (
        ">=", 1, lambda p50, _: _over(
            p50("decode", _MAP, 1, "alone", "warm", "torch.compile"), p50("decode", _MAP, 1, "alone", "warm"))),
    "decode, batch 1: one class / 80 classes": (  # two medians of one thing differ by a percent or two
        "<=", 1.02, lambda p50, _: _over(
            p50("decode", _ONE_CLASS, 1, "graph", "warm"), p50("decode", _MAP, 1, "graph", "warm"))),
    "preprocess, 640x480 to 512x512, batch 1, in a graph, seconds": (
        "<=", 5e-6, lambda p50, _: p50("preprocess", _IMAGE, 1, "graph", "warm")),
}  # fmt: skip
"""Target -> sense, limit, and how its figure follows from the rows and the lower bounds of a result."""


def judge(
    device: Mapping[str, Any], floor: Mapping[str, float], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Each target: wanted, found, and met, not met, or not judged and why.

    Args:
        device: as `device_record` gives it.
        floor: as `GpuRates.to_json` gives it.
        rows: of the result of `kernels.py`.
    """
    keys = ("step", "shape", "batch", "form", "cache", "who")
    medians = {tuple(row[key] for key in keys): float(row["p50"]) for row in rows}

    def p50(*key: Any) -> float | None:
        return medians.get((*key, "kernel") if len(key) == len(keys) - 1 else key)

    excuse = ""
    if device["name"] == STANDIN_NAME:
        excuse = device_label(dict(device))
    elif list(device["compute_capability"]) != _HOPPER:
        excuse = f"the targets are for an H100, this is {device['name']}"
    found = []
    for target, (sense, limit, figure) in TARGETS.items():
        value = figure(p50, floor)
        good = value is not None and (value <= limit if sense == "<=" else value >= limit)
        reason = excuse or ("not measured" if value is None else "")
        verdict = f"not judged: {reason}" if reason else "met" if good else "not met"
        shown = "-" if value is None else f"{value:.3g}"
        found.append({"target": target, "wanted": f"{sense} {limit:g}", "found": shown, "verdict": verdict})
    return found


def tables(data: Mapping[str, Any]) -> str:
    """Device, lower bounds, both kernels, targets, what failed, notes."""
    parts = [f"Device: {device_label(data['device'])}. K = {data['k']}."]
    parts += [f"{table.title}:\n\n{table.markdown()}" for table in _all_tables(data)]
    if data["failed"]:
        lines = [
            f"- {row['step']} {row['shape']}, batch {row['batch']}: {row['problem']}"
            for row in data["failed"]
        ]
        parts.append("Failed:\n\n" + "\n".join(lines))
    if data["notes"]:
        parts.append("\n".join(f"- {note}" for note in data["notes"]))
    return "\n\n".join(parts) + "\n"


def _all_tables(data: Mapping[str, Any]) -> list[Table]:
    found = [_floor_table(data["floor"])]
    for step in ("decode", "preprocess"):
        for shape in dict.fromkeys(row["shape"] for row in data["rows"] if row["step"] == step):
            rows = [row for row in data["rows"] if (row["step"], row["shape"]) == (step, shape)]
            found.append(_steps_table(f"{step}, {shape}", rows, data["floor"]))
    verdicts = [
        tuple(row[key] for key in ("target", "wanted", "found", "verdict")) for row in data["targets"]
    ]
    return [*found, text_table("Targets", ("target", "wanted", "found", "verdict"), verdicts)]


def _floor_table(floor: Mapping[str, float]) -> Table:
    size = f"{floor['copy_bytes'] / 2**20:g} MiB"
    rows = [
        (f"copy on the device, {size}, read and written together", f"{floor['copy'] / 1e9:.1f} GB/s"),
        (f"upload from pinned memory, {size}", f"{floor['upload'] / 1e9:.1f} GB/s"),
        (f"download to pinned memory, {size}", f"{floor['download'] / 1e9:.1f} GB/s"),
        ("empty kernel, alone", microseconds(floor["launch"])),
        ("empty kernel, one of many in a graph", microseconds(floor["train"])),
        ("graph of one empty kernel", microseconds(floor["graph"])),
        ("empty kernel, launched and waited for, wall time", microseconds(floor["round_trip"])),
    ]
    return text_table("Lower bounds, same run", ("what", "median"), rows)


def _steps_table(title: str, rows: Sequence[Mapping[str, Any]], floor: Mapping[str, float]) -> Table:
    """One step of one shape: every batch, form and cache state."""
    shown = []
    for row in rows:
        rate = row["bytes"] / row["p50"] if row["p50"] > 0 else float("inf")
        empty = floor["train" if row["form"] == "graph" else "launch"]
        shown.append(
            (
                str(row["batch"]),
                str(row["who"]),
                str(row["form"]),
                str(row["cache"]) + ("" if row["stable"] else " (unstable)"),
                microseconds(row["p50"]),
                microseconds(row["p99"]),
                f"{rate / 1e9:.1f}",
                f"{rate / floor['copy']:.0%}",
                f"{row['p50'] / empty:.1f}" if empty > 0 else "-",
            )
        )
    return text_table(title, COLUMNS, shown)
