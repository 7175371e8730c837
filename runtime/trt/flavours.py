"""The flavours of TensorRT (for RTX, and full): package, versions, build targets and flags in one table."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from centernet_trt.errors import BackendError
from centernet_trt.runtime.cuda.device import gpu_count

__all__ = [
    "FLAVOURS",
    "Flavour",
    "FlavourName",
    "FlavourRow",
    "InstalledName",
    "is_installed",
    "load_flavour",
]

InstalledName = Literal["rtx", "tensorrt"]
FlavourName = Literal["auto", "rtx", "tensorrt"]

# Members of `ComputeCapability` for each target; none keeps TensorRT's default.
_RTX_TARGETS: Mapping[str, tuple[str, ...]] = {
    # The default of TensorRT for RTX, documented as 8.0, 8.6, 8.9, 12.0 "and later". Naming those four makes another
    # plan, without "and later". Measured on a small graph: the default is the plan of SM80 but for three bytes.
    # Turing (7.5) needs a plan of its own.
    "portable": (),
    "current": ("CURRENT",),
    "sm_75": ("SM75",),
    "sm_80": ("SM80",),
    "sm_86": ("SM86",),
    "sm_89": ("SM89",),
    "sm_120": ("SM120",),
}


@dataclass(frozen=True)
class FlavourRow:
    """One row of the table: a flavour, installed or not.

    Attributes:
        name: `rtx` or `tensorrt`.
        module_name: of its Python package.
        install: command that installs it.
        oldest: oldest supported version (major, minor).
        compiles_at_runtime: whether kernels are compiled on the user's GPU when a plan is run. Execution contexts then
            take a runtime configuration (kernel specialisation, kernel cache, TensorRT's own CUDA graphs off).
        builds_without_gpu: whether a plan can be built on a machine without a GPU.
        has_timing_cache: whether a build measures kernels and can reuse the measurements.
        default_target: target of a build that names none.
        targets: valid targets, each with the members of `ComputeCapability` to set (none: TensorRT's default).
        imports_deform_conv: whether its ONNX parser accepts DeformConv.
        build_flags: names of builder flags to set.
        int8_notes: notes for users who build int8 plans.
    """

    name: InstalledName
    module_name: str
    install: str
    oldest: tuple[int, int]
    compiles_at_runtime: bool
    builds_without_gpu: bool
    has_timing_cache: bool
    default_target: str
    targets: Mapping[str, tuple[str, ...]]
    imports_deform_conv: bool
    build_flags: tuple[str, ...]
    int8_notes: tuple[str, ...]


FLAVOURS: Mapping[str, FlavourRow] = {
    "rtx": FlavourRow(
        name="rtx",
        module_name="tensorrt_rtx",
        install="pip install 'tensorrt-rtx>=1.7,<1.8'  (Linux x86-64)",
        oldest=(1, 7),
        compiles_at_runtime=True,
        builds_without_gpu=True,
        # It measures nothing at build time; its cache is the runtime's, for kernels compiled there.
        has_timing_cache=False,
        default_target="portable",
        targets=_RTX_TARGETS,
        imports_deform_conv=False,  # "Plugin not found": it has no plugin library
        # Without it the runtime may allocate while it runs, which a CUDA graph cannot capture.
        build_flags=("REQUIRE_USER_ALLOCATION",),
        # Its documentation covers int8 weights only, and no int8 convolution of it has been measured here.
        int8_notes=(
            "TensorRT for RTX: whether int8 convolutions run as int8, or faster than fp16, is unverified",
        ),
    ),
    "tensorrt": FlavourRow(
        name="tensorrt",
        module_name="tensorrt",
        install="pip install 'centernet-trt[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        oldest=(10, 1),  # the first with 64-bit sizes of device memory
        compiles_at_runtime=False,
        builds_without_gpu=False,
        has_timing_cache=True,
        default_target="current",
        targets={"current": ()},  # it always builds for the visible GPU
        imports_deform_conv=True,
        build_flags=(),
        int8_notes=(),
    ),
}


@dataclass(frozen=True)
class Flavour(FlavourRow):
    """An installed flavour: its row of the table, and `module`, its imported package."""

    module: ModuleType

    @property
    def version(self) -> str:
        """Version of the package, such as `1.7.1.116`."""
        return str(self.module.__version__)

    @property
    def trt(self) -> Any:
        """The module, untyped, for calls without stubs."""
        return self.module

    def capabilities(self, target: str) -> tuple[str, ...]:
        """Return the members of `ComputeCapability` for a target.

        Raises:
            BackendError: not a target of this flavour.
        """
        if target not in self.targets:
            valid = ", ".join(self.targets)
            if self.name == "tensorrt" and target in _RTX_TARGETS:
                raise BackendError(
                    f"full TensorRT builds for the visible GPU only: expected target {valid}, got {target!r}",
                    "build on a machine with that GPU, or use --flavour rtx",
                )
            raise BackendError(f"unknown target {target!r}: {self.name} has {valid}", "choose one of these")
        return self.targets[target]

    def require_device(self, target: str) -> None:
        """Raise BackendError if building for `target` needs a GPU and none is visible."""
        if self.builds_without_gpu and "CURRENT" not in self.capabilities(target):
            return
        if gpu_count() == 0:
            other = "--target portable" if self.builds_without_gpu else "--flavour rtx"
            raise BackendError(
                f"building for target {target!r} with {self.module.__name__} {self.version} needs an NVIDIA "
                "GPU and none is visible",
                f"build on the machine with the GPU, or use {other}",
            )


def load_flavour(name: FlavourName = "auto") -> Flavour:
    """Import a flavour of TensorRT.

    Args:
        name: of the flavour; `auto` prefers full TensorRT if it is installed and a GPU is visible, else RTX.

    Raises:
        BackendError: the package is not installed or cannot be imported; the hint has the command that installs it.
    """
    if name == "auto":
        name = "tensorrt" if is_installed("tensorrt") and gpu_count() else "rtx"
    row = FLAVOURS.get(name)
    if row is None:
        raise BackendError(f"unknown flavour {name!r}: expected auto, {' or '.join(FLAVOURS)}")
    return Flavour(**vars(row), module=_import(row))


def is_installed(name: InstalledName) -> bool:
    """Return whether the package of a flavour is installed, without importing it."""
    spec = importlib.util.find_spec(FLAVOURS[name].module_name)
    # A folder without code, as left by type stubs, is found as a package without a loader.
    return spec is not None and (spec.loader is not None or spec.submodule_search_locations is None)


def _import(row: FlavourRow) -> ModuleType:
    try:
        module = importlib.import_module(row.module_name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == row.module_name:
            raise BackendError(f"{row.module_name} is not installed", row.install) from error
        raise BackendError(
            f"{row.module_name} cannot be imported: {error}", f"reinstall it: {row.install}"
        ) from error
    if not hasattr(module, "__version__"):  # the empty folder of a package of type stubs
        raise BackendError(f"{row.module_name} is not installed, only type stubs of it are", row.install)
    return module
