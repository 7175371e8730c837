"""Render the measured parts of README.md and docs/*.md from the JSON files in benchmarks/results/.

    python benchmarks/render.py [--plots]

docs/performance.md is generated as a whole; in the other pages, the parts between two comments that name them. The JSON is written
by `centernet-trt bench` (`bench-*`, `compare-*`), `eval` (`eval-*`), `verify` (`verify-*`), `make gpu-bench` (`gpu-*`) and the scripts
here. Results of scripts that no longer exist are kept as records (`planted-*`, `host`, `calibration`, `deformable`,
`augmentation`).
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import kernel_tables
import rtx_probe
import soak
from build_table import build_table
from common import RESULTS, ROOT, read_json

from centernet_trt.builder.prepare import describe_passes
from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.compare import compare_entries
from centernet_trt.evaluation.bench.report import BenchReport, read_report
from centernet_trt.evaluation.bench.tables import overview, report_tables
from centernet_trt.evaluation.environment import STANDIN_NAME
from centernet_trt.evaluation.model_table import markdown_page, model_table
from centernet_trt.evaluation.tables import Table, text_table

PLOTS = "images/performance.png"
"""Beside docs/performance.md."""
_HEAD = """# Performance and accuracy, as measured

Made by `python benchmarks/render.py` from the JSON files in [benchmarks/results](../benchmarks/results), with every
sample, command and version; no figure on this page is typed by hand. Times are of the machine that each part names; all were
taken without a GPU unless the part says otherwise.
"""


def performance(results: Path) -> str:
    """docs/performance.md.

    Raises:
        InputError: a file is damaged, or the folder is missing.
    """
    if not results.is_dir():
        raise InputError(f"there is no folder {results}", "give --results")
    parts = {
        "Accuracy": _accuracy,
        "Agreement with the source": _verified,
        "Time": _times,
        "On a GPU": _on_gpu,
        "Resolution of the benchmark": _resolution,
        "The host decode beside the official one": _host,
        "Calibration": _calibration,
    }
    text = [_HEAD]
    for title, part in parts.items():
        if lines := list(part(results)):
            text += [f"## {title}\n", *lines]
    return "\n".join(text)


def _link(path: Path) -> str:
    return f"[{path.name}](../benchmarks/results/{path.name})"


def _reports(results: Path, prefix: str) -> list[tuple[Path, BenchReport]]:
    return [(path, read_report(path)) for path in sorted(results.glob(f"{prefix}*.json"))]


def _machine(data: Mapping[str, Any]) -> str:
    return f"{data['cpu']}, {data['cores']} cores"


def _eval(path: Path) -> list[dict[str, Any]]:
    data = read_json(path)
    return data if isinstance(data, list) else [data]


def _accuracy(results: Path) -> Iterable[str]:
    for path in sorted(results.glob("eval-*.json")):
        yield f"{markdown_page(_eval(path))}\n{_link(path)}.\n"


def _verified(results: Path) -> Iterable[str]:
    rows = []
    for path in sorted(results.glob("verify-*.json")):
        data = read_json(path)
        drop, boxes = data["ap"], data["whole"]
        rows.append(
            (
                f"{data['candidate']}, {_link(path)}",
                str(data["reference"]),
                f"{min(_noise(head) for head in data['heads'].values()):.1f} dB",
                f"{boxes['f1']:.4f} of {boxes['reference']} boxes",
                "-" if drop is None else f"{drop['drop']:+.4f} ({drop['low']:+.4f} to {drop['high']:+.4f})",
                "yes" if all(check["passed"] for check in data["checks"]) else "NO",
            )
        )
    if rows:
        columns = (
            "bundle",
            "compared with",
            "worst SQNR of a head",
            "F1",
            "drop in AP (95 %)",
            "inside tolerances",
        )
        yield text_table("", columns, rows).markdown() + "\n"


def _noise(head: Mapping[str, Any]) -> float:
    return float("inf") if head["sqnr_db"] is None else float(head["sqnr_db"])


def _times(results: Path) -> Iterable[str]:
    for place, (path, report) in enumerate(_reports(results, "bench-")):
        if place == 0:
            yield f"![Latencies, stages, precisions, throughput]({PLOTS})\n"
        yield f"{_link(path)}: {_machine(report.environment)}, {report.created}.\n"
        yield f"{overview(report).markdown()}\n"
        yield from _warnings(report)


def _warnings(report: BenchReport) -> Iterable[str]:
    if found := report.warnings():
        yield "\n".join(f"- {text}" for text in found) + "\n"


def _resolution(results: Path) -> Iterable[str]:
    for path, report in _reports(results, "planted-"):
        rows = [row for row in compare_entries(report).rows if row.what == "whole"]
        yield (
            f"{_link(path)}: one bundle three times, interleaved: unchanged, unchanged again (any verdict but no difference is a "
            "false alarm), and with every stage of its pipeline lengthened by a tenth.\n"
        )
        shown = [
            (
                row.entry,
                f"{row.ratio.ratio:.3f}",
                f"{row.ratio.low:.3f} to {row.ratio.high:.3f}",
                row.ratio.verdict,
            )
            for row in rows
        ]
        columns = ("bundle", "whole, ratio to the first", "interval", "verdict")
        yield text_table("", columns, shown).markdown() + "\n"
    for path in sorted(results.glob("compare-*.json")):
        found = read_json(path)["rows"]
        ratios = [row["ratio"]["ratio"] for row in found]
        differ = [f"{row['entry']}, {row['what']}" for row in found if row["verdict"] != "no difference"]
        yield (
            f"{_link(path)}: two runs compared, {len(found)} rows, ratios {min(ratios):.3f} to {max(ratios):.3f}; "
            f"called different: {'; '.join(differ) or 'none'}.\n"
        )


def host_table(data: Mapping[str, Any]) -> Table:
    """The host decode compared with PyTorch's."""
    rows = [
        (row["map"], f"{row['ours_ms']:.1f} ms", f"{row['official_torch_ms']:.1f} ms", f"{row['ratio']:.1f}")
        for row in data["decode"]
    ]
    return text_table("", ("map", "host decode", "official, PyTorch", "ratio"), rows)


