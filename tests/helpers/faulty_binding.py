"""cuda-bindings with a planted failure: the n-th call of the driver fails, as a real one would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from centernet_trt.runtime.cuda import device as driver
from centernet_trt.runtime.cuda.binding import DriverError
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings

NAMES = {2: "CUDA_ERROR_OUT_OF_MEMORY", 719: "CUDA_ERROR_LAUNCH_FAILED", 999: "CUDA_ERROR_UNKNOWN"}
# These give things back. A driver that reports an earlier failure there has still done its work.
GIVES_BACK = ("Free", "Destroy", "Unload", "Unregister", "Release", "PopCurrent", "EndCapture")


class FaultyBindings(CudaBindings):
    """Counts the calls; the one numbered `fails_at` fails, and with a lost context all later ones as well."""

    def __init__(self, fails_at: int, code: int, after_load: bool = False) -> None:
        self.calls, self.fails_at, self.code = 0, fails_at, code
        self.armed = False
        self.failed: str | None = None
        super().__init__()
        self.armed = not after_load

    def _call(self, name: str, *arguments: Any) -> Any:
        if not self.armed:
            return super()._call(name, *arguments)
        self.calls += 1
        due = self.calls == self.fails_at or (self.failed is not None and self.code == 719)
        if not due:
            return super()._call(name, *arguments)
        self.failed = self.failed or name
        if any(part in name for part in GIVES_BACK) or name == "cuCtxPushCurrent":
            result = super()._call(name, *arguments)
            if name in ("cuCtxPushCurrent", "cuCtxPopCurrent"):
                return result  # these do not report what kernels did
            if name == "cuStreamEndCapture":
                super()._call("cuGraphDestroy", result)
        raise DriverError(name, self.code, NAMES[self.code], "as the test asked")


@contextmanager
def planted(faulty: FaultyBindings) -> Iterator[None]:
    """The faulty binding in the place of every binding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "load_binding", lambda name="auto": faulty)
        yield
