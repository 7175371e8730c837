"""The result of `kernels` as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from centernet_trt.evaluation.gpu.machine import device_label
from centernet_trt.evaluation.gpu.targets import microseconds, targets_table
from centernet_trt.evaluation.tables import Table, text_table

COLUMNS = ("batch", "who", "form", "cache", "p50", "p99", "GB/s", "share of copy", "p50 / empty launch")


def tables(data: Mapping[str, Any]) -> str:
    """All of it: device, floor, both kernels, targets, notes."""
    parts = [f"Device: {device_label(data['device'])}. K = {data['k']}."]
    parts += [f"{table.title}:\n\n{table.markdown()}" for table in all_tables(data)]
    if data["failed"]:
        lines = [
            f"- {row['step']} {row['shape']}, batch {row['batch']}: {row['problem']}"
            for row in data["failed"]
        ]
        parts.append("Failed:\n\n" + "\n".join(lines))
    if data["notes"]:
        parts.append("\n".join(f"- {note}" for note in data["notes"]))
    return "\n\n".join(parts) + "\n"


def all_tables(data: Mapping[str, Any]) -> list[Table]:
    """The tables of a result."""
    found = [floor_table(data["floor"])]
    for step in ("decode", "preprocess"):
        for shape in dict.fromkeys(row["shape"] for row in data["rows"] if row["step"] == step):
            rows = [row for row in data["rows"] if (row["step"], row["shape"]) == (step, shape)]
            found.append(steps_table(f"{step}, {shape}", rows, data["floor"]))
    return [*found, targets_table(data["targets"])]


def floor_table(floor: Mapping[str, float]) -> Table:
    """Copies and empty launches."""
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
    return text_table("Floor, same run", ("what", "median"), rows)


def steps_table(title: str, rows: Sequence[Mapping[str, Any]], floor: Mapping[str, float]) -> Table:
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
