"""The runner of `make gpu-test` and `make gpu-bench`: limits, failures, what is kept; and the script around both."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from centernet_trt.errors import InputError
from centernet_trt.evaluation.gpu.bench_steps import bundles_at_hand, steps_of_bench
from centernet_trt.evaluation.gpu.step import Step
from centernet_trt.evaluation.gpu.steps import Plan, chosen, earlier_rows, failures, run_steps, steps_table
from centernet_trt.evaluation.gpu.test_steps import read_junit, steps_of_tests

ROOT = Path(__file__).parents[2]


def step(name: str, code: str, limit: float = 60.0, **over: Any) -> Step:
    return Step(name, partial(list, [sys.executable, "-c", code]), limit, **over)


def run(tmp_path: Path, steps: list[Step], budget: float | None = None) -> dict[str, dict[str, Any]]:
    rows = run_steps(Plan(steps, tmp_path / "logs", budget), lambda text: None)
    return {row["step"]: row for row in rows}


JUNIT = """<testsuites><testsuite name="pytest">
<testcase name="good"/>
<testcase name="bad[1]"><failure message="no"/></testcase>
<testcase name="broken"><error message="no"/></testcase>
<testcase name="a"><skipped message="no torch"/></testcase>
<testcase name="b"><skipped message="no torch"/></testcase>
</testsuite></testsuites>"""


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("centernet_trt.evaluation.gpu.steps._LEAST", 0.1)
    junit = tmp_path / "t.xml"
    told = f"open({str(junit)!r}, 'w').write({JUNIT!r}); raise SystemExit(1)"
    rows = run(
        tmp_path,
        [
            step("crash", "import os; print('before'); import sys; sys.stdout.flush(); os.abort()"),
            step("hang", "import time; time.sleep(600)", limit=1.0),
            step("tests", told, junit=junit),
            step("absent", "raise SystemExit(9)", why_not="it is not installed"),
            step("good", "print('fine')"),
        ],
    )
    assert {name: row["outcome"].split(" after")[0] for name, row in rows.items()} == {
        "crash": "crashed: SIGABRT",
        "hang": "timed out",
        "tests": "exit code 1",
        "absent": "left out: it is not installed",
        "good": "done",
    }
    assert rows["crash"]["output"].startswith("before")
    assert "output" not in rows["good"]
    assert (tmp_path / "logs" / "good.log").read_text() == "fine\n"
    assert (rows["tests"]["passed"], rows["tests"]["failed"], rows["tests"]["skipped"]) == (1, 2, 2)
    failed = failures(list(rows.values()))
    assert failed[0] == "crash: crashed: SIGABRT"
    assert failed[-2:] == ["tests: bad[1]", "tests: broken"]
    assert not any(line.startswith(("absent", "good")) for line in failed)
    assert "| tests | exit code 1 |" in steps_table(list(rows.values())).markdown()


def test_the_budget_is_for_all_of_them(tmp_path: Path) -> None:
    rows = run(tmp_path, [step("first", "pass"), step("late", "pass")], budget=5.0)
    assert all(row["outcome"] == "not started: no time was left" for row in rows.values())
    assert len(failures(list(rows.values()))) == 2
    rows = run(tmp_path, [step("first", "pass", limit=900)], budget=100.0)
    assert rows["first"]["outcome"] == "done"
    assert 99 < rows["first"]["limit"] <= 100


def test_a_command_is_asked_for_when_its_turn_has_come(tmp_path: Path) -> None:
    made = tmp_path / "made"
    late = Step("late", lambda: [sys.executable, "-c", f"raise SystemExit({int(not made.exists())})"], 60)
    rows = run(tmp_path, [step("early", f"open({str(made)!r}, 'w')"), late])
    assert rows["late"]["outcome"] == "done"


def test_steps_are_chosen_by_name() -> None:
    steps = [step(name, "") for name in "abc"]
    assert [found.name for found in chosen(steps, "c, a")] == ["c", "a"]
    assert chosen(steps, None) == chosen(steps, "") == steps
    with pytest.raises(InputError, match="no step 'x'") as caught:
        chosen(steps, "a,x")
    assert "a, b, c" in caught.value.hint


def test_rows_of_other_steps_are_kept_from_the_same_device_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert earlier_rows(path, {"name": "A"}) == []
    path.write_text(json.dumps({"device": {"name": "A"}, "rows": [{"step": "one"}]}))
    assert earlier_rows(path, {"name": "A"}) == [{"step": "one"}]
    assert earlier_rows(path, {"name": "B"}) == []
    path.write_text("{")
    assert earlier_rows(path, {"name": "A"}) == []


def test_every_device_test_is_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    steps = {found.name: found for found in steps_of_tests(tmp_path, False)}
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files <= steps.keys()
    assert steps["racecheck"].why_not == "compute-sanitizer is not installed"
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    for found in steps_of_tests(tmp_path, False)[-3:]:
        assert not found.why_not
        assert list(found.command())[:3] == ["/opt/compute-sanitizer", "--tool", found.name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no folder tests"):
        steps_of_tests(tmp_path, False)


def test_what_the_sanitizers_run_is_there() -> None:
    selected = steps_of_tests(Path("x"), False)[-1].command() if (Path.cwd() / "tests").is_dir() else []
    if not selected:
        pytest.skip("not run in the repository")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *list(selected)[-3:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for test in ("test_order_and_ties[100-float16-noise]", "test_preprocess[", "test_a_captured_graph"):
        assert test in done.stdout


def test_bundles_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"

    def commands() -> dict[str, list[str]]:
        steps = steps_of_bench(output, output, [], None, 7)
        return {found.name: list(found.command()) for found in steps}

    # With none, the step `rtx` builds some, which the later steps find.
    assert "--arch" in commands()["rtx"]
    for folder in ("build/gpu/bundles/fp16-portable", "build/gpu/bundles/fp16-current"):
        Path(folder).mkdir(parents=True)
        Path(folder, "manifest.json").write_text("{}")
    assert bundles_at_hand([]) == [Path("build/gpu/bundles/fp16-portable")]
    assert "build/gpu/bundles/fp16-portable" in commands()["bench-warm"]
    assert "build/gpu/bundles/fp16-portable" not in commands()["rtx"]  # it would build over them
    Path("engines/mine").mkdir(parents=True)
    Path("engines/mine/manifest.json").write_text("{}")
    assert bundles_at_hand([Path("given")]) == [Path("given"), Path("engines/mine")]
    found = commands()
    assert "--arch" in found["rtx"]
    assert "engines/mine" in found["bench-warm"]
    assert found["bench-warm"][found["bench-warm"].index("--backend") + 1] == "tensorrt"
    assert "build/gpu/bundles/fp16-portable" not in found["soak"]


def test_a_report_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<broken")
    with pytest.raises(InputError, match="JUnit"):
        read_junit(tmp_path / "x.xml")


def wheel(path: Path) -> None:
    """A wheel of one module."""
    about = "carried-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("carried_module.py", "ANSWER = 42\n" + "# padding\n" * 500)
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")


def test_the_script_joins_and_installs_carried_wheels(tmp_path: Path) -> None:
    if subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this Python has no pip")
    (tmp_path / "evaluation" / "gpu").mkdir(parents=True)
    shutil.copy(ROOT / "evaluation" / "gpu" / "all.sh", tmp_path / "evaluation" / "gpu")
    carried = tmp_path / ".whl"
    carried.mkdir()
    wheel(tmp_path / "carried-1.0-py3-none-any.whl")
    content = (tmp_path / "carried-1.0-py3-none-any.whl").read_bytes()
    cut = len(content) // 3 + 1
    for part in range(3):
        name = f"carried-1.0-py3-none-any.whl.part-{part:02d}"
        (carried / name).write_bytes(content[part * cut : (part + 1) * cut])
    done = subprocess.run(
        ["sh", "evaluation/gpu/all.sh"],
        env=os.environ
        | {"WHEELS": ".whl", "PYTHON": sys.executable, "TEST": "none", "BENCH": "none", "OUT": "out"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "carried_module.py" in os.listdir(tmp_path / "build" / "gpu" / "site")
    assert (tmp_path / "out" / "gpu-results.tar.gz").is_file()
