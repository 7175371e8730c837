"""Writes docs/performance.md, and the picture in it, from the measurements in evaluation/results/.

    python -m centernet_trt.evaluation.performance_page

Every figure comes from a JSON file that a command wrote: `bench-*.json` and `compare-*.json` by `centernet-trt bench`,
`verify-*.json` by `verify`, `eval-*.json` by `eval`, `planted-*.json` by `python -m
centernet_trt.evaluation.planted_slowdown`, `host.json` by `python -m centernet_trt.evaluation.host_benchmark`,
`calibration.json` by `python -m centernet_trt.builder.calibration.benchmark`, `gpu-*.json` by `make gpu-test` and
`make gpu-bench`.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation import host_benchmark
from centernet_trt.evaluation.bench_compare import compare_entries
from centernet_trt.evaluation.bench_report import BenchReport, read_report
from centernet_trt.evaluation.bench_tables import comparison_table, tables_of
from centernet_trt.evaluation.gpu.page import gpu_section
from centernet_trt.evaluation.model_table import markdown_page, model_table
from centernet_trt.evaluation.tables import text_table
from centernet_trt.evaluation.verify_tables import boxes_sentence, checks_table, heads_table

RESULTS = Path("evaluation/results")
PAGE = Path("docs/performance.md")
PICTURE = Path("images/performance.png")
"""Beside the page."""

_HEAD = """# Performance and accuracy, as measured

