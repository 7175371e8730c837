"""What building a bundle of every seed architecture takes: time, sizes and peak memory, on a machine without a GPU.

    python -m centernet_trt.evaluation.build_table --json evaluation/results/builds.json [--arch NAME ...]

Weights are random (the same every time): what a build takes does not depend on them. Each build is a process of its
own, so that its peak memory is its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from centernet_trt.evaluation.environment import environment

ARCHITECTURES = (
    "res_18", "resdcn_18", "resdcn_101", "dla_34", "hourglass", "mmdet_r18", "mmdet_r18_dcnv2",
)  # fmt: skip
PRECISIONS = ("fp32", "fp16", "int8")
_SIZE = ["--batch", "1:1:4", "--height", "256:512:640", "--width", "256:512:640"]


def timed_process(command: list[str]) -> tuple[float, float, int, str]:
    """Run a command; wall seconds, peak resident memory in GiB, exit code, and what it wrote to standard error."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        log.seek(0)
        return seconds, usage.ru_maxrss / 2**20, process.returncode, log.read()


def build_row(arch: str, precision: str, model: Path, folder: Path, extra: list[str]) -> dict[str, Any]:
    """Build one bundle and describe it; a build that fails is a row that says so."""
    target = folder / f"{arch}-{precision}"
    command = [sys.executable, "-m", "centernet_trt.cli", "build", arch, "--model", str(model)]
    command += ["--precision", precision, "--flavour", "rtx", "--output", str(target), *_SIZE, *extra]
    seconds, peak, code, log = timed_process(command)
    row: dict[str, Any] = {"arch": arch, "precision": precision, "seconds": round(seconds, 1)}
    row["peak_gib"] = round(peak, 2)
    if code:
        return row | {"error": log.strip()[-500:]}
    manifest = json.loads((target / "manifest.json").read_text())
    (plan,) = manifest["plans"]
    return row | {
        "plan_seconds": plan["seconds"],
        "plan_mb": round(plan["bytes"] / 1e6, 1),
        "model_mb": round(manifest["model"]["bytes"] / 1e6, 1),
        "tensorrt": f"{plan['flavour']} {plan['version']}",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| architecture | precision | whole build | of it TensorRT | plan | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| `{row['arch']}` | {row['precision']} | failed | | | {row['peak_gib']:.1f} GiB |")
        else:
            lines.append(
                f"| `{row['arch']}` | {row['precision']} | {row['seconds']:.0f} s | {row['plan_seconds']:.1f} s "
                f"| {row['plan_mb']:.0f} MB | {row['peak_gib']:.1f} GiB |"
            )
    return "\n".join(lines)


def main() -> None:
    """Build everything asked for, print the table, and on request write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--calibration", type=Path, help="images for int8; the pictures that ship otherwise")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for arch in options.arch:
        with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
            folder = Path(scratch)
            model = folder / f"{arch}.onnx"
            export = ["export", "--arch", arch, "--random", "--output", str(model)]
            subprocess.run(
                [sys.executable, "-m", "centernet_trt.cli", *export], check=True, capture_output=True
            )
            for precision in options.precision:
                rows.append(build_row(arch, precision, model, folder, int8_arguments(precision, options)))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if options.json is not None:
        result = {"rows": rows, "environment": environment().to_json()}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def int8_arguments(precision: str, options: argparse.Namespace) -> list[str]:
    """The further arguments of an int8 build. No search: with random weights there is no accuracy to keep."""
    if precision != "int8":
        return []
    images = options.calibration or Path(__file__).parents[1] / "calib_data"
    return ["--calibration", str(images), "--every-layer"]


if __name__ == "__main__":
    main()
