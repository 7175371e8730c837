"""The driver interface on a device, by both bindings. The stand-in driver runs these tests too."""

import importlib.util
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers.driver_machine import why_no_gpu

from centernet_trt.errors import CudaError
from centernet_trt.kernels.launch import plan_preprocess
from centernet_trt.runtime.cuda.binding import BindingName, DriverError
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings
from centernet_trt.runtime.cuda.device import Device, load_binding
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.kernels import Kernels, image_descriptor, preprocess_params
from centernet_trt.runtime.host.preprocess import level_table, preprocess
from centernet_trt.runtime.presets import preset

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda-bindings", "pycuda"])
def binding(request: pytest.FixtureRequest) -> BindingName:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    name: BindingName = request.param
    if name == "pycuda" and importlib.util.find_spec("pycuda") is None:
        pytest.skip("PyCUDA is not installed (make gpu)")
    return name


@pytest.fixture
def device(binding: BindingName) -> Iterator[Device]:
    with Device.open(0, binding) as opened:
        assert opened.binding.name == binding
        yield opened


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of a call in a thread of its own."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    assert results, "the thread raised"
    return results[0]


def current_context() -> int:
    from cuda.bindings import driver

    status, context = driver.cuCtxGetCurrent()
    assert int(status) == 0
    return int(context)


def test_bytes_go_up_and_come_back(device: Device) -> None:
    stream = device.stream()
    memory, pinned = device.allocate(1000), device.allocate_pinned(1000)
    assert memory.address % 256 == 0
    pinned.array[:] = np.arange(1000) % 251
    stream.copy_to_device(memory.address, pinned.address, 1000)
    stream.fill(memory.address + 10, 7, 5)
    stream.synchronize()
    pinned.array[:] = 0
    stream.copy_to_host(pinned.address, memory.address, 1000)
    stream.synchronize()
    expected = np.arange(1000) % 251
    expected[10:15] = 7
    np.testing.assert_array_equal(pinned.array, expected)
    assert memory.__cuda_array_interface__["data"] == (memory.address, False)
    assert stream.__cuda_stream__() == (0, stream.number)


def test_events(device: Device) -> None:
    stream, memory = device.stream(), device.allocate(64)
    before, after = device.event(timing=True), device.event(timing=True)
    stream.record(before)
    stream.fill(memory.address, 1, 64)
    stream.record(after)
    after.synchronize()
    assert after.done
    assert after.elapsed_ms(before) >= 0
    sleepy = device.event(spin=False)
    stream.record(sleepy)
    sleepy.synchronize()
    with pytest.raises(DriverError, match="cuEventElapsedTime"):
        sleepy.elapsed_ms(before)


def test_streams_wait_for_each_other(device: Device) -> None:
    first, second = device.stream(), device.stream()
    memory, pinned = device.allocate(4), device.allocate_pinned(4)
    event = device.event()
    for value, link in enumerate(
        (
            lambda: (first.record(event), second.wait(event)),
            lambda: second.wait(first.number),
            lambda: first.make_wait(second.number),
            lambda: second.wait(first),
            lambda: first.make_wait(second),
        ),
        start=1,
    ):
        first.fill(memory.address, value, 4)
        link()
        second.copy_to_host(pinned.address, memory.address, 4)
        second.synchronize()
        assert pinned.array.tolist() == [value] * 4


def test_a_graph_replays_what_was_recorded(device: Device) -> None:
    stream, memory, pinned = device.stream(), device.allocate(16), device.allocate_pinned(32)
    pinned.array[:] = 1
    stream.begin_capture()
    stream.copy_to_device(memory.address, pinned.address, 16)
    stream.copy_to_host(pinned.address + 16, memory.address, 16)
    graph = stream.end_capture()
    for value in (3, 9):
        pinned.array[:16] = value
        graph.launch(stream)
        stream.synchronize()
        assert pinned.array[16:].tolist() == [value] * 16
    graph.close()


