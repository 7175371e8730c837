"""Does TensorRT for RTX run on this GPU, and what do its engines become there?

    python -m centernet_trt.evaluation.gpu.rtx --json evaluation/results/gpu-rtx.json [BUNDLE ...] [--arch res_18]

Every plan of the bundles given is tried; with `--arch` or `--model`, plans of every precision are built first: portable,
`sm_80`, and `current`, which is built on this GPU. Each build and each try is a process of its own with a time limit, so that a
crash or a hang is recorded and the next one goes on. Where nothing runs, the network runs in ONNX Runtime on the host and the rest
on the GPU (`mixed`).
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.evaluation.gpu.machine import check_target, device_record, result, write_result
from centernet_trt.evaluation.gpu.processes import Outcome, run_limited
from centernet_trt.evaluation.gpu.rtx_tables import tables
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.driver import Device

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("portable", "sm_80", "current")
_BATCHES = ("--batch", "1:1:8")
_MODULE = "centernet_trt.evaluation.gpu"
_WHERE = {"PYTHONFAULTHANDLER": "1"}
"""A process that crashes says where."""
Tell = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Limits:
    """Seconds: for a build, a try, and the timing inside a try."""

    build: float = 240.0
    attempt: float = 120.0
    duration: float = 1.0


def build_all(
    model: Sequence[str],
    folder: Path,
    precisions: Sequence[str],
    calibration: Path,
    limits: Limits,
    tell: Tell,
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Build bundles with the `build` command -> a row for each build, and the folders of those that were built.

    Args:
        model: what follows `build`: the ONNX file and options that go with it.
        folder: for the bundles.
        precisions: of `PRECISIONS`.
        calibration: images for int8.
        limits: of time.
        tell: hears what is being done.
    """
    rows, built = [], []
    for precision in precisions:
        # What needs a GPU is built apart: where it fails, the others are there all the same.
        for targets in (TARGETS[:2], TARGETS[2:]):
            output = folder / f"{precision}-{targets[0]}"
            command = [sys.executable, "-m", "centernet_trt.cli", "build", *model, *_BATCHES]
            command += ["--precision", precision, "--flavour", "rtx", "--target", ",".join(targets)]
            command += ["--output", str(output)]
            if precision == "int8":  # no search: what is asked is whether it runs, and how fast
                command += ["--calibration", str(calibration), "--every-layer"]
            tell(f"build {precision} for {', '.join(targets)}")
            outcome = run_limited(command, limits.build, environment=_WHERE)
            rows.append({"precision": precision, "targets": list(targets), **_told(outcome)})
            if outcome.code == 0:
                built.append(output)
    return rows, built


def try_bundle(path: Path, folder: Path, limits: Limits, tell: Tell) -> list[dict[str, Any]]:
    """Try every plan of a bundle, and the network at batch 8 too where the engine takes that -> a row each."""
    bundle = EngineBundle.load(path)
    manifest = bundle.manifest
    rows = []
    for plan in manifest.plans:
        for batch in (1, 8):
            if batch not in manifest.profile.batch:
                continue
            tell(f"try {manifest.name}/{plan.file}, batch {batch}")
            record = folder / f"{len(list(folder.iterdir()))}.json"
            command = [sys.executable, "-m", f"{_MODULE}.rtx_try", str(path), plan.file]
            command += ["--json", str(record), "--batch", str(batch), "--duration", str(limits.duration)]
            outcome = run_limited(command, limits.attempt, environment=_WHERE)
            reached: dict[str, Any] = {}
            if record.is_file():
                reached = json.loads(record.read_text(encoding="utf-8"))
            rows.append(
                {
                    "bundle": manifest.name,
                    "plan": plan.file,
                    "flavour": plan.flavour,
                    "version": plan.version,
                    "target": plan.target,
                    "precision": manifest.precision,
                    "source": manifest.source.sha256[:12],
                    "batch": batch,
                    **_told(outcome),
                    **reached,
                }
            )
            if rows[-1].get("reached") != "done":
                break  # a larger batch would not do better
    return rows


