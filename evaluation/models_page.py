"""Fills the measured parts of docs/models.md from the JSON files in evaluation/results/.

    python -m centernet_trt.evaluation.models_page

`builds.json` is written by `python -m centernet_trt.evaluation.build_table`, `seed-models.json` by `python
docs/seed_models.py`, `deformable.json` by `python docs/deformable_cost.py`. A part stands between two comments that
name it; what is around them is written by hand.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.build_table import build_table
from centernet_trt.evaluation.tables import text_table

__all__ = ["PAGE", "RESULTS", "deformable_table", "filled", "verified_table"]

RESULTS = Path("evaluation/results")
PAGE = Path("docs/models.md")


def filled(text: str, results: Path) -> str:
    """The page with every measured part made anew.

    Args:
        text: the page as it is.
        results: folder of the JSON files.

    Raises:
        InputError: a file is missing or damaged, or the page lacks the comments of a part.
    """
    for name, (file, write) in PARTS.items():
        begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->\n"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(
                f"the page does not hold the two lines {begin.strip()!r} and {end.strip()!r}, once each",
                "write them where the measured part belongs",
            )
        before, rest = text.split(begin)
        text = f"{before}{begin}{write(_read(results / file))}{end}{rest.split(end)[1]}"
    return text


def verified_table(result: Mapping[str, Any]) -> str:
    """Largest relative errors of every seed network: against stored PyTorch outputs, and against a second network."""
    rows = []
    for row in result["rows"]:
        stored = row["stored"]
        sizes = [f"{one['batch']} x {one['height']} x {one['width']}" for one in row["other"]]
        rows.append(
            [
                f"`{row['arch']}`",
                "-" if stored is None else _errors(stored["exported"]),
                "-" if stored is None else _number(max(stored["folded_and_lowered"].values())),
                ", ".join(sizes) or "-",
                _number(max((_worst(one) for one in row["other"]), default=None)),
            ]
        )
    columns = [
        "architecture",
        "1 x 128 x 128, 80 classes, as exported",
        "the same, folded and lowered",
        "other sizes, 20 classes",
        "largest of both graphs and all outputs",
    ]
    return text_table("", columns, rows).markdown() + "\n"


def deformable_table(result: Mapping[str, Any]) -> str:
    """What the form in standard operators costs, beside ONNX Runtime's DeformConv."""
    random, large = result["random_layers"], result["large_layer"]
    rows = [
        [f"{random['count']} random layers, 13 x 12 cells", _number(random["error"]), "", "", ""],
        [
            "one layer, 64 channels on 128 x 128 cells",
            _number(large["error"]),
            _megabytes(large["samples_bytes"]),
            "",
            "",
        ],
    ]
    for row in result["networks"]:
        kept = row["samples_bytes"]
        standard, lowered = row["standard"], row["lowered"]
        rows.append(
            [
                f"`{row['arch']}`, {len(kept)} layers, 512 x 512",
                _number(row["error"]),
                f"largest {_megabytes(max(kept))}, sum {_megabytes(sum(kept))}",
                f"{standard['seconds'] * 1e3:.0f} -> {lowered['seconds'] * 1e3:.0f} ms",
                f"{_megabytes(standard['peak_bytes'])} -> {_megabytes(lowered['peak_bytes'])}",
            ]
        )
    columns = [
        "",
        "largest difference",
        "samples written, fp32, batch 1",
        "processor time of the network",
        "peak memory of the process",
    ]
    return text_table("", columns, rows).markdown() + "\n"


def _errors(by_head: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in by_head.items())


def _worst(one: Mapping[str, Any]) -> float:
    return float(max(max(one[graph].values()) for graph in ("exported", "folded_and_lowered")))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result: {error}", "measure it again") from None


PARTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "verified": ("seed-models.json", verified_table),
    "deformable": ("deformable.json", deformable_table),
    "builds": ("builds.json", build_table),
}
"""Name of a part -> its file and what writes it."""


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = filled(options.page.read_text(encoding="utf-8"), options.results)
    options.page.write_text(text, encoding="utf-8")
    print(f"written: {options.page}")


if __name__ == "__main__":
    main()
