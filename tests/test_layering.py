"""The layers of the code: imports run downward only, there is no cycle, and importing the runtime stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "centernet_trt"

# Folder -> the folders that it may import, besides the modules of the package's root.
FOLDERS = {
    "kernels": set[str](),
    "engines": set[str](),
    "calib_data": set[str](),
    "runtime": {"kernels"},
    "evaluation": {"kernels", "runtime"},
    "builder": {"kernels", "runtime", "evaluation", "engines", "calib_data"},
    "cli": {"kernels", "runtime", "evaluation", "builder", "engines", "calib_data"},
}

# Within a folder: layers from the top down, of sub-packages and of files that lie beside them. A member imports from the layers
# below its own. Members of one layer do not import each other, unless the layer is named in TYPES.
LAYERS = {
    "runtime": [
        {"__init__"},
        {"detector"},
        {"select"},
        {"serving", "gpu"},
        {"trt", "inputs"},
        {"tta"},
        {"host"},
        {
            "backend",
            "bundle",
            "detections",
            "fork_guard",
            "geometry",
            "images",
            "manifest",
            "presets",
            "profiles",
            "spec",
        },
        {"cuda"},
    ],
    "builder": [
        {"__init__"},
        {"build", "recipe", "self_check"},
        {"prepare", "pass_list", "preparation", "options", "source"},
        {"export", "fetch", "guess", "trt", "int8"},
        {"passes"},
        {"calibration"},
        {"graph", "profiles", "progress"},
    ],
    "evaluation": [{"model_table"}, {"bench"}, {"accuracy"}, {"tables", "environment"}],
}
# Layers of plain types and options, whose files may import each other (a cycle of files fails all the same).
TYPES = {("runtime", 7), ("builder", 1), ("builder", 2)}


def module_of(path: Path) -> str:
    """The import name of a file of the product."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(("centernet_trt", *(part for part in parts if part != "__init__")))


FILES = {
    module_of(path): path
    for folder in [PACKAGE, *(ROOT / name for name in FOLDERS)]
    for path in sorted(folder.glob("*.py") if folder is PACKAGE else folder.rglob("*.py"))
}


def imports_of(module: str) -> Iterator[str]:
    """Modules of the product that a file imports, at whatever depth of its code, for type checkers included."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else node.module


def place_of(module: str) -> tuple[str, str]:
    """Folder, and the member of it (a sub-package, or a file beside these) that a module belongs to."""
    parts = module.split(".")[1:]
    return (parts[0] if parts else "", parts[1] if len(parts) > 1 else "__init__")


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_between_folders_run_downward(folder: str) -> None:
    own = [module for module in FILES if place_of(module)[0] == folder]
    assert own
    for module in own:
        upward = {place_of(name)[0] for name in imports_of(module)} & FOLDERS.keys() - FOLDERS[folder] - {
            folder
        }
        assert not upward, f"{module} imports from {upward}"


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_between_sub_packages_run_downward(folder: str) -> None:
    layers = {member: number for number, layer in enumerate(LAYERS[folder]) for member in layer}
    members = {place_of(module)[1] for module in FILES if place_of(module)[0] == folder}
    assert members - {"__init__"} == layers.keys() - {"__init__"}, "LAYERS names the members of this folder"
    wrong = []
    for module in FILES:
        if place_of(module)[0] != folder or (here := place_of(module)[1]) not in layers:
            continue
        for name in imports_of(module):
            there = place_of(name)[1]
            if place_of(name)[0] != folder or there == here:
                continue
            free = (folder, layers[here]) in TYPES
            if layers.get(there, -1) < layers[here] + (not free):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_import_cycle() -> None:
    graph = {module: set(imports_of(module)) - {module} for module in FILES}
    # The lazy names of packages are for users: within the product every import names the module that defines.
    while leaves := [module for module, names in graph.items() if not names & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, f"an import cycle is among {sorted(graph)}"


def test_folders_stay_small() -> None:
    for folder in {path.parent for path in FILES.values()}:
        files = [
            path for path in folder.iterdir() if path.is_file() and path.suffix in (".py", ".cu", ".cuh")
        ]
        assert len(files) <= 15, f"{folder.relative_to(ROOT)} has {len(files)} files"  # 14 and __init__


@pytest.mark.parametrize("module", ["centernet_trt", "centernet_trt.runtime", "centernet_trt.cli.app"])
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    heavy = (
        "onnx",
        "tensorrt",
        "tensorrt_rtx",
        "onnxruntime",
        "matplotlib",
        "pycuda",
        "cuda",
        "torch",
        "PIL",
    )
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
