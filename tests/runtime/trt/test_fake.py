"""The fake of TensorRT against the real module and against the type stubs: every name, method and parameter exists there."""

import ast
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import fake_tensorrt

# Of the fake's own making, or read through a protocol of Python's.
OWN = {"IHostMemory", "__version__", "flavour"}
Members = dict[str, set[str] | None]
"""Member -> the parameters that its overloads take, by name; None for a property or an enumerator."""


def parameters_in(doc: str, name: str) -> set[str]:
    """Parameters of all overloads that pybind11 lists in a docstring."""
    found: set[str] = set()
    for arguments in re.findall(rf"\b{name}\(self(?:: [^,)]*)?,? ?(.*?)\) ->", doc):
        found |= set(re.findall(r"(\w+): ", re.sub(r"\[[^]]*\]", "", arguments)))
    return found


def real_members(module: Any, name: str) -> Members:
    kind, found = getattr(module, name), {}
    for member in dir(kind):
        value = inspect.getattr_static(kind, member)
        doc = getattr(value, "__doc__", None) or ""
        callable_here = callable(getattr(kind, member)) and f"{member}(" in doc
        found[member] = parameters_in(doc, member) if callable_here else None
    return found


def stub_members(stubs: str, name: str) -> Members:
    # Class by class: as a whole the file is no valid Python.
    block = re.search(rf"^class {name}\b.*\n(?:(?:[ \t].*)?\n)*", stubs, re.MULTILINE)
    assert block is not None, f"{name} does not exist"
    (node,) = ast.parse(block[0]).body
    assert isinstance(node, ast.ClassDef)
    found: Members = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            arguments = {argument.arg for argument in item.args.args} - {"self"}
            is_property = any("property" in ast.unparse(mark) for mark in item.decorator_list)
            known = found.get(item.name) or set()
            found[item.name] = None if is_property else known | arguments
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = None
        elif isinstance(item, ast.ClassDef):
            found[item.name] = None
    return found


def own_members(kind: type) -> Members:
    """Public members of a class of the fake, enumerators and attributes of instances that the runtime sets among them."""
    found: Members = {}
    for base in kind.__mro__:
        if base.__module__ != fake_tensorrt.__name__:
            continue
        for name, value in vars(base).items():
            if name.startswith("_"):
                continue
            if inspect.isfunction(value):
                found[name] = set(inspect.signature(value).parameters) - {"self"}
            elif isinstance(value, (property, type)) or name.isupper():
                found[name] = None
    return found


def check(module: ModuleType, members_of: Callable[[str], Members]) -> None:
    for name, kind in vars(module).items():
        if name in OWN or name.startswith("__") or not isinstance(kind, type):
            continue
        theirs = members_of(name)
        for member, parameters in own_members(kind).items():
            assert member in theirs, f"{name}.{member} does not exist"
            wanted = theirs[member]
            if parameters is None:
                continue
            assert wanted is not None, f"{name}.{member} is no method"
            assert parameters <= wanted, f"{name}.{member} takes {wanted}, the fake {parameters}"


def test_against_tensorrt_for_rtx() -> None:
    real: Any = pytest.importorskip("tensorrt_rtx")
    check(fake_tensorrt.make_module("rtx", real.__version__), lambda name: real_members(real, name))
    config = real_members(real, "IRuntimeConfig")
    assert {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"} <= set(config)
    assert {"profiler", "active_optimization_profile"} <= set(real_members(real, "IExecutionContext"))
    assert real_members(real, "IExecutionContext")["set_device_memory"] == {"memory", "size"}


def test_against_the_stubs_of_full_tensorrt() -> None:
    stubs = Path(sys.prefix) / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
    if not stubs.is_file():
        pytest.skip("the stubs of TensorRT are not installed (make .venv/.dev)")
    text = stubs.read_text()
    check(fake_tensorrt.make_module("tensorrt", "10.13.0"), lambda name: stub_members(text, name))
    assert stub_members(text, "IExecutionContext")["set_device_memory"] == {"memory", "size"}


def test_what_tensorrt_11_removed() -> None:
    """There when the fake plays 10, where the stubs have it as well; gone when it plays 11, and from RTX."""
    ten, eleven, rtx = (
        fake_tensorrt.make_module(*played)
        for played in (("tensorrt", "10.13.0"), ("tensorrt", "11.0.0"), ("rtx", "1.7.1.116"))
    )
    removed = [
        ("ICudaEngine", "device_memory_size"),
        ("ICudaEngine", "get_device_memory_size_for_profile"),
        ("BuilderFlag", "FP16"),
        ("BuilderFlag", "INT8"),
        ("IInt8EntropyCalibrator2", "__init__"),
    ]
    for name, member in removed:
        assert hasattr(getattr(ten, name), member)
        for module in (eleven, rtx):
            assert not hasattr(getattr(module, name, None), member) or name not in vars(module)
    common = {name for name in vars(eleven) if not name.startswith("_")}
    assert {name for name in vars(ten) if not name.startswith("_")} - common == {
        "BuilderFlag",
        "IInt8EntropyCalibrator2",
    }
    real: Any = pytest.importorskip("tensorrt_rtx")  # of the generation of 11
    for name, member in removed[:2]:
        assert not hasattr(getattr(real, name), member)


def test_a_wrong_name_is_found() -> None:
    """The comparison itself: a method that does not exist, and a parameter of another name."""
    real: Any = pytest.importorskip("tensorrt_rtx")
    module: Any = ModuleType("tensorrt_rtx")
    for wrong, message in (
        (wrong_method, "Runtime.load does not exist"),
        (wrong_parameter, "the fake {'blob'}"),
    ):
        module.Runtime = wrong()
        with pytest.raises(AssertionError, match=re.escape(message)):
            check(module, lambda name: real_members(real, name))


def wrong_method() -> type:
    return type("Runtime", (), {"load": lambda self: None, "__module__": fake_tensorrt.__name__})


def wrong_parameter() -> type:
    def deserialize_cuda_engine(self: Any, blob: bytes) -> None:
        pass

    members = {"deserialize_cuda_engine": deserialize_cuda_engine, "__module__": fake_tensorrt.__name__}
    return type("Runtime", (), members)
