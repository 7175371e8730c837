"""What the scripts here share: the form of a result, and the rule that only a real GPU fills `benchmarks/results/`."""

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.environment import STANDIN_NAME, environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def command_line(script: str, arguments: Sequence[str] | None = None) -> str:
    """The command that a result records: `python benchmarks/SCRIPT ARGUMENTS`."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *given])


def result(kind: str, device: dict[str, Any], command: str, **content: Any) -> dict[str, Any]:
    """The head that every GPU result has, and its content."""
    head = {"schema": 1, "kind": kind, "command": command, "device": device}
    return {**head, **content, "environment": environment().to_json()}


def check_target(path: Path, device: dict[str, Any]) -> None:
    """Keep what no GPU measured out of the folder of results.

    Raises:
        InputError: the path is in `benchmarks/results/` and the device is the stand-in.
    """
    if device["name"] == STANDIN_NAME and path.resolve().is_relative_to(RESULTS):
        raise InputError(
            f"{path} is in the folder of results, and the device {device['name']!r} is no GPU",
            "write a dry run's result elsewhere, with --json",
        )


def write_result(path: Path, data: dict[str, Any]) -> None:
    """Write a result as JSON, whole or not at all, without the names of this machine's folders.

    Raises:
        InputError: see `check_target`; or the file cannot be written.
    """
    check_target(path, data["device"])
    scratch = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(without_folders(json.dumps(data, indent=1)) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def without_folders(text: str) -> str:
    """A text in which the working folder, the folder of temporary files and the home folder are not named."""
    names = {f"{Path.cwd()}/": "", str(Path.cwd()): ".", tempfile.gettempdir(): "TMP", str(Path.home()): "~"}
    for folder, name in names.items():
        if len(folder) > 1:  # "/" is everywhere
            text = text.replace(folder, name)
    return text


def read_json(path: Path) -> Any:
    """A result.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result: {error}", "measure it again") from None


def microseconds(seconds: float) -> str:
    """As text, to a hundredth."""
    return f"{seconds * 1e6:.2f} us"
