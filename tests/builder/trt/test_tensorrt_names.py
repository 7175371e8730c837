"""The TensorRT names that a build uses exist in full TensorRT 10, and none of them is gone in 11.

The stubs of TensorRT 10.13 come with `make test` (`stubs/` of the environment, a package of type stubs alone: full TensorRT itself installs
from NVIDIA's index only). Of what 11 removed, the list holds what a builder or a runtime of this kind would use.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Where a build calls TensorRT, and how many calls must be found there at least.
CALLERS = {ROOT / "builder" / "trt" / "plan.py": 16, ROOT / "builder" / "trt" / "timing_cache.py": 3}
STUBS = Path(sys.prefix) / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
# The names of variables and attributes there, and what TensorRT calls their classes.
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "optimisation": "IOptimizationProfile",
    "error": "ParserError",
    "_config": "IBuilderConfig",
    "cache": "ITimingCache",
}
# Only TensorRT for RTX has these; they are used where its table names compute capabilities.
RTX_ONLY = {"num_compute_capabilities", "set_compute_capability", "ComputeCapability"}
REMOVED = {
    "PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS", "int8_calibrator",
    "IInt8Calibrator", "IInt8EntropyCalibrator", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator",
    "IInt8LegacyCalibrator", "set_calibration_profile", "platform_has_fast_fp16", "platform_has_fast_int8",
    "set_output_type", "dynamic_range", "algorithm_selector", "EXPLICIT_BATCH",
    "max_batch_size", "max_workspace_size", "build_engine", "get_binding_shape", "execute_async_v2", "execute_v2",
}  # fmt: skip


REMOVED_FLAGS = {"FP16", "INT8", "BF16", "FP8"}  # of BuilderFlag; DataType and others have these names still


def attributes(path: Path) -> list[tuple[str, str]]:
    """(variable, attribute) of every access `variable.attribute` or `self.variable.attribute` in a file."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)]
    plain = [(node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name)]
    return plain + [(node.value.attr, node.attr) for node in nodes if isinstance(node.value, ast.Attribute)]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
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


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.name)
def test_every_name_is_in_tensorrt_10(known: dict[str, set[str]], path: Path) -> None:
    used = [(v, a) for v, a in attributes(path) if a not in RTX_ONLY]
    checked = 0
    for variable, attribute in used:
        if variable in CLASSES:
            assert attribute in known[CLASSES[variable]], f"{CLASSES[variable]}.{attribute}"
            checked += 1
        elif variable == "trt":
            # init_libnvinfer_plugins is a function of the plugin module, and is asked for with hasattr.
            assert attribute in known[""] | {"init_libnvinfer_plugins"}, attribute
            checked += 1
    assert checked >= CALLERS[path]
    assert "STRONGLY_TYPED" in known["NetworkDefinitionCreationFlag"]
    assert "TF32" in known["BuilderFlag"]


@pytest.mark.parametrize("room", ["builder", "runtime"])
def test_nothing_that_tensorrt_11_removed_is_used(room: str) -> None:
    for path in sorted((ROOT / room).glob("*.py")):
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        assert not names & REMOVED, f"{path.name}: {names & REMOVED}"
