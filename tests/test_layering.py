"""The rooms of the house: imports run downward only, and importing the runtime stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> what it may import of ours, besides errors, version and cache of the package itself.
ALLOWED = {
    "src/centernet_trt": set(),
    "kernels": set(),
    "engines": set(),
    "calib_data": set(),
    "runtime": {"kernels"},
    "evaluation": {"kernels", "runtime"},
    "builder": {"kernels", "runtime", "evaluation", "engines", "calib_data"},
    "cli": {"kernels", "runtime", "evaluation", "builder", "engines", "calib_data"},
}


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports, at whatever depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("centernet_trt.")}
    return rooms & ALLOWED.keys()


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_downward(room: str) -> None:
    # __init__.py of the package itself names what it loads when it is used: tests/test_api.py.
    files = sorted(set((ROOT / room).rglob("*.py")) - {ROOT / "src" / "centernet_trt" / "__init__.py"})
    assert files
    for path in files:
        upward = imports_of(path) - ALLOWED[room] - {room}
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize("module", ["centernet_trt", "centernet_trt.runtime", "centernet_trt.cli.app"])
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    heavy = ("tensorrt", "tensorrt_rtx", "onnxruntime", "matplotlib", "pycuda", "cuda", "torch", "PIL")
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
