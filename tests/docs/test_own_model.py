"""docs/own-model.md: its code and commands, run in order in processes of their own, where PyTorch is installed."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from centernet_trt.builder.guess.names import WORDS
from centernet_trt.runtime.presets import read_spec

PAGE = Path(__file__).parents[2] / "docs" / "own-model.md"
SKIPPED = ("centernet-trt eval",)  # needs annotated images


def blocks(*languages: str) -> list[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    return [found for found in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if found[0] in languages]


def call(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def command(line: str, folder: Path) -> str:
    return call([sys.executable, "-m", "centernet_trt.cli", *shlex.split(line)[1:]], folder)


def test_the_spec_is_valid(tmp_path: Path) -> None:
    ((_, text),) = blocks("toml")
    (tmp_path / "my_model.toml").write_text(text)
    spec = read_spec(str(tmp_path / "my_model.toml"))
    assert spec.class_names == ("cell", "nucleus", "debris")
    assert spec.input.channel_order == "rgb"


def test_the_table_has_the_words_of_the_guess() -> None:
    rows = {
        kind: next(
            line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {kind} |")
        )
        for kind in WORDS
    }
    for kind, words in WORDS.items():
        for word in words:
            singular = word.removesuffix("s")
            assert f"`{word}`" in rows[kind] or f"`{singular}(s)`" in rows[kind], word


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; the page exports a PyTorch model")
    python: list[str] = []
    printed = ""
    for language, code in blocks("python", "sh", "toml"):
        if language == "toml":
            (tmp_path / "my_model.toml").write_text(code)
        elif language == "python":
            # A later block goes on with the names of the earlier ones.
            python.append(code)
            printed += call([sys.executable, "-c", "\n".join(python)], tmp_path)
        else:
            for line in code.splitlines():
                if not line.startswith(SKIPPED):
                    printed += command(line, tmp_path)
    ((_, shown),) = blocks("text")
    assert shown in printed
    detector, by_hand = (
        re.search(rf"^{who}(\w+) \[(.*?)\]", printed, re.MULTILINE | re.DOTALL)
        for who in ("detector: ", "by hand:  ")
    )
    assert detector is not None
    assert by_hand is not None
    assert ["cell", "nucleus", "debris"].index(detector[1]) == int(by_hand[1])
    boxes = [np.array(found[2].split(), dtype=float) for found in (detector, by_hand)]
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.1)  # fp16 heads