def _host(results: Path) -> Iterable[str]:
    path = results / "host.json"
    if path.is_file():
        data = read_json(path)
        torch = data["environment"]["packages"].get("torch")
        yield f"{_link(path)}: {_machine(data['environment'])}, PyTorch {torch}; K = {data['decode'][0]['k']}.\n"
        yield host_table(data).markdown() + "\n"


def _calibration(results: Path) -> Iterable[str]:
    path = results / "calibration.json"
    if not path.is_file():
        return
    data = read_json(path)
    search, memory = data["entropy_search"], data["memory"]
    few, many = memory["images"]
    yield (
        f"{_link(path)}: {_machine(data['environment'])}. The search for entropy thresholds of {search['tensors']} tensors "
        f"takes {search['ours_seconds']:.2f} s of processor time; a NumPy loop over the same candidates "
        f"{search['numpy_loop_ratio']} times as long, ONNX Runtime's `get_entropy_threshold` {search['onnxruntime_ratio']} "
        f"times. Peak memory of calibrating {many} images is {memory['ratio']:.2f} times that of {few}.\n"
    )


def _on_gpu(results: Path) -> Iterable[str]:
    for path in sorted(results.glob("gpu-*.json")):
        data = read_json(path)
        kind = data.get("kind") if isinstance(data, dict) else None
        if not isinstance(kind, str) or kind not in _GPU_PARTS:
            raise InputError(f"{path} is not a result of a GPU: its kind is {kind!r}", "measure it again")
        yield f"### {path.stem}\n\n{_link(path)}\n\n```sh\n{data['command']}\n```\n"
        yield _GPU_PARTS[kind](path, data)


def _gpu_bench(path: Path, _: Mapping[str, Any]) -> str:
    report = read_report(path)
    return "\n".join(
        [*_warnings(report), *(f"{table.title}:\n\n{table.markdown()}\n" for table in report_tables(report))]
    )


_GPU_PARTS: Mapping[str, Callable[[Path, Any], str]] = {
    "gpu-kernels": lambda _, data: kernel_tables.tables(data),
    "gpu-rtx": lambda _, data: rtx_probe.tables(data),
    "gpu-soak": lambda _, data: soak.table(data),
    "bench": _gpu_bench,
}


def verified_table(data: Mapping[str, Any]) -> str:
    """Largest relative errors of every seed network: against stored PyTorch outputs, and against a second network."""
    rows = []
    for row in data["rows"]:
        stored = row["stored"]
        sizes = [f"{one['batch']} x {one['height']} x {one['width']}" for one in row["other"]]
        worst = [
            max(max(one[g].values()) for g in ("exported", "folded_and_lowered")) for one in row["other"]
        ]
        exported = "-" if stored is None else ", ".join(f"{n} {v:.1e}" for n, v in stored["exported"].items())
        lowered = "-" if stored is None else f"{max(stored['folded_and_lowered'].values()):.1e}"
        other = f"{max(worst):.1e}" if worst else "-"
        rows.append((f"`{row['arch']}`", exported, lowered, ", ".join(sizes) or "-", other))
    columns = ["architecture", "1 x 128 x 128, 80 classes, as exported", "the same, folded and lowered"]
    columns += ["other sizes, 20 classes", "largest of both graphs and all outputs"]
    return text_table("", columns, rows).markdown() + "\n"


