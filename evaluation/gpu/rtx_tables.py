"""The result of `rtx` as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from centernet_trt.evaluation.gpu.machine import device_label
from centernet_trt.evaluation.tables import Table, text_table

Row = Mapping[str, Any]
_MOST_LOG = 8


def tables(data: Mapping[str, Any]) -> str:
    """All of it: device, builds, tries, precisions, the mixture, notes, and TensorRT's words where it refused."""
    parts = [f"Device: {device_label(data['device'])}."]
    found = [tries_table(data["tries"])]
    if data["builds"]:
        found.insert(0, builds_table(data["builds"]))
    if any(row.get("reached") == "done" for row in data["tries"]):
        found.append(speed_table(data["tries"]))
    if "stages" in data["mixed"]:
        found.append(mixed_table(data["mixed"]))
    parts += [f"{table.title}:\n\n{table.markdown()}" for table in found]
    parts += [_said(row) for row in data["tries"] if row.get("reached") != "done"]
    if data["notes"]:
        parts.append("\n".join(f"- {note}" for note in data["notes"]))
    return "\n\n".join(parts) + "\n"


def builds_table(rows: Sequence[Row]) -> Table:
    """What was built on this machine."""
    shown = [
        (row["precision"], ", ".join(row["targets"]), row["outcome"], f"{row['wall_seconds']:.1f} s")
        for row in rows
    ]
    return text_table("Plans built", ("precision", "targets", "outcome", "time"), shown)


def tries_table(rows: Sequence[Row]) -> Table:
    """How far every plan came."""
    shown = []
    for row in rows:
        layers = row.get("inspect", {})
        int8 = "-"
        if "convolutions" in layers:
            int8 = f"{layers['int8_convolutions']} of {layers['convolutions']}"
            int8 += "" if layers["detailed"] else " (names only: not known)"
        shown.append(
            (
                str(row["bundle"]),
                str(row["precision"]),
                str(row["target"]),
                str(row["batch"]),
                "runs"
                if row.get("reached") == "done"
                else f"{row['outcome']} at {row.get('reached', 'start')!r}",
                _first_run(row),
                _error(row),
                int8,
            )
        )
    columns = (
        "bundle",
        "precision",
        "target",
        "batch",
        "outcome",
        "to the first run, s",
        "largest error, relative",
        "int8 convolutions",
    )
    return text_table("Tries", columns, shown)


def speed_table(rows: Sequence[Row]) -> Table:
    """Medians of the network alone, and how many times as fast as fp16 of the same model, target and batch."""
    done = [row for row in rows if row.get("reached") == "done"]
    base = {_like(row): row["time"]["p50"] for row in done if row["precision"] == "fp16"}
    shown = []
    for row in done:
        half = base.get(_like(row))
        graph = row["graph"]
        shown.append(
            (
                str(row["bundle"]),
                str(row["precision"]),
                str(row["target"]),
                str(row["batch"]),
                f"{row['time']['p50'] * 1e3:.4f}",
                f"{graph['p50'] * 1e3:.4f}" if "p50" in graph else "not recorded",
                f"{half / row['time']['p50']:.2f}" if half else "-",
            )
        )
    columns = ("bundle", "precision", "target", "batch", "enqueued, ms", "CUDA graph, ms", "speed over fp16")
    return text_table("Network alone", columns, shown)


def mixed_table(row: Row) -> Table:
    """Stages of the mixture."""
    shown = [(stage, f"{found['p50'] * 1e3:.3f}") for stage, found in row["stages"].items()]
    title = (
        f"{row['bundle']}, {row['note']}: {row['images']} images, input at most {row['grey_levels']:.2f} grey levels "
        "from the host's, decode equal"
    )
    return text_table(title, ("stage", "median wall time, ms"), shown)


def _like(row: Row) -> tuple[str, str, int]:
    return str(row["source"]), str(row["target"]), int(row["batch"])


def _first_run(row: Row) -> str:
    """Seconds to load the plan, make a context and run it: RTX compiles meanwhile."""
    seconds = row.get("seconds", {})
    parts = [seconds.get(step) for step in ("deserialise", "context", "run")]
    return "-" if None in parts else f"{sum(parts):.2f}"


def _error(row: Row) -> str:
    heads = row.get("compare")
    if not heads:
        return "-"
    return f"{max(head['max_abs'] / head['magnitude'] if head['magnitude'] else 0.0 for head in heads.values()):.1e}"


def _said(row: Row) -> str:
    problem = row.get("problem", {})
    words = [problem.get("message", ""), *row.get("log", [])[-_MOST_LOG:]]
    if not any(words):
        words = row.get("output", "").strip().splitlines()[-_MOST_LOG:]
    text = "\n".join(word for word in words if word)
    return f"{row['bundle']}, {row['plan']} ({row['target']}): {row['outcome']}.\n\n```\n{text}\n```"
