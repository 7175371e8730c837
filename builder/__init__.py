"""Compiles a CenterNet ONNX graph into an engine bundle.

Use it as ``from centernet_trt.builder import BuildOptions, build``; what a name needs is loaded when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from centernet_trt.builder.build import BuildOptions, build
    from centernet_trt.builder.export.export import export_model
    from centernet_trt.builder.guess.spec import guess_spec

__all__ = ["BuildOptions", "build", "export_model", "guess_spec"]

_LAZY = {
    "BuildOptions": "centernet_trt.builder.build",
    "export_model": "centernet_trt.builder.export.export",
    "guess_spec": "centernet_trt.builder.guess.spec",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Has the function `build` under that name, where importing the sub-module `build` would put the sub-module."""

    @property
    def build(self) -> Any:
        return import_module("centernet_trt.builder.build").build

    @build.setter
    def build(self, submodule: ModuleType) -> None:
        """The import system's assignment of the sub-module, which stays in sys.modules."""


sys.modules[__name__].__class__ = _Package
