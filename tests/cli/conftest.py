"""Runs commands as a user does, and gives them images."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from helpers.tiny_centernet import scene

from centernet_trt.cli import app


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error with its white space as single spaces, since lines break by the width of the terminal.
    """

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """A function that runs a command, given its words."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["centernet-trt", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, " ".join(printed.err.split()))

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in {"a.png": scene(), "b.jpg": scene(70, 100)}.items():
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
    return folder