Made by `python -m centernet_trt.evaluation.performance_page` from the files in `evaluation/results/`: no figure on
this page was typed. Times are of the machine that each part names; read the notes of a part before its figures.
"""


def page(results: Path) -> str:
    """The page in Markdown.

    Args:
        results: folder of the JSON files.

    Raises:
        InputError: no such folder, nothing in it, or a file that is damaged.
    """
    parts = {
        "Accuracy": _accuracy(_files(results, "eval-")),
        "Is it still the same model?": _verified(_files(results, "verify-")),
        "Time": _times(_reports(results, "bench-")),
        "On a GPU": gpu_section(results),
        "What the benchmark can tell apart": _planted(_reports(results, "planted-")),
        "Two runs compared": _compared(_files(results, "compare-")),
        "The host decode beside the official one": _host(results / "host.json"),
        "Calibration": _calibration(results / "calibration.json"),
    }
    text = [_HEAD]
    for title, lines in parts.items():
        if found := list(lines):
            text += [f"## {title}\n", *found]
    return "\n".join(text)


def readme_table(results: Path, name: str) -> str:
    """The table of one `eval-NAME.json` in Markdown, for the README; raises as `page`."""
    data = _read(results / f"eval-{name}.json")
    return model_table(data if isinstance(data, list) else [data]).markdown()


def write_picture(results: Path, target: Path) -> None:
    """Draw the first benchmark report as PNG.

    Raises:
        BackendError: matplotlib is missing.
        InputError: no report, or the file cannot be written.
    """
    from centernet_trt.evaluation.bench_plots import whole_figure
    from centernet_trt.evaluation.plotting import write_png

    found = _files(results, "bench-")
    if not found:
        raise InputError(
            f"there is no bench-*.json in {results}", "measure first: centernet-trt bench --json"
        )
    write_png(whole_figure(read_report(found[0][1])), target, dpi=80)


def _files(results: Path, prefix: str) -> list[tuple[str, Path]]:
    """(name, path) of the results of one kind, sorted."""
    if not results.is_dir():
        raise InputError(f"there is no folder {results}", "run it in the repository, or give --results")
    return [(path.stem.removeprefix(prefix), path) for path in sorted(results.glob(f"{prefix}*.json"))]


def _reports(results: Path, prefix: str) -> list[tuple[str, BenchReport]]:
    return [(name, read_report(path)) for name, path in _files(results, prefix)]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result: {error}", "measure it again") from None


def _accuracy(files: Iterable[tuple[str, Path]]) -> Iterable[str]:
    for name, path in files:
        data = _read(path)
        yield f"### {name}\n\n{markdown_page(data if isinstance(data, list) else [data])}"


def _verified(files: Iterable[tuple[str, Path]]) -> Iterable[str]:
    for name, path in files:
        data = _read(path)
        yield f"### {name}\n\n{data['candidate']} held to {data['reference']}.\n"
        for table in (heads_table(data), checks_table(data)):
            yield f"{table.title}:\n\n{table.markdown()}\n"
        yield boxes_sentence(data) + "\n"
        if (drop := data["ap"]) is not None:
            yield (
                f"AP {drop['reference_ap']:.4f} and {drop['candidate_ap']:.4f}: a drop of {drop['drop']:+.4f}, paired "
                f"95 % interval {drop['low']:+.4f} to {drop['high']:+.4f} ({drop['samples']} resamplings of "
                f"{drop['images']} images).\n"
            )


def _times(reports: list[tuple[str, BenchReport]]) -> Iterable[str]:
    if reports:
        yield f"![{reports[0][0]}: latencies, stages, precisions, throughput]({PICTURE.as_posix()})\n"
    for name, report in reports:
        machine = report.environment
        yield f"### {name}\n\n{machine['cpu']}, {machine['cores']} cores, {report.created}.\n"
        yield f"```sh\n{report.command}\n```\n"
        if warnings := report.warnings():
            yield "\n".join(f"- {text}" for text in warnings) + "\n"
        for table in tables_of(report):
            yield f"{table.title}:\n\n{table.markdown()}\n"
        rates = report.rates
        yield (
            f"Floor: {rates['bytes_per_second'] / 1e9:.1f} GB/s, {rates['operations_per_second'] / 1e9:.1f} fp32 GFLOP/s "
            f"({rates['source']}).\n"
        )


def _planted(reports: list[tuple[str, BenchReport]]) -> Iterable[str]:
    if not reports:
        return
    yield (
        "One bundle three times in turn: as it is, again, and with every stage of its pipeline lengthened by a tenth "
        "(the network alone is not). The second must not differ; the third must be slower by a tenth.\n"
    )
    for name, report in reports:
        yield f"### {name}\n\n```sh\n{report.command}\n```\n"
        yield "\n".join(f"- {text}" for text in report.warnings()) + "\n"
        yield comparison_table(compare_entries(report)).markdown() + "\n"


def _compared(files: Iterable[tuple[str, Path]]) -> Iterable[str]:
    for name, path in files:
        data = _read(path)
        rows = [
            (
                row["entry"],
                row["what"],
                f"{row['a'] * 1e3:.2f}",
                f"{row['b'] * 1e3:.2f}",
                f"{row['ratio']['ratio']:.3f}",
                f"{row['ratio']['low']:.3f} to {row['ratio']['high']:.3f}",
                row["verdict"],
            )
            for row in data["rows"]
        ]
        columns = (
            "bundle",
            "what",
            "A, ms",
            "B, ms",
            "B / A",
            f"interval, all at once {data['confidence']:.0%}",
            "B is",
        )
        yield f"### {name}\n\n{text_table('', columns, rows).markdown()}\n"
        if data["differences"]:
            yield "\n".join(f"- {text}" for text in data["differences"]) + "\n"


def _host(path: Path) -> Iterable[str]:
    if not path.is_file():
        return
    data = _read(path)
    machine = data["environment"]
    torch = machine["packages"].get("torch")
    yield f"{machine['cpu']}, {machine['cores']} cores, PyTorch {torch}; K = {data['decode'][0]['k']}.\n"
    yield host_benchmark.table(data) + "\n"


def _calibration(path: Path) -> Iterable[str]:
    if not path.is_file():
        return
    data = _read(path)
    machine, search, memory = data["environment"], data["entropy_search"], data["memory"]
    yield (
        f"{machine['cpu']}, {machine['cores']} cores; `{data['command']}`. Entropy thresholds of {search['tensors']} "
        "tensors (2048 bins, 128 levels), processor time; the NumPy loop finds the same ones:\n"
    )
    rows = [
        ("centernet-trt", f"{search['ours_seconds']:.2f}", ""),
        ("NumPy, candidate by candidate", f"{search['numpy_loop_seconds']:.2f}", search["numpy_loop_ratio"]),
        (
            "ONNX Runtime's `get_entropy_threshold`",
            f"{search['onnxruntime_seconds']:.2f}",
            search["onnxruntime_ratio"],
        ),
    ]
    yield (
        text_table("", ("search", "seconds", "ratio"), [tuple(map(str, row)) for row in rows]).markdown()
        + "\n"
    )
    few, many = memory["images"]
    yield (
        f"Peak memory of calibrating {many} images: {memory['peak_gib'][1]:.2f} GiB, of {few} images "
        f"{memory['peak_gib'][0]:.2f} GiB, {memory['ratio']:.2f} times (each in a process of its own).\n"
    )


def main() -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    text = page(options.results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    if _files(options.results, "bench-"):
        write_picture(options.results, options.output.parent / PICTURE)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
