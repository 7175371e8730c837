"""Does TensorRT for RTX run on this GPU, and what do its engines become there?

    python benchmarks/rtx_probe.py --json benchmarks/results/gpu-rtx.json [BUNDLE ...] [--arch res_18]

Every plan of the bundles is tried; with `--arch` or `--model`, plans of every precision are built first: portable,
`sm_80`, and `current`, which is built on this GPU. Each build and each try (`rtx_try.py`) is a process of its own with
a time limit, so that a crash or a hang is recorded and the next one goes on.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, check_target, command_line, read_json, result, write_result

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.evaluation.environment import device_label, device_record
from centernet_trt.evaluation.tables import Table, text_table
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("portable", "sm_80", "current")
BUILD_LIMIT, TRY_LIMIT = 240.0, 120.0
"""Seconds."""
_LOG_LINES = 8
Row = Mapping[str, Any]
Tell = Callable[[str], None]


def run_limited(command: Sequence[str], limit: float) -> dict[str, Any]:
    """Run a command for at most `limit` seconds -> `outcome`, `wall_seconds`, and what it wrote if it did not end well."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+b") as output:
        settings = os.environ | {"PYTHONFAULTHANDLER": "1"}  # a process that crashes reports where
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=settings)
        try:
            code = process.wait(timeout=limit)
            word = {0: "done"}.get(code, f"exit code {code}")
            if code < 0:
                word = f"crashed: {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            word = f"timed out after {limit:.0f} s"
        output.seek(0)
        text = output.read().decode(errors="replace")
    found = {"outcome": word, "wall_seconds": round(time.perf_counter() - start, 3)}
    return found if word == "done" else found | {"output": text[-4000:]}


