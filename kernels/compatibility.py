"""The one table of what goes with what: driver, CUDA major, GPU architectures.

Source: the CUDA 13 release notes (driver versions) and the list that NVRTC itself gives (architectures).
"""

from dataclasses import dataclass

from centernet_trt.errors import CudaError

# Compiled for in the tests; other architectures of the same compiler work too, without a row in the resource table.
TESTED_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA major: the oldest Linux driver that loads what its compiler makes, and the oldest GPU it compiles for."""

    major: int
    driver: str
    oldest_architecture: int


CUDA_RELEASES = (
    CudaRelease(major=12, driver="525.60.13", oldest_architecture=50),
    CudaRelease(major=13, driver="580.65.06", oldest_architecture=75),
)


def architecture_of(major: int, minor: int) -> str:
    """The compiler's name of a device's compute capability: (9, 0) -> sm_90."""
    return f"sm_{major}{minor}"


def check_driver(driver_version: int, cuda_major: int) -> None:
    """Hold the driver to what the compiler makes.

    Args:
        driver_version: from cuDriverGetVersion, 1000 * major + 10 * minor.
        cuda_major: of the compiler whose cubins are to be loaded.

    Raises:
        CudaError: the driver is too old, or the major is not in the table.
    """
    release = _release(cuda_major)
    if driver_version // 1000 < cuda_major:
        raise CudaError(
            f"the NVIDIA driver supports CUDA {driver_version // 1000}.{driver_version % 1000 // 10}, the kernels are "
            f"compiled with CUDA {cuda_major}",
            f"install driver {release.driver} or newer",
        )


def check_architecture(architecture: str, cuda_major: int) -> None:
    """Refuse a GPU that the compiler does not know any more.

    Raises:
        CudaError: the architecture is no `sm_NN`, or is older than the compiler's oldest.
    """
    digits = architecture.removeprefix("sm_").removesuffix("a").removesuffix("f")
    if not architecture.startswith("sm_") or not digits.isdigit():
        raise CudaError(f"{architecture!r} is no GPU architecture", "name it as sm_NN, for instance sm_90")
    oldest = _release(cuda_major).oldest_architecture
    if int(digits) < oldest:
        raise CudaError(
            f"CUDA {cuda_major} does not compile for {architecture}; the oldest is sm_{oldest}",
            "run on a Turing GPU or newer",
        )


def _release(cuda_major: int) -> CudaRelease:
    for release in CUDA_RELEASES:
        if release.major == cuda_major:
            return release
    known = ", ".join(str(release.major) for release in CUDA_RELEASES)
    raise CudaError(
        f"CUDA {cuda_major} is not known to this version; it knows CUDA {known}", "update centernet-trt"
    )
