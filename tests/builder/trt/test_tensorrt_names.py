"""TensorRT's names that a build uses: each is in TensorRT 10 and in TensorRT for RTX, none is gone in TensorRT 11.

`builder/trt/api.py` has them as protocols. They are compared with the type stubs of TensorRT 10.13 (`make test` installs them
in `stubs/` of the environment; full TensorRT itself installs from NVIDIA's index only) and with the installed
`tensorrt_rtx`; mypy compares the calls with the protocols.
"""

import ast
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from mypy import api as mypy_api

from centernet_trt.builder.trt import api
from centernet_trt.runtime.trt.flavours import load_flavour

ROOT = Path(__file__).parents[3]
STUBS = Path(sys.prefix) / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
# In full TensorRT these are of the plugin module; the build looks for them with hasattr.
FULL_ONLY = {"init_libnvinfer_plugins"}
# These are used where the table of flavours names compute capabilities.
RTX_ONLY = {"num_compute_capabilities", "set_compute_capability", "ComputeCapability", "CURRENT"}
REMOVED = {
    "PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS", "int8_calibrator",
    "IInt8Calibrator", "IInt8EntropyCalibrator", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator",
    "IInt8LegacyCalibrator", "set_calibration_profile", "platform_has_fast_fp16", "platform_has_fast_int8",
    "set_output_type", "dynamic_range", "algorithm_selector", "EXPLICIT_BATCH",
    "max_batch_size", "max_workspace_size", "build_engine", "get_binding_shape", "execute_async_v2", "execute_v2",
}  # fmt: skip
CALLERS = ("plan", "timing_cache")


def members(protocol: type) -> set[str]:
    """Names that a protocol declares, the special methods of Python left out."""
    declared = set(vars(protocol).get("__annotations__", {})) | {
        n for n, v in vars(protocol).items() if inspect.isfunction(v)
    }
    return {name for name in declared if not name.startswith("_")}


def protocols() -> dict[str, type]:
    """Name of a TensorRT class -> the protocol that describes it: by what the module's names are or make, else by its own."""
    described = {n: p for n, p in vars(api).items() if isinstance(p, type) and p.__module__ == api.__name__}
    results = {n: (get_args(hint) or [hint])[-1] for n, hint in get_type_hints(api.TensorRT).items()}
    made = {name: protocol for name, protocol in results.items() if protocol in described.values()}
    others = {api.TensorRT, api.Member, *made.values()}
    return made | {name: protocol for name, protocol in described.items() if protocol not in others}


NAMES = sorted((cls, name) for cls, protocol in protocols().items() for name in members(protocol))
NAMES += sorted(("", name) for name in members(api.TensorRT))


@pytest.fixture(scope="module")
def stubs() -> dict[str, set[str]]:
    """Names defined in each class of the stubs, and those of the module under an empty name."""
    if not STUBS.is_file():
        pytest.skip("the type stubs of TensorRT are not there; `make test` brings them")
    found: dict[str, set[str]] = {"": set()}
    inside = ""
    # Line by line: the stubs hold a signature that Python itself does not parse.
    for line in STUBS.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(?:class|def) (\w+)", line):
            inside = match[1] if line.startswith("class") else ""
            found[""].add(match[1])
            found.setdefault(inside, set())
        elif match := re.match(r"    (?:def )?(\w+)(?:\(|:)", line):
            found[inside].add(match[1])
    return found


def test_the_protocols_cover_what_a_build_uses() -> None:
    assert {"Builder", "OnnxParser", "BuilderFlag", "IBuilderConfig", "ITimingCache", "ParserError"} <= {
        c for c, _ in NAMES
    }
    assert len(NAMES) >= 35


def test_every_name_is_in_tensorrt_10(stubs: dict[str, set[str]]) -> None:
    absent = [
        f"{cls or 'tensorrt'}.{name}"
        for cls, name in NAMES
        if not {cls, name} & (RTX_ONLY | FULL_ONLY) and name not in stubs.get(cls, set())
    ]
    assert not absent


def test_every_name_is_in_tensorrt_for_rtx() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    absent = [
        f"{cls or 'tensorrt_rtx'}.{name}"
        for cls, name in NAMES
        if name not in FULL_ONLY and not hasattr(getattr(trt, cls) if cls else trt, name)
    ]
    assert not absent
    flavour = load_flavour("rtx")
    assert all(hasattr(trt.BuilderFlag, name) for name in flavour.build_flags)
    capabilities = {name for target in flavour.targets.values() for name in target}
    assert capabilities
    assert all(hasattr(trt.ComputeCapability, name) for name in capabilities)


def test_a_misspelt_name_does_not_pass(stubs: dict[str, set[str]]) -> None:
    assert "set_flagg" not in stubs["IBuilderConfig"]
    trt: Any = pytest.importorskip("tensorrt_rtx")
    assert not hasattr(trt.IBuilderConfig, "set_flagg")


def check_types(folder: Path, **sources: str) -> list[str]:
    """What mypy says of copies of the build's files beside the real protocols; other imports are not followed."""
    for name in CALLERS:
        (folder / f"{name}.py").write_text(sources[name], encoding="utf-8")
    shutil.copy(ROOT / "builder" / "trt" / "api.py", folder / "trt_api.py")
    said, failed, _ = mypy_api.run(
        [
            "--config-file=", "--follow-imports=skip", "--ignore-missing-imports", "--python-version=3.11",
            f"--cache-dir={folder / 'cache'}", *(str(folder / f"{name}.py") for name in (*CALLERS, "trt_api")),
        ]
    )  # fmt: skip
    assert not failed
    return [line for line in said.splitlines() if ": error:" in line]


def misspell(source: str, names: set[str]) -> tuple[str, int]:
    """The source with `_misspelt` behind every attribute of these names, and how many there are."""
    lines, count = source.splitlines(keepends=True), 0
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr in names]
    for node in sorted(found, key=lambda n: (n.end_lineno, n.end_col_offset), reverse=True):
        assert node.end_lineno is not None
        line, end = lines[node.end_lineno - 1], node.end_col_offset
        lines[node.end_lineno - 1] = f"{line[:end]}_misspelt{line[end:]}"
        count += 1
    return "".join(lines), count


def test_every_call_of_tensorrt_is_checked_by_mypy(tmp_path: Path) -> None:
    """Misspell each use of a TensorRT name in copies of the files: mypy must find every one, and nothing else.

    One class at a time: what a misspelt call returns has no type, so that names behind it would go unseen.
    """
    folder = ROOT / "builder" / "trt"
    sources = {
        caller: (folder / f"{caller}.py").read_text(encoding="utf-8").replace(api.__name__, "trt_api")
        for caller in CALLERS
    }
    assert check_types(tmp_path, **sources) == []
    total = 0
    for cls in sorted({cls for cls, _ in NAMES}):
        names = {name for one, name in NAMES if one == cls} - {"shape"}  # arrays have shapes, too
        made = {caller: misspell(text, names) for caller, text in sources.items()}
        expected = sum(count for _, count in made.values())
        found = check_types(tmp_path, **{caller: text for caller, (text, _) in made.items()})
        assert len([line for line in found if '_misspelt"' in line]) == expected, "\n".join([cls, *found])
        total += expected
    assert total >= 35


@pytest.mark.parametrize("folder", ["builder", "runtime"])
def test_nothing_that_tensorrt_11_removed_is_used(folder: str) -> None:
    assert not {name for _, name in NAMES} & REMOVED
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 30
    for path in files:
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        assert not names & REMOVED, f"{path.name}: {names & REMOVED}"
