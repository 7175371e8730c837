"""What building a bundle of every seed architecture takes: time, sizes and peak memory, on a machine without a GPU.

    python benchmarks/build_table.py --json benchmarks/results/builds.json [--arch NAME ...]

Weights are random (the same every time): what a build takes does not depend on them. Each build is a process of its
own, so that its peak memory is its own. Rows that the file has already are kept, those measured again are replaced.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.environment import environment

__all__ = ["ARCHITECTURES", "PRECISIONS", "Measured", "build_row", "build_table", "merged", "timed_process"]

ARCHITECTURES = (
    "res_18", "res_34", "res_50", "res_101", "resdcn_18", "resdcn_101", "dla_34", "hourglass", "mmdet_r18",
    "mmdet_r18_dcnv2",
)  # fmt: skip
PRECISIONS = ("fp32", "fp16", "int8")
SIZE = ("--batch", "1:1:4", "--height", "256:512:640", "--width", "256:512:640")
"""Of every build; in the table's own words in `build_table`."""
_CALIBRATION = "calib_data"


@dataclass(frozen=True)
class Measured:
    """What a process took.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time of all its threads: what other work on the machine lengthens least.
        peak_gib: largest resident memory, in GiB; where it is less than what this process has, that.
        code: its exit code.
        log: what it wrote to standard error.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    code: int
    log: str


def timed_process(command: list[str]) -> Measured:
    """Run a command to its end; its standard output is dropped."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        log.seek(0)
        text = log.read()
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(seconds, cpu, usage.ru_maxrss / 2**20, process.returncode, text)


def build_row(arch: str, precision: str, model: Path, folder: Path, extra: list[str]) -> dict[str, Any]:
    """Build one bundle into `folder` and describe it; a build that fails is a row that says so."""
    target = folder / f"{arch}-{precision}"
    command = [sys.executable, "-m", "centernet_trt.cli", "build", arch, "--model", str(model)]
    command += ["--precision", precision, "--flavour", "rtx", "--output", str(target), *SIZE, *extra]
    load = os.getloadavg()[0]
    took = timed_process(command)
    row: dict[str, Any] = {"arch": arch, "precision": precision, "seconds": round(took.seconds, 1)}
    row |= {"cpu_seconds": round(took.cpu_seconds, 1), "peak_gib": round(took.peak_gib, 2)}
    # Runnable processes in the minute before: 0 where nothing else worked.
    row["load_before"] = round(load, 1)
    if took.code:
        return row | {"error": took.log.strip()[-500:].replace(f"{folder}/", "")}
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    (plan,) = manifest["plans"]
    row |= {
        "plan_seconds": round(plan["seconds"], 2),
        "plan_mb": round(plan["bytes"] / 1e6, 1),
        "model_mb": round(manifest["model"]["bytes"] / 1e6, 1),
        "tensorrt": f"{plan['flavour']} {plan['version']}",
    }
    if (calibration := manifest["calibration"]) is not None:
        row |= {"images": calibration["images"], "int8_share": round(calibration["int8_share"], 4)}
    return row


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of both, in the table's order; `new` replaces what was measured before."""
    rows = {(row["arch"], row["precision"]): row for row in (*old, *new)}
    order = {key: place for place, key in enumerate((a, p) for a in ARCHITECTURES for p in PRECISIONS)}
    return [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]


def build_table(result: dict[str, Any]) -> str:
    """The measurements as Markdown: a table, and below it how they came about."""
    rows, machine = result["rows"], result["environment"]
    lines = [
        "| architecture | precision | whole build, wall | processor time | of it TensorRT, wall | plan | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    shares = [row["int8_share"] for row in rows if "int8_share" in row]
    versions = sorted({row["tensorrt"] for row in rows if "tensorrt" in row})
    loads = [row["load_before"] for row in rows]
    said = [
        f"{', '.join(versions)}; {machine['cpu']}, {machine['cores']} cores, no GPU. {' '.join(SIZE)}; random weights.",
        f"The machine was shared: before a build, {min(loads)} to {max(loads)} processes were running or waiting "
        + "(load average), so wall times are upper bounds.",
        "Whole build: everything that `centernet-trt build` does, with reading, checks and the comparison with the source.",
        "Peak: resident memory of that process, TensorRT's own included.",
    ]
    if shares:
        images = sorted({row["images"] for row in rows if "images" in row})
        said += [
            f"int8: `--calibration {_CALIBRATION}` ({' or '.join(map(str, images))} images), `--every-layer`, so "
            + f"without the search; {min(shares):.1%} to {max(shares):.1%} of the multiply-adds are int8."
        ]
    said.append("The plans were built, not run: there was no GPU.")
    return "\n".join(lines) + "\n\n" + "\n".join(said) + "\n"


def _line(row: dict[str, Any]) -> str:
    start = f"| `{row['arch']}` | {row['precision']} | "
    if "error" in row:
        return f"{start}failed | | | | {row['peak_gib']:.1f} GiB |"
    return (
        f"{start}{row['seconds']:.0f} s | {row['cpu_seconds']:.0f} s | {row['plan_seconds']:.1f} s "
        f"| {row['plan_mb']:.1f} MB | {row['peak_gib']:.1f} GiB |"
    )


def int8_arguments(precision: str, calibration: Path | None) -> list[str]:
    """The further arguments of an int8 build. No search: with random weights there is no accuracy to keep."""
    if precision != "int8":
        return []
    images = calibration or Path(__file__).parents[1] / _CALIBRATION
    return ["--calibration", str(images), "--every-layer"]


def measure(arch: str, precisions: list[str], calibration: Path | None) -> list[dict[str, Any]]:
    """Export one architecture with random weights and build it in every precision; prints each row."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        folder = Path(scratch)
        model = folder / f"{arch}.onnx"
        export = ["export", "--arch", arch, "--random", "--output", str(model)]
        exported = timed_process([sys.executable, "-m", "centernet_trt.cli", *export])
        if exported.code:
            raise InputError(
                f"`centernet-trt export --arch {arch}` failed: {exported.log.strip()[-500:]}",
                f"the architectures are {', '.join(ARCHITECTURES)}",
            )
        for precision in precisions:
            rows.append(build_row(arch, precision, model, folder, int8_arguments(precision, calibration)))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Build everything asked for, print the table, and on request write the rows after each architecture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--calibration", type=Path, help="images for int8 (default: those that ship)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"rows": [], "environment": environment().to_json()}
    if options.json is not None and options.json.is_file():
        result["rows"] = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    for arch in options.arch:
        rows = measure(arch, options.precision, options.calibration)
        result["rows"] = merged(result["rows"], rows)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(build_table(result))


if __name__ == "__main__":
    main()
