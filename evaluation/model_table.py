"""Accuracy table in the layout of model zoos: one row per model and precision."""

from collections.abc import Sequence
from typing import Any

from centernet_trt.evaluation.bench.statistics import STABLE_WITHIN
from centernet_trt.evaluation.tables import Table, text_table


def model_table(results: Sequence[dict[str, Any]]) -> Table:
    """Tabulate results of `eval --json`.

    Multiply-adds and parameters are those of the compiled graph (batch norms folded), for one image of the input size.
    The difference is in AP to the first row, with its paired 95 % interval over the images.

    Args:
        results: at least one.

    Returns:
        The table; the column of times is left out if no result has one.
    """
    several = len(results) > 1
    timed = any(result["time"] is not None for result in results)
    columns = ["model", "precision", "mAP@.5:.95", "mAP@.5"]
    columns += ["difference (95 %)"] * several
    columns += ["multiply-adds (G)", "params (M)", "input size"] + ["ms an image"] * timed
    rows = []
    for result in results:
        row = [result["bundle"], result["precision"], format_ap(result["ap"]), format_ap(result["ap50"])]
        if several:
            row.append(_difference(result["ap_drop"]))
        row += [_scaled(result["multiply_adds"], 1e9), _scaled(result["parameters"], 1e6), result["input"]]
        if timed:
            row.append("-" if result["time"] is None else f"{result['time']['p50'] * 1e3:.1f}")
        rows.append(row)
    first = results[0]
    title = f"{first['annotations']}: {first['images']} images, {first['objects']} objects"
    return text_table(title, columns, rows)


def format_ap(value: float | None) -> str:
    """AP with four decimals, or a word where no object is annotated."""
    return "undefined" if value is None else f"{value:.4f}"


def markdown_page(results: Sequence[dict[str, Any]]) -> str:
    """Format the table in Markdown, followed by how it was measured."""
    table = model_table(results)
    first = results[0]
    notes = [f"On {table.title}. Accuracy: {first['executor']}."]
    if first["official_rounding"]:
        notes.append("Boxes and scores rounded to two decimals, as published figures were.")
    if (tta := first.get("tta")) is not None:  # older results lack this key
        scales = ", ".join(f"{scale:g}" for scale in tta["scales"])
        notes.append(f"Test-time augmentation: {'flip, ' if tta['flip'] else ''}scales {scales}.")
    timed = next((result["time"] for result in results if result["time"] is not None), None)
    if timed is not None:
        notes.append(
            f"Time: median from pixels in memory to boxes, one image in flight, {timed['executor']}, "
            f"{timed['cpu']}, {timed['cores']} cores, bundles interleaved."
        )
    return table.markdown() + "\n\n" + " ".join(notes + unstable_times(results)) + "\n"


def unstable_times(results: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each time whose windows differ too much to be trusted."""
    return [
        f"The time of {result['bundle']} is unstable: the medians of three successive windows differ by "
        f"{result['time']['spread']:.0%}, expected at most {STABLE_WITHIN:.0%}."
        for result in results
        if result["time"] is not None and result["time"]["spread"] > STABLE_WITHIN
    ]


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3f}"


def _difference(drop: dict[str, float] | None) -> str:
    if drop is None:
        return "-"
    # The result holds a drop; the table shows a gain.
    return f"{-drop['drop']:+.4f} ({-drop['high']:+.4f} to {-drop['low']:+.4f})"
