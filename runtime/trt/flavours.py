"""The flavours of TensorRT: packages, build targets and flags, in one table."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from centernet_trt.errors import BackendError
from centernet_trt.runtime.cuda.device import gpu_count

__all__ = ["Flavour", "FlavourName", "InstalledName", "load_flavour"]

InstalledName = Literal["rtx", "tensorrt"]


@dataclass(frozen=True)
class RuntimeFlavour:
    """A flavour, installed or not.

    Attributes:
        module_name: of its Python package.
        install: the command that installs it.
        oldest: the oldest version whose calls are the ones that we make.
        finishes_kernels: whether kernels are compiled on the user's GPU when the plan is run. Contexts then take a
            runtime configuration (kernel specialisation, a cache of the kernels, an own CUDA graph to switch off).
    """

    name: InstalledName
    module_name: str
    install: str
    oldest: tuple[int, int]
    finishes_kernels: bool


RUNTIME_FLAVOURS: Mapping[str, RuntimeFlavour] = {
    "rtx": RuntimeFlavour(
        name="rtx",
        module_name="tensorrt_rtx",
        install="pip install 'tensorrt-rtx>=1.7,<1.8'  (Linux x86-64)",
        oldest=(1, 7),
        finishes_kernels=True,
    ),
    "tensorrt": RuntimeFlavour(
        name="tensorrt",
        module_name="tensorrt",
        install="pip install 'centernet-trt[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        oldest=(10, 1),  # the first with sizes of device memory in 64 bits
        finishes_kernels=False,
    ),
}


def import_flavour(name: str) -> ModuleType:
    """Import the package of a flavour.

    Raises:
        BackendError: it is not installed, or does not load; the hint has the line that installs it.
    """
    row = RUNTIME_FLAVOURS[name]
    try:
        module = importlib.import_module(row.module_name)
    except ModuleNotFoundError as error:
        if error.name != row.module_name:
            raise BackendError(
                f"{row.module_name} does not load: {error}", f"install it again: {row.install}"
            ) from error
        raise BackendError(f"{row.module_name} is not installed", row.install) from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{row.module_name} does not load: {error}", f"install it again: {row.install}"
        ) from error
    if not hasattr(module, "__version__"):  # a package of type stubs leaves an empty folder of this name
        raise BackendError(f"{row.module_name} is not installed, only type stubs of it are", row.install)
    return module


def is_installed(name: InstalledName) -> bool:
    """Whether the package of a flavour is installed; it is not imported."""
    spec = importlib.util.find_spec(RUNTIME_FLAVOURS[name].module_name)
    # A folder without code, as type stubs leave it, is found as a package without a loader.
    return spec is not None and (spec.loader is not None or spec.submodule_search_locations is None)


FlavourName = Literal["auto", "rtx", "tensorrt"]

# For each target, the members of `ComputeCapability` to build for; none is TensorRT's own default.
_RTX_TARGETS: Mapping[str, tuple[str, ...]] = {
    # The default of TensorRT for RTX, documented as 8.0, 8.6, 8.9, 12.0 "and later". It is not the same as
    # naming those four: that makes another plan, and gives up "and later". Measured on a small graph: it is
    # the plan of SM80 but for three bytes. Turing (7.5) needs a plan of its own.
    "portable": (),
    "current": ("CURRENT",),
    "sm_75": ("SM75",),
    "sm_80": ("SM80",),
    "sm_86": ("SM86",),
    "sm_89": ("SM89",),
    "sm_120": ("SM120",),
}


@dataclass(frozen=True)
class _Row:
    builds_without_gpu: bool
    has_timing_cache: bool
    default_target: str
    targets: Mapping[str, tuple[str, ...]]
    imports_deform_conv: bool
    build_flags: tuple[str, ...]
    int8_notes: tuple[str, ...]


_TABLE: Mapping[str, _Row] = {
    "rtx": _Row(
        builds_without_gpu=True,
        # It measures nothing at build time; its cache is the runtime's, for kernels compiled there.
        has_timing_cache=False,
        default_target="portable",
        targets=_RTX_TARGETS,
        # "Plugin not found": it has no plugin library.
        imports_deform_conv=False,
        # Without it the runtime may allocate while it runs, which a CUDA graph cannot capture.
        build_flags=("REQUIRE_USER_ALLOCATION",),
        # Its documents speak of int8 weights only; what its int8 convolutions run as, nobody here has seen.
        int8_notes=(
            "TensorRT for RTX: whether int8 convolutions run as int8, or faster than fp16, is unverified",
        ),
    ),
    "tensorrt": _Row(
        builds_without_gpu=False,
        has_timing_cache=True,
        default_target="current",
        # It always builds for the GPU at hand, so there is nothing to set.
        targets={"current": ()},
        imports_deform_conv=True,
        build_flags=(),
        int8_notes=(),
    ),
}


@dataclass(frozen=True)
class Flavour:
    """One installed flavour of TensorRT.

    Attributes:
        name: `rtx` or `tensorrt`.
        module: the imported package.
        builds_without_gpu: whether a plan can be built where there is no GPU.
        has_timing_cache: whether a build measures kernels and can reuse the measurements.
        default_target: what to build for when nobody says.
        targets: the valid targets, each with the members of `ComputeCapability` to set (none: as it is).
    """

    name: InstalledName
    module: ModuleType
    builds_without_gpu: bool
    has_timing_cache: bool
    default_target: str
    targets: Mapping[str, tuple[str, ...]]
    imports_deform_conv: bool
    build_flags: tuple[str, ...]
    int8_notes: tuple[str, ...]

    @property
    def version(self) -> str:
        """The version of the package, such as `1.7.1.116`."""
        return str(self.module.__version__)

    @property
    def trt(self) -> Any:
        """The module, for calls that no stub describes."""
        return self.module

    def capabilities(self, target: str) -> tuple[str, ...]:
        """Return the members of `ComputeCapability` for a target; BackendError when it is not one of ours."""
        if target not in self.targets:
            valid = ", ".join(self.targets)
            if self.name == "tensorrt" and target in _RTX_TARGETS:
                raise BackendError(
                    f"full TensorRT builds for the GPU at hand, not for target {target!r}; it has {valid}",
                    "build on a machine with that GPU, or use --flavour rtx",
                )
            raise BackendError(f"unknown target {target!r}; {self.name} has {valid}", "choose one of these")
        return self.targets[target]

    def require_device(self, target: str) -> None:
        """Raise BackendError when building for `target` needs a GPU and there is none."""
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
        name: `auto` takes full TensorRT where it is installed and a GPU is present, else RTX.

    Raises:
        BackendError: the package is not installed, or does not load; the hint has the line that installs it.
    """
    if name == "auto":
        name = "tensorrt" if is_installed("tensorrt") and gpu_count() else "rtx"
    row = _TABLE.get(name)
    if row is None:
        raise BackendError(
            f"unknown flavour {name!r}; there are auto, {', '.join(_TABLE)}", "choose one of these"
        )
    return Flavour(
        name,
        import_flavour(name),
        row.builds_without_gpu,
        row.has_timing_cache,
        row.default_target,
        row.targets,
        row.imports_deform_conv,
        row.build_flags,
        row.int8_notes,
    )
