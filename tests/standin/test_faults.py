"""Failures of the driver at every call, of TensorRT, and of the context."""

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import fake_tensorrt
from helpers.fake_tensorrt import Faults
from helpers.faulty_binding import FaultyBindings, planted
from helpers.standin_pipeline import pictures, same, tiny, world
from helpers.standin_session import ON_STANDIN

from centernet_trt.errors import CenterNetError, CudaError
from centernet_trt.kernels.compile import find_toolchain
from centernet_trt.runtime import Detections
from centernet_trt.runtime.backend import GpuOptions, InferenceRequest
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import DriverError
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.images import BgrImage

pytestmark = ON_STANDIN

OPTIONS = GpuOptions(streams=2, max_batch=2, max_pixels=64 * 64, max_graphs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> EngineBundle:
    return tiny(folder, batch=(1, 1, 2))


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    toolchain = find_toolchain()  # looked for once instead of hundreds of times
    monkeypatch.setattr("centernet_trt.runtime.gpu.kernels.find_toolchain", lambda: toolchain)
    with world(tmp_path) as found:
        yield found


def requests(bundle: EngineBundle, images: list[BgrImage]) -> list[InferenceRequest]:
    height, width = images[0].shape[:2]
    return [
        InferenceRequest(image, place(bundle.manifest.spec.input, width, height), 0.3) for image in images
    ]


def journey(bundle: EngineBundle, faulty: FaultyBindings) -> list[Detections]:
    """Load, run two shapes (new, recorded, replayed, forgotten), one image pinned, close: all that a pipeline does."""
    with planted(faulty):
        pipeline = GpuBackend.load(bundle, OPTIONS)
        faulty.armed = True
        try:
            small, large = requests(bundle, pictures(2, 20, 20)), requests(bundle, pictures(1, 60, 60))
            found: list[Detections] = []
            for batch in (small, small, large):
                found = pipeline.run([batch, batch])[1]
            pinned = pipeline.pinned_image(60, 60)
            pinned[...] = large[0].image
            return pipeline.run([[large[0]._replace(image=pinned)]])[0] + found
        finally:
            pipeline.close()


def leaked() -> int:
    """Device memory in use; the stand-in tells at exit of all else that is left."""
    driver = fake_tensorrt.driver()
    device = ctypes.c_int()
    context, left, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    assert driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert driver.cuCtxPushCurrent_v2(context) == 0
    assert driver.cuMemGetInfo_v2(ctypes.byref(left), ctypes.byref(total)) == 0
    assert driver.cuCtxPopCurrent_v2(None) == 0
    assert driver.cuDevicePrimaryCtxRelease_v2(device) == 0
    return total.value - left.value


def outcome(bundle: EngineBundle, faulty: FaultyBindings) -> list[Detections] | str:
    """The journey's answer, or what it raised."""
    try:
        return journey(bundle, faulty)
    except CudaError as error:
        return f"CudaError {error}"
    except CenterNetError as error:
        return f"{type(error).__name__} {error}"


# A fourth of the calls each. Losing the context is much the same everywhere: the other three fourths are slow tests.
EVERY_CALL = [(2, 0), (2, 1), (2, 2), (2, 3), (719, 0)]
EVERY_CALL_SLOW = [pytest.param(719, part, marks=pytest.mark.slow) for part in (1, 2, 3)]


@pytest.mark.parametrize(("code", "part"), [*EVERY_CALL, *EVERY_CALL_SLOW])
def test_every_call_of_the_driver_fails_once(
    bundle: EngineBundle, faults: Faults, code: int, part: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory, or a context that is lost: a typed error or the right answer, and nothing is left behind."""
    caplog.set_level(logging.CRITICAL)
    healthy = FaultyBindings(0, code)
    wanted = journey(bundle, healthy)
    outcomes = {"error": 0, "answer": 0}
    for number in range(1 + part, healthy.calls + 1, 4):
        faulty = FaultyBindings(number, code)
        found = outcome(bundle, faulty)
        if isinstance(found, str):
            assert found.startswith("CudaError"), f"{faulty.failed} (call {number}): {found}"
            outcomes["error"] += 1
        else:
            # The failure was met on the way: at a recording, or while giving back.
            for one, other in zip(found, wanted, strict=True):
                same(one, other)
            outcomes["answer"] += 1
        assert leaked() == 0, f"{faulty.failed} (call {number})"
        assert not list(fake_tensorrt.LIVE), f"{faulty.failed} (call {number})"
    if code == 719:
        # A device whose context is lost runs nothing more; the stand-in still runs what was queued.
        late = "the network ran after its context was destroyed"
        faults.broken[:] = [text for text in faults.broken if text != late]
    assert outcomes["error"] > 10
    assert outcomes["answer"] > 5


def test_after_an_error_the_pipeline_goes_on(bundle: EngineBundle, faults: Faults) -> None:
    """Out of memory in the middle of things costs that call, not the pipeline."""
    small = requests(bundle, pictures(2, 20, 20))
    with planted(healthy := FaultyBindings(0, 2)):
        pipeline = GpuBackend.load(bundle, OPTIONS)
        wanted = pipeline.run([small])[0]
        pipeline.close()
    del healthy
    faulty = FaultyBindings(10**9, 2)
    with planted(faulty):
        pipeline = GpuBackend.load(bundle, OPTIONS)
    failures = 0
    for ahead in range(1, 60):
        faulty.fails_at, faulty.failed = faulty.calls + ahead, None
        try:
            pipeline.run([small, small])
        except DriverError:
            failures += 1
        faulty.fails_at = 10**9
        for one, other in zip(pipeline.run([small])[0], wanted, strict=True):
            same(one, other)
    assert failures > 5
    pipeline.close()


def test_a_lost_context_is_told_by_every_later_call(bundle: EngineBundle, faults: Faults) -> None:
    small = requests(bundle, pictures(2, 20, 20))
    faulty = FaultyBindings(10**9, 719)
    with planted(faulty):
        pipeline = GpuBackend.load(bundle, OPTIONS)
    pipeline.run([small])
    faulty.fails_at = faulty.calls + 3
    with pytest.raises(DriverError, match="CUDA_ERROR_LAUNCH_FAILED"):
        pipeline.run([small])
    for _ in range(2):
        with pytest.raises(CudaError, match=r"the GPU failed before: .*as the test asked") as caught:
            pipeline.run([small])
        assert "start a new process" in caught.value.hint
    pipeline.close()
    assert leaked() == 0


def test_a_kernel_error_that_shows_only_at_the_wait(bundle: EngineBundle, faults: Faults) -> None:
    small = requests(bundle, pictures(1, 20, 20))

    class AtWait(FaultyBindings):
        def _call(self, name: str, *arguments: Any) -> Any:
            if self.armed and name == "cuEventSynchronize":
                self.armed = False
                super()._call(name, *arguments)
                raise DriverError(name, 999, "CUDA_ERROR_UNKNOWN", "as the test asked")
            return super()._call(name, *arguments)

    faulty = AtWait(10**9, 999, after_load=True)
    with planted(faulty):
        pipeline = GpuBackend.load(bundle, OPTIONS)
    wanted = pipeline.run([small])[0]
    faulty.armed = True
    with pytest.raises(DriverError, match="cuEventSynchronize failed: CUDA_ERROR_UNKNOWN"):
        pipeline.run([small, small, small])
    same(pipeline.run([small])[0][0], wanted[0])
    pipeline.close()
