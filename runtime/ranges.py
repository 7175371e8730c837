"""NVTX ranges, for NVIDIA's profilers, where the package `nvtx` is installed; nothing where it is not."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

_NOTHING: AbstractContextManager[Any] = nullcontext()


@cache
def _annotate() -> Any:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.annotate


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A range of this name around a `with` block, in the domain `centernet-trt`."""
    annotate = _annotate()
    return _NOTHING if annotate is None else annotate(name, domain="centernet-trt")
