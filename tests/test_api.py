"""The names that users import: from the package itself, and from `builder`; none is loaded before it is used."""

import subprocess
import sys

import pytest

import centernet_trt
from centernet_trt import builder

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
