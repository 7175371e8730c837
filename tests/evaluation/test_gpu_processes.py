"""Commands with a time limit: every way to end is told, and nothing stays behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from centernet_trt.evaluation.gpu.processes import run_limited


def python(code: str, limit: float = 60, **options: object) -> "tuple[str, int | None, str]":
    found = run_limited([sys.executable, "-c", code], limit, **options)  # type: ignore[arg-type]
    return found.word, found.code, found.tail


def test_done_with_both_streams_and_a_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    code = "import os, sys; print(os.environ['COLOUR']); sys.stdout.flush(); print('told', file=sys.stderr)"
    word, status, tail = python(code, log=log, environment={"COLOUR": "green"})
    assert (word, status) == ("done", 0)
    assert tail == log.read_text() == "green\ntold\n"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.abort()", "crashed: SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "crashed: SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), 9)", "crashed: SIGKILL"),
    ],
)
def test_ways_to_fail(code: str, word: str) -> None:
    assert python(code)[0] == word


def test_only_the_end_is_kept() -> None:
    tail = python("print('x' * 100000); print('the end')")[2]
    assert tail.endswith("the end\n")
    assert len(tail) < 10000


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_limit_ends_children_too_even_those_that_do_not_listen(tmp_path: Path) -> None:
    code = f"""
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
print("started", flush=True)
time.sleep(600)
"""
    word, status, tail = python(code, limit=2.0)
    assert word.startswith("timed out after ")
    assert status is None
    assert tail == "started\n"
    child = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)
    assert child != os.getpid()