def test_a_lost_or_abandoned_recording_leaves_the_stream_usable(device: Device) -> None:
    stream, memory = device.stream(), device.allocate(16)
    stream.begin_capture()
    with pytest.raises(DriverError, match="CAPTURE") as caught:
        stream.synchronize()
    assert "cuda_graph=False" in caught.value.hint
    with pytest.raises(DriverError, match="cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        stream.end_capture()
    for break_it in (False, True):
        stream.begin_capture()
        stream.fill(memory.address, 1, 16)
        if break_it:
            with pytest.raises(DriverError):
                stream.synchronize()
        stream.abandon_capture()
        stream.fill(memory.address, 2, 16)
        stream.synchronize()
    # In another thread, allocations go on meanwhile: the capture binds its own thread only.
    stream.begin_capture()
    stream.fill(memory.address, 3, 16)
    in_thread(lambda: device.allocate(64).close())
    stream.end_capture().close()


def test_a_kernel_runs(device: Device) -> None:
    spec, image = preset("official"), np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    placement = place(spec.input, 30, 20)
    height, width = placement.height, placement.width
    kernels, stream = Kernels(device), device.stream()
    pixels, pinned = device.allocate(image.nbytes), device.allocate_pinned(4 * 3 * height * width)
    levels, images, out = device.allocate(3072), device.allocate(256), device.allocate(pinned.nbytes)

    def upload(address: int, data: bytes) -> None:
        pinned.array[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        stream.copy_to_device(address, pinned.address, len(data))
        stream.synchronize()

    upload(pixels.address, image.tobytes())
    upload(levels.address, level_table(spec.input).tobytes())
    upload(images.address, bytes(image_descriptor(placement, spec, pixels=pixels.address)))
    params = preprocess_params(spec.input, height, width, images.address, levels.address, out.address)
    kernels.preprocess(stream, plan_preprocess(1, height, width, half=False), params)
    stream.copy_to_host(pinned.address, out.address, out.nbytes)
    stream.synchronize()
    found = pinned.array.view(np.float32).reshape(1, 3, height, width)
    np.testing.assert_array_equal(found, preprocess([image], [placement], spec.input))
    kernels.close()
    kernels.close()


def test_every_call_leaves_the_thread_as_it_was(device: Device) -> None:
    def nothing_current() -> bool:
        before = current_context()
        with device.allocate(64) as memory, device.stream() as stream, device.event() as event:
            stream.fill(memory.address, 0, 64)
            stream.record(event)
            event.synchronize()
            stream.synchronize()
            with device.current, device.current:
                inside = current_context()
        with pytest.raises(DriverError):
            device.load_module(bytes(64))
        return before == 0 and inside != 0 and current_context() == 0

    assert in_thread(nothing_current)


def test_another_context_stays_current(device: Device) -> None:
    """As in a process where PyTorch or CuPy has made its own context current."""
    calls = CudaBindings()

    def work() -> bool:
        foreign = calls.retain(0)
        calls.push(foreign)
        before = current_context()
        device.allocate(64).close()
        same = current_context() == before
        calls.pop()
        calls.release(0, foreign)
        return same

    assert in_thread(work)


def test_what_one_thread_makes_another_uses_and_frees(device: Device) -> None:
    stream: Stream = in_thread(device.stream)
    memory = in_thread(lambda: device.allocate(64))
    in_thread(lambda: stream.fill(memory.address, 5, 64))
    in_thread(stream.synchronize)
    in_thread(memory.close)
    stream.close()


def test_closing(binding: BindingName) -> None:
    device = Device.open(0, binding)
    memory, pinned, stream = device.allocate(64), device.allocate_pinned(64), device.stream()
    device.event(), device.event()
    memory.close()
    memory.close()
    assert memory.closed
    with pytest.raises(CudaError, match="DeviceBuffer is closed"):
        _ = memory.__cuda_array_interface__
    assert device.open_resources == 4
    device.close()
    device.close()
    assert device.open_resources == 0
    assert stream.closed
    assert device.closed
    with pytest.raises(CudaError, match="PinnedBuffer is closed"):
        _ = pinned.array
    with pytest.raises(CudaError, match="the GPU is closed"):
        device.allocate(64)
    with Device.open(0, binding) as again:  # the primary context comes back
        again.allocate(64)


def test_driver_errors_say_the_call_the_meaning_and_what_to_do(device: Device) -> None:
    with pytest.raises(DriverError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        device.allocate(1 << 46)
    error = caught.value
    assert error.out_of_memory
    assert not error.context_lost
    assert "max_batch" in error.hint
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.call, copied.code, str(copied)) == (error.call, error.code, str(error))
    with pytest.raises(DriverError, match=r"cuModuleLoadData.* failed: .*image") as caught:
        device.load_module(b"no cubin at all" * 8)
    assert caught.value.code in (200, 209)
    lost = DriverError("cuStreamSynchronize", 719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure")
    assert lost.context_lost
    assert "compute-sanitizer" in lost.hint


def test_devices_by_number_and_by_uuid(binding: BindingName) -> None:
    with Device.open(0, binding) as device:
        info = device.info
    assert info.index == 0
    assert info.multiprocessors > 0
    assert info.driver_version >= 12000
    assert info.uuid.startswith("GPU-")
    for name in ("0", info.uuid, info.uuid.lower(), info.uuid.removeprefix("GPU-")):
        with Device.open(name, binding) as device:
            assert device.info == info
    for name in (99, "GPU-00000000-no-such", ""):
        with pytest.raises(CudaError, match="there is no GPU") as caught:
            Device.open(name, binding)
        assert info.uuid in caught.value.message


def test_a_fork_is_told_so_and_frees_nothing(device: Device) -> None:
    memory = device.allocate(64)
    child = os.fork()
    if child == 0:
        verdict = 1
        try:
            memory.close()
            device.close()
            try:
                device.allocate(64)
            except CudaError as error:
                verdict = 0 if "after the fork" in error.hint else 2
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.close()


def test_unknown_binding(binding: BindingName) -> None:
    name: Any = "ctypes"
    with pytest.raises(CudaError, match="no driver binding 'ctypes'"):
        load_binding(name)
