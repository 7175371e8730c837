"""Accuracy tables as model zoos print them: one row a model and precision."""

from collections.abc import Sequence
from typing import Any

from centernet_trt.evaluation.bench.statistics import STABLE_WITHIN
from centernet_trt.evaluation.tables import Table, text_table


def model_table(results: Sequence[dict[str, Any]]) -> Table:
    """The table of `eval` results, as its `--json` has them.

    Multiply-adds and parameters are those of the compiled graph (batch norms folded), for one image of the input size.
    The difference is of AP to the first row, with its paired 95 % interval over the images.
    """
    several = len(results) > 1
    timed = any(result["time"] is not None for result in results)
    columns = ["model", "precision", "mAP@.5:.95", "mAP@.5"]
    columns += ["difference (95 %)"] * several
    columns += ["multiply-adds (G)", "params (M)", "input size"] + ["ms an image"] * timed
    rows = []
    for result in results:
        row = [result["bundle"], result["precision"], f"{result['ap']:.4f}", f"{result['ap50']:.4f}"]
        if several:
            row.append(_difference(result["ap_drop"]))
        row += [_scaled(result["multiply_adds"], 1e9), _scaled(result["parameters"], 1e6), result["input"]]
        if timed:
            row.append("-" if result["time"] is None else f"{result['time']['p50'] * 1e3:.1f}")
        rows.append(row)
    first = results[0]
    title = f"{first['annotations']}: {first['images']} images, {first['objects']} objects"
    return text_table(title, columns, rows)


def markdown_page(results: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, and below it how the figures came about."""
    table = model_table(results)
    first = results[0]
    said = [f"On {table.title}. Accuracy: {first['executor']}."]
    if first["official_rounding"]:
        said.append("Boxes and scores rounded to two decimals, as published figures were.")
    if (tta := first.get("tta")) is not None:  # results of before have no such key
        scales = ", ".join(f"{scale:g}" for scale in tta["scales"])
        said.append(f"Test-time augmentation: {'flip, ' if tta['flip'] else ''}scales {scales}.")
    timed = next((result["time"] for result in results if result["time"] is not None), None)
    if timed is not None:
        said.append(
            f"Time: median from pixels in memory to boxes, one image in flight, {timed['executor']}, "
            f"{timed['cpu']}, {timed['cores']} cores, bundles in turn."
        )
    return table.markdown() + "\n\n" + " ".join(said + unstable_times(results)) + "\n"


def unstable_times(results: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each time that was measured on a machine that did not hold still."""
    return [
        f"The time of {result['bundle']} is unstable: the medians of three successive windows lie "
        f"{result['time']['spread']:.0%} apart, {STABLE_WITHIN:.0%} is allowed."
        for result in results
        if result["time"] is not None and result["time"]["spread"] > STABLE_WITHIN
    ]


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3f}"


def _difference(drop: dict[str, float] | None) -> str:
    if drop is None:
        return "-"
    # From the first row's point of view a drop; in the table, what was gained.
    return f"{-drop['drop']:+.4f} ({-drop['high']:+.4f} to {-drop['low']:+.4f})"
