"""All that is to be tested or measured on a GPU, step by step: `make gpu-test` and `make gpu-bench`.

    python -m centernet_trt.evaluation.gpu.steps test  [--steps kernels,driver] [--output DIR]
    python -m centernet_trt.evaluation.gpu.steps bench [--steps kernels,rtx] [--output DIR]

Each step is a process of its own with its own time limit; one that fails does not stop the others, and what failed is
listed at the end. `--budget` is the time for all of them together.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.gpu.bench_steps import steps_of_bench
from centernet_trt.evaluation.gpu.machine import (
    check_target,
    device_label,
    device_record,
    result,
    write_result,
)
from centernet_trt.evaluation.gpu.processes import run_limited
from centernet_trt.evaluation.gpu.step import Step
from centernet_trt.evaluation.gpu.test_steps import read_junit, steps_of_tests
from centernet_trt.evaluation.tables import Table, text_table
from centernet_trt.runtime.driver import Device

RESULTS = Path("evaluation/results")
SCRATCH = Path("build/gpu")
_LEAST = 10.0
"""Seconds below which a step is not started."""


@dataclass(frozen=True)
class Plan:
    """The steps of a command, where their logs go, and the seconds for all of them (None: no limit)."""

    steps: Sequence[Step]
    logs: Path
    budget: float | None


def chosen(steps: Sequence[Step], names: str | None) -> list[Step]:
    """The steps of these names, separated by commas or spaces; all where none is named.

    Raises:
        InputError: a name that is no step's.
    """
    if not names:
        return list(steps)
    known = {step.name: step for step in steps}
    asked = names.replace(",", " ").split()
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"there is no step {unknown[0]!r}", f"the steps are: {', '.join(known)}")
    return [known[name] for name in asked]


def run_steps(
    plan: Plan,
    tell: Callable[[str], None] = print,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the steps one after the other -> a row each: outcome, seconds, tests where there are any.

    Args:
        plan: what to run.
        tell: hears what is being done.
        keep: given the rows so far after every step, should this process be ended before its time.
    """
    began, rows = time.monotonic(), []
    for step in plan.steps:
        left = None if plan.budget is None else plan.budget - (time.monotonic() - began)
        limit = step.limit if left is None else min(step.limit, left)
        row: dict[str, Any] = {"step": step.name, "limit": round(limit, 1)}
        rows.append(row)
        if step.why_not:
            row |= {"outcome": f"left out: {step.why_not}", "good": True}
        elif limit < _LEAST:
            row |= {"outcome": "not started: no time was left", "good": False}
        else:
            command = step.command()
            tell(f"== {step.name}, at most {limit:.0f} s: {shlex.join(command)}")
            outcome = run_limited(command, limit, plan.logs / f"{step.name}.log", echo=True)
            good = outcome.code == 0
            row |= {"outcome": outcome.word, "good": good, "seconds": round(outcome.seconds, 1)}
            if not good:
                row["output"] = outcome.tail
            if step.junit is not None and step.junit.is_file():
                row |= read_junit(step.junit)
        tell(f"== {step.name}: {row['outcome']}")
        if keep is not None:
            keep(rows)
    return rows


def earlier_rows(path: Path, device: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an earlier run with other steps left in the file, on the same kind of device."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(found["rows"]) if found.get("device", {}).get("name") == device["name"] else []


def steps_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The steps and how they ended."""
    shown = []
    for row in rows:
        tests = "-"
        if "passed" in row:
            tests = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
        shown.append((row["step"], row["outcome"], f"{row.get('seconds', 0):.1f} s", tests))
    return text_table("Steps", ("step", "outcome", "time", "tests"), shown)


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What failed, a line each: steps, and tests by name."""
    found = []
    for row in rows:
        if not row["good"]:
            found.append(f"{row['step']}: {row['outcome']}")
        found += [f"{row['step']}: {name}" for name in row.get("failures", ())]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command's steps; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("test", "bench"))
    parser.add_argument("--steps", help="only these, separated by commas")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"[default: {RESULTS}]")
    parser.add_argument("--budget", type=float, help="seconds for all steps together")
    parser.add_argument("--bundles", type=Path, nargs="*", default=[], help="besides those in engines/")
    parser.add_argument(
        "--images", type=Path, help="for the benchmark of bundles; the pictures that ship otherwise"
    )
    parser.add_argument("--calls", type=int, default=100_000, help="of the soak")
    parser.add_argument("--small", action="store_true", help="sizes for a dry run")
    given = parser.parse_args(arguments)
    output = given.output
    with Device.open(0, "cuda-bindings") as device:
        record = device_record(device)
    check_target(output, record)
    # Logs and pages are no results: what is committed is the JSON.
    beside = SCRATCH if output == RESULTS else output
    for folder in (output, beside):
        folder.mkdir(parents=True, exist_ok=True)
    if given.what == "test":
        steps = steps_of_tests(beside, given.small)
    else:
        steps = steps_of_bench(output, beside, given.bundles, given.images, given.calls, given.small)
    plan = Plan(chosen(steps, given.steps), beside / "logs", given.budget)
    words = ["python", "-m", "centernet_trt.evaluation.gpu.steps", *(arguments or sys.argv[1:])]
    target = output / f"gpu-{given.what}-steps.json"
    names = {step.name for step in plan.steps}
    kept = [row for row in earlier_rows(target, record) if row["step"] not in names]

    def keep(rows: list[dict[str, Any]]) -> None:
        found = result(f"gpu-{given.what}-steps", record, shlex.join(words), rows=[*kept, *rows])
        write_result(target, found)

    rows = run_steps(plan, lambda text: print(text, flush=True), keep)
    print(f"\nDevice: {device_label(record)}\n\n{steps_table(rows).markdown()}\n")
    failed = failures(rows)
    print("\n".join(["Failed:", *failed]) if failed else "Nothing failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