def deformable_table(data: Mapping[str, Any]) -> str:
    """Cost of deformable convolution in standard operators, compared with ONNX Runtime's DeformConv."""
    random, large = data["random_layers"], data["large_layer"]
    rows = [
        (f"{random['count']} random layers, 13 x 12 cells", f"{random['error']:.1e}", "", "", ""),
        (
            "one layer, 64 channels on 128 x 128 cells",
            f"{large['error']:.1e}",
            _megabytes(large["samples_bytes"]),
            "",
            "",
        ),
    ]
    for row in data["networks"]:
        kept, standard, lowered = row["samples_bytes"], row["standard"], row["lowered"]
        rows.append(
            (
                f"`{row['arch']}`, {len(kept)} layers, 512 x 512",
                f"{row['error']:.1e}",
                f"largest {_megabytes(max(kept))}, sum {_megabytes(sum(kept))}",
                f"{standard['seconds'] * 1e3:.0f} -> {lowered['seconds'] * 1e3:.0f} ms",
                f"{_megabytes(standard['peak_bytes'])} -> {_megabytes(lowered['peak_bytes'])}",
            )
        )
    columns = ["", "largest difference", "samples written, fp32, batch 1"]
    columns += ["processor time of the network", "peak memory of the process"]
    return text_table("", columns, rows).markdown() + "\n"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def host_overhead_table(data: Mapping[str, Any]) -> str:
    """Cost of each call on the host."""
    rows = [
        (
            cost["call"],
            f"{cost['host']:.0f}",
            ", ".join(f"{n} {name}" for name, n in cost["driver_calls"].items()),
        )
        for cost in data["costs"]
    ]
    return text_table("", ("call", "Python on the host, us", "calls of the driver"), rows).markdown() + "\n"


def augmentation_table(data: Mapping[str, Any]) -> str:
    """AP with each test-time augmentation."""
    rows = [
        (
            "none" if row["tta"] is None else f'`"{row["tta"]}"`',
            *(f"{row[key]:.3f}" for key in ("ap", "ap50", "ap75")),
        )
        for row in data["rows"]
    ]
    return text_table("", ("`tta`", "AP", "AP50", "AP75"), rows).markdown() + "\n"


PARTS: Mapping[str, Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "README.md": {
        "accuracy": ("eval-coco.json", lambda data: model_table(data).markdown() + "\n"),
    },
    "docs/builder.md": {"passes": ("", lambda _: describe_passes())},
    "docs/models.md": {
        "verified": ("seed-models.json", verified_table),
        "deformable": ("deformable.json", deformable_table),
        "builds": ("builds.json", build_table),
    },
    "docs/embedding.md": {
        "host overhead": ("host-overhead.json", host_overhead_table),
        "augmentation": ("augmentation.json", augmentation_table),
    },
}
"""Page -> name of a part -> its file in benchmarks/results/ (empty for a part made from the code) and what renders it."""


def filled(text: str, name: str, part: str) -> str:
    """Replace one part of a page.

    Raises:
        InputError: the page lacks the two comments of the part.
    """
    begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(
            f"expected the lines {begin.strip()!r} and {end.strip()!r} in the page, once each",
            "write them where the generated part belongs",
        )
    return f"{text.split(begin)[0]}{begin}{part}{end}{text.split(end)[1]}"


def check_real(results: Path) -> None:
    """Refuse results of the stand-in driver.

    Raises:
        InputError: there are some.
    """
    for path in results.glob("gpu-*.json"):
        data = read_json(path)
        device = data.get("device") or data.get("rates", {}).get("device", {})
        if device.get("name") == STANDIN_NAME:
            raise InputError(f"{path} was measured on the stand-in driver", "delete it")


def write_plots(results: Path, target: Path) -> None:
    """Draw the first benchmark report as PNG."""
    from centernet_trt.evaluation.bench.html import whole_figure, write_png

    write_png(whole_figure(_reports(results, "bench-")[0][1]), target, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    """Write all pages; the plots only with --plots, because matplotlib's bytes differ between versions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plots", action="store_true", help=f"draw docs/{PLOTS} too")
    options = parser.parse_args(arguments)
    check_real(RESULTS)
    (ROOT / "docs" / "performance.md").write_text(performance(RESULTS), encoding="utf-8")
    for page, parts in PARTS.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, (file, write) in parts.items():
            text = filled(text, name, write(read_json(RESULTS / file) if file else None))
        (ROOT / page).write_text(text, encoding="utf-8")
    if options.plots:
        write_plots(RESULTS, ROOT / "docs" / PLOTS)


if __name__ == "__main__":
    main()
