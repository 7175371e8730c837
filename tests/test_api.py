"""The names that users import: from the package itself, and from `builder`; none is loaded before it is used."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import centernet_trt
from centernet_trt import builder, runtime

HEAVY = ("numpy", "onnx", "cv2", "pydantic")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", [centernet_trt, builder], ids=lambda package: package.__name__)
def test_every_public_name_is_listed_and_is_what_it_says(package: object) -> None:
    public: list[str] = package.__all__  # type: ignore[attr-defined]
    assert set(public) <= set(dir(package))
    for name in public:
        value = getattr(package, name)
        assert name == "__version__" or (callable(value) and value.__name__ == name)


@pytest.mark.parametrize("package", [centernet_trt, builder], ids=lambda package: package.__name__)
def test_a_name_that_is_not_there(package: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Detektor'"):
        package.Detektor  # type: ignore[attr-defined] # noqa: B018


def test_root_names_are_those_of_the_packages() -> None:
    from centernet_trt.builder import BuildOptions, build
    from centernet_trt.runtime import Detector
    from centernet_trt.runtime.gpu.ops import GpuOps

    assert (centernet_trt.build, centernet_trt.BuildOptions) == (build, BuildOptions)
    assert (centernet_trt.Detector, centernet_trt.GpuOps) == (Detector, GpuOps)


@pytest.mark.parametrize("name", ["centernet_trt", "centernet_trt.builder"])
def test_nothing_is_loaded_before_it_is_used(name: str) -> None:
    code = f"import sys, {name} as package; dir(package); print(*(m for m in {HEAVY!r} if m in sys.modules))"
    assert run(code) == ""


# Importing a sub-module assigns it to its package's attribute of that name, before or after the function was asked for.
SUBMODULE = "import centernet_trt.builder.build"
FUNCTION = "from centernet_trt.builder import build"


@pytest.mark.parametrize(
    "lines",
    [
        [FUNCTION],
        [SUBMODULE, FUNCTION],
        [FUNCTION, SUBMODULE, FUNCTION],
        ["from centernet_trt.builder.build import BuildOptions", FUNCTION],
        [SUBMODULE, "from centernet_trt import build"],
        [SUBMODULE, "import importlib", "importlib.reload(centernet_trt.builder)", FUNCTION],
    ],
    ids=" then ".join,
)
def test_build_is_the_function_whatever_was_imported_before(lines: list[str]) -> None:
    check = "import sys; assert build is sys.modules['centernet_trt.builder.build'].build"
    assert run("\n".join([*lines, check, "print(type(build).__name__)"])) == "function"


def sections(documented: Any) -> dict[str, str]:
    """The sections of a docstring in Google's style, by name."""
    parts = re.split(
        r"^(Args|Attributes|Returns|Raises):$", inspect.getdoc(documented) or "", flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def public_functions() -> Iterator[tuple[str, Any]]:
    for package in (centernet_trt, runtime):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value):
                yield name, value
            for member, function in vars(value).items() if inspect.isclass(value) else ():
                function = getattr(function, "__func__", function)  # of a class method
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield f"{name}.{member}", function


FUNCTIONS = dict(public_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_and_result_of_the_public_functions_is_described(name: str) -> None:
    function = FUNCTIONS[name]
    found = sections(function)
    arguments = set(inspect.signature(function).parameters) - {"self", "cls"}
    assert arguments == set(re.findall(r"^ {4}(\w+):", found.get("Args", ""), flags=re.MULTILINE))
    simple = not arguments and "Returns" not in found  # one sentence says it all
    assert simple or inspect.signature(function).return_annotation in (None, "None") or "Returns" in found


def test_every_field_of_the_public_classes_is_described() -> None:
    for package in (centernet_trt, runtime):
        for name in package.__all__:
            value: Any = getattr(package, name)
            names = (
                {one.name for one in fields(value)}
                if is_dataclass(value)
                else set(getattr(value, "model_fields", ()))
            )
            described = re.findall(r"^ {4}(\w+):", sections(value).get("Attributes", ""), flags=re.MULTILINE)
            assert names <= set(described), name