def build_all(
    model: Sequence[str], folder: Path, precision: str, tell: Tell
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Build bundles of one precision with the `build` command -> a row for each build, and the folders that were built."""
    rows, built = [], []
    # What needs a GPU is built apart: where it fails, the others are there all the same.
    for targets in (TARGETS[:2], TARGETS[2:]):
        output = folder / f"{precision}-{targets[0]}"
        command = [sys.executable, "-m", "centernet_trt.cli", "build", *model, "--batch", "1:1:8"]
        command += ["--precision", precision, "--flavour", "rtx", "--target", ",".join(targets)]
        command += ["--output", str(output)]
        if precision == "int8":  # no search: the question is whether it runs, and how fast
            command += ["--calibration", str(ROOT / "calib_data"), "--every-layer"]
        tell(f"build {precision} for {', '.join(targets)}")
        outcome = run_limited(command, BUILD_LIMIT)
        rows.append({"precision": precision, "targets": list(targets), **outcome})
        if outcome["outcome"] == "done":
            built.append(output)
    return rows, built


def try_bundle(path: Path, folder: Path, duration: float, tell: Tell) -> list[dict[str, Any]]:
    """Try every plan of a bundle, and the network at batch 8 too where the engine takes that -> a row each."""
    manifest = EngineBundle.load(path).manifest
    rows: list[dict[str, Any]] = []
    for plan in manifest.plans:
        for batch in (size for size in (1, 8) if size in manifest.profile.batch):
            tell(f"try {manifest.name}/{plan.file}, batch {batch}")
            record = folder / f"{len(list(folder.iterdir()))}.json"
            script = str(Path(__file__).with_name("rtx_try.py"))
            command = [sys.executable, script, str(path), plan.file, "--json", str(record)]
            outcome = run_limited([*command, "--batch", str(batch), "--duration", str(duration)], TRY_LIMIT)
            about = {
                "bundle": manifest.name,
                "plan": plan.file,
                "flavour": plan.flavour,
                "version": plan.version,
                "target": plan.target,
                "precision": manifest.precision,
                "source": manifest.source.sha256[:12],
                "batch": batch,
            }
            rows.append(about | outcome | (read_json(record) if record.is_file() else {}))
            if rows[-1].get("reached") != "done":
                break  # a larger batch would not do better
    return rows


def run_tries(
    given: argparse.Namespace, folder: Path, tell: Tell, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Try the bundles that exist, then build and try -> `builds`, `tries`, `notes`.

    Args:
        given: the command line.
        folder: for scratch files.
        tell: called with what is being done.
        keep: called with the content so far after every bundle, in case this process is ended early.
    """
    found: dict[str, Any] = {"builds": [], "tries": [], "notes": []}
    records = folder / "tries"
    records.mkdir()

    def attempt_all(paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                found["tries"] += try_bundle(path, records, given.duration, tell)
            except CenterNetError as error:
                found["notes"].append(f"{path.name}: {error.message}")
            keep(found)

    attempt_all(given.bundles)
    model = _model(given, folder, found["notes"], tell)
    bundles = given.keep or folder / "bundles"
    for precision in PRECISIONS if model else ():
        bundles.mkdir(parents=True, exist_ok=True)
        rows, built = build_all(model, bundles, precision, tell)
        found["builds"] += rows
        attempt_all(built)
    if not any(row.get("reached") == "done" for row in found["tries"]):
        found["notes"].append("no plan ran here")
    return found


def _model(given: argparse.Namespace, folder: Path, notes: list[str], tell: Tell) -> list[str]:
    """What to build: the given file, or one with random weights; nothing if neither is given."""
    if given.model is not None:
        return [str(given.model), *(["--spec", given.spec] if given.spec else [])]
    if not given.arch:
        return []
    target = folder / f"{given.arch}.onnx"
    tell(f"export {given.arch} with random weights")
    command = [sys.executable, "-m", "centernet_trt.cli", "export", "--arch", given.arch, "--random"]
    outcome = run_limited([*command, "--output", str(target)], BUILD_LIMIT)
    if outcome["outcome"] != "done":
        notes.append(
            f"{given.arch} was not exported ({outcome['outcome']}): {outcome['output'].strip()[-300:]}"
        )
        return []
    return [given.arch, "--model", str(target)]


def tables(data: Mapping[str, Any]) -> str:
    """Device, builds, tries, speeds, notes, and TensorRT's log where it refused."""
    found = [_tries_table(data["tries"])]
    if data["builds"]:
        rows = [
            (row["precision"], ", ".join(row["targets"]), row["outcome"], f"{row['wall_seconds']:.1f} s")
            for row in data["builds"]
        ]
        found.insert(0, text_table("Plans built", ("precision", "targets", "outcome", "time"), rows))
    if any(row.get("reached") == "done" for row in data["tries"]):
        found.append(speed_table(data["tries"]))
    parts = [f"Device: {device_label(data['device'])}."]
    parts += [f"{table.title}:\n\n{table.markdown()}" for table in found]
    parts += [_log(row) for row in data["tries"] if row.get("reached") != "done"]
    if data["notes"]:
        parts.append("\n".join(f"- {note}" for note in data["notes"]))
    return "\n\n".join(parts) + "\n"


def _tries_table(rows: Sequence[Row]) -> Table:
    shown = []
    for row in rows:
        layers = row.get("inspect", {})
        int8 = "-"
        if "convolutions" in layers:
            int8 = f"{layers['int8_convolutions']} of {layers['convolutions']}"
            int8 += "" if layers["detailed"] else " (names only: not known)"
        done = row.get("reached") == "done"
        outcome = "runs" if done else f"{row['outcome']} at {row.get('reached', 'start')!r}"
        about = (str(row[key]) for key in ("bundle", "precision", "target", "batch"))
        shown.append((*about, outcome, _first_run(row), _error(row), int8))
    columns = ["bundle", "precision", "target", "batch", "outcome"]
    columns += ["to the first run, s", "largest error, relative", "int8 convolutions"]
    return text_table("Tries", columns, shown)


def speed_table(rows: Sequence[Row]) -> Table:
    """Medians of the network alone, and how many times as fast as fp16 of the same model, target and batch."""

    def like(row: Row) -> tuple[str, str, int]:
        return str(row["source"]), str(row["target"]), int(row["batch"])

    done = [row for row in rows if row.get("reached") == "done"]
    base = {like(row): row["time"]["p50"] for row in done if row["precision"] == "fp16"}
    shown = []
    for row in done:
        half, graph = base.get(like(row)), row["graph"]
        shown.append(
            (
                *(str(row[key]) for key in ("bundle", "precision", "target", "batch")),
                f"{row['time']['p50'] * 1e3:.4f}",
                f"{graph['p50'] * 1e3:.4f}" if "p50" in graph else "not recorded",
                f"{half / row['time']['p50']:.2f}" if half else "-",
            )
        )
    columns = ("bundle", "precision", "target", "batch", "enqueued, ms", "CUDA graph, ms", "speed over fp16")
    return text_table("Network alone", columns, shown)


def _first_run(row: Row) -> str:
    """Seconds to load the plan, make a context and run it: RTX compiles meanwhile."""
    parts = [row.get("seconds", {}).get(step) for step in ("deserialise", "context", "run")]
    return "-" if None in parts else f"{sum(parts):.2f}"


def _error(row: Row) -> str:
    heads = row.get("compare")
    if not heads:
        return "-"
    errors = (head["max_abs"] / head["magnitude"] if head["magnitude"] else 0.0 for head in heads.values())
    return f"{max(errors):.1e}"


def _log(row: Row) -> str:
    lines = [row.get("problem", {}).get("message", ""), *row.get("log", [])[-_LOG_LINES:]]
    if not any(lines):
        lines = row.get("output", "").strip().splitlines()[-_LOG_LINES:]
    text = "\n".join(line for line in lines if line)
    return f"{row['bundle']}, {row['plan']} ({row['target']}): {row['outcome']}.\n\n```\n{text}\n```"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write the result; 3 where no plan ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="*", help="folders of bundles, whose plans are tried")
    parser.add_argument("--arch", help="build this architecture with random weights, and try that")
    parser.add_argument("--model", type=Path, help="build this ONNX file, and try that")
    parser.add_argument("--spec", help="of --model")
    parser.add_argument("--keep", type=Path, help="build into this folder, and leave the bundles there")
    parser.add_argument("--duration", type=float, default=1.0, help="of each timing, seconds")
    parser.add_argument("--small", action="store_true", help="a dry run: timings of 0.02 s")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.small:
        given.duration = 0.02
    if not (given.bundles or given.arch or given.model):
        raise InputError("there is nothing to try", "name bundles, or --arch NAME, or --model FILE.onnx")
    command = command_line(__file__, arguments)
    with Device.open(0, "cuda-bindings") as device:
        record = device_record(device)
    if given.json is not None:
        check_target(given.json, record)

    def keep(content: dict[str, Any]) -> None:
        if given.json is not None:
            write_result(given.json, result("gpu-rtx", record, command, **content))

    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        content = run_tries(given, Path(scratch), partial(print, file=sys.stderr, flush=True), keep)
    keep(content)
    print(tables(result("gpu-rtx", record, command, **content)))
    return 0 if any(row.get("reached") == "done" for row in content["tries"]) else 3


if __name__ == "__main__":
    sys.exit(main())