def _told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data; what a command wrote is kept where it did not end well."""
    found: dict[str, Any] = {"outcome": outcome.word, "wall_seconds": round(outcome.seconds, 3)}
    return found if outcome.code == 0 else found | {"output": outcome.tail}


def mixed(path: Path, folder: Path, limits: Limits, tell: Tell) -> dict[str, Any]:
    """The network on the host and the rest on the GPU, with one bundle."""
    tell(f"kernels on the GPU around {path.name} in ONNX Runtime")
    record = folder / "mixed.json"
    command = [sys.executable, "-m", f"{_MODULE}.mixed", str(path), "--json", str(record)]
    outcome = run_limited([*command, "--duration", str(limits.duration)], limits.attempt)
    found = _told(outcome)
    if record.is_file():
        content = json.loads(record.read_text(encoding="utf-8"))
        found |= {key: content[key] for key in ("bundle", "images", "grey_levels", "note", "stages")}
    return found


def run_tries(given: argparse.Namespace, folder: Path, tell: Tell, keep: Keep) -> dict[str, Any]:
    """Try what is there, exercise the mixture, then build and try -> `builds`, `tries`, `mixed`, `notes`.

    Args:
        given: the command line.
        folder: for scratch files.
        tell: hears what is being done.
        keep: given the content so far after every bundle, should this process be ended before its time.
    """
    limits = Limits(given.build_limit, given.try_limit, given.duration)
    found: dict[str, Any] = {"builds": [], "tries": [], "mixed": {}, "notes": []}
    records = folder / "tries"
    records.mkdir()

    def attempt_all(paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                found["tries"] += try_bundle(path, records, limits, tell)
            except CenterNetError as error:
                found["notes"].append(f"{path.name}: {error.message}")
            keep(found)
        if paths and not found["mixed"]:
            found["mixed"] = mixed(paths[0], folder, limits, tell)
            keep(found)

    attempt_all(given.bundles)
    model = _model(given, folder, limits, found["notes"], tell)
    bundles = given.keep or folder / "bundles"
    for precision in given.precisions if model else ():
        bundles.mkdir(parents=True, exist_ok=True)
        rows, built = build_all(model, bundles, [precision], given.calibration, limits, tell)
        found["builds"] += rows
        attempt_all(built)
    if not any(row.get("reached") == "done" for row in found["tries"]):
        found["notes"].append("no plan ran here: the network ran in ONNX Runtime only")
    return found


def _model(
    given: argparse.Namespace, folder: Path, limits: Limits, notes: list[str], tell: Tell
) -> list[str]:
    """What to build: the file that was given, or one of random weights; nothing where neither was asked for."""
    if given.model is not None:
        return [str(given.model), *(["--spec", given.spec] if given.spec else [])]
    if not given.arch:
        return []
    target = folder / f"{given.arch}.onnx"
    tell(f"export {given.arch} with random weights")
    command = [sys.executable, "-m", "centernet_trt.cli", "export", "--arch", given.arch, "--random"]
    outcome = run_limited([*command, "--output", str(target)], limits.build)
    if outcome.code != 0:
        notes.append(f"{given.arch} was not exported ({outcome.word}): {outcome.tail.strip()[-300:]}")
        return []
    return [given.arch, "--model", str(target)]


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
    parser.add_argument(
        "--calibration", type=Path, default=Path(__file__).parents[2] / "calib_data", help="images for int8"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--build-limit", type=float, default=Limits.build, help="seconds")
    parser.add_argument("--try-limit", type=float, default=Limits.attempt, help="seconds")
    parser.add_argument("--duration", type=float, default=Limits.duration, help="of each timing, seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not (given.bundles or given.arch or given.model):
        raise InputError("there is nothing to try", "name bundles, or --arch NAME, or --model FILE.onnx")
    words = ["python", "-m", f"{_MODULE}.rtx", *(arguments or sys.argv[1:])]
    with Device.open(0, "cuda-bindings") as device:
        record = device_record(device)
    if given.json is not None:
        check_target(given.json, record)

    def whole(content: dict[str, Any]) -> dict[str, Any]:
        return result("gpu-rtx", record, shlex.join(words), **content)

    def keep(content: dict[str, Any]) -> None:
        if given.json is not None:
            write_result(given.json, whole(content))

    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        tell = partial(print, file=sys.stderr, flush=True)
        content = run_tries(given, Path(scratch), tell, keep)
    keep(content)
    print(tables(whole(content)))
    return 0 if any(row.get("reached") == "done" for row in content["tries"]) else 3


if __name__ == "__main__":
    sys.exit(main())
