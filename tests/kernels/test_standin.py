"""The stand-in driver reports what a real driver would let pass or crash on."""

import importlib.util
import re
import subprocess
import textwrap

import pytest
from helpers.standin_process import run_script

PREPARE = """
import ctypes, os, sys
import numpy as np
from cuda.bindings import driver as cu
from helpers.driver_machine import DriverMachine, checked
ok = checked
def start():
    ok(cu.cuInit(0))
    device = ok(cu.cuDeviceGet(0))
    ok(cu.cuCtxPushCurrent(ok(cu.cuDevicePrimaryCtxRetain(device))))
def end():
    ok(cu.cuCtxPopCurrent())
    ok(cu.cuDevicePrimaryCtxRelease(ok(cu.cuDeviceGet(0))))
def status(result):
    return result[0].name
"""


def run(code: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    return run_script(PREPARE + textwrap.dedent(code), **settings)


def succeeds(code: str, **settings: object) -> None:
    done = run(code, **settings)
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_come_only_to_those_who_wait() -> None:
    succeeds("""
        start()
        stream = ok(cu.cuStreamCreate(1))
        memory, host = ok(cu.cuMemAlloc(4)), ok(cu.cuMemAllocHost(4))
        view = np.ctypeslib.as_array((ctypes.c_uint32 * 1).from_address(int(host)))
        view[0] = 1
        ok(cu.cuMemsetD32Async(memory, 7, 1, stream))
        ok(cu.cuMemcpyDtoHAsync(host, memory, 4, stream))
        assert view[0] == 1
        event = ok(cu.cuEventCreate(0))
        ok(cu.cuEventRecord(event, stream))
        assert status(cu.cuEventQuery(event)) == "CUDA_ERROR_NOT_READY"
        ok(cu.cuEventSynchronize(event))
        assert view[0] == 7
        other = ok(cu.cuStreamCreate(1))
        ok(cu.cuMemsetD32Async(memory, 8, 1, stream))
        ok(cu.cuEventRecord(event, stream))
        ok(cu.cuStreamWaitEvent(other, event, 0))
        ok(cu.cuMemcpyDtoHAsync(host, memory, 4, other))
        ok(cu.cuStreamSynchronize(other))
        assert view[0] == 8
        ok(cu.cuEventDestroy(event)), ok(cu.cuStreamDestroy(stream)), ok(cu.cuStreamDestroy(other))
        ok(cu.cuMemFree(memory)), ok(cu.cuMemFreeHost(host))
        end()
    """)


def test_a_thread_without_a_context() -> None:
    succeeds("""
        import threading
        start()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(status(cu.cuMemAlloc(16))))
        thread.start(); thread.join()
        assert seen == ["CUDA_ERROR_INVALID_CONTEXT"], seen
        end()
        assert status(cu.cuMemAlloc(16)) == "CUDA_ERROR_INVALID_CONTEXT"
    """)


@pytest.mark.parametrize(
    ("code", "report"),
    [
        ("ok(cu.cuMemAlloc(64))", "leaked at exit: 1 device allocations, 1 contexts (64 bytes)"),
        ("ok(cu.cuStreamCreate(1)); ok(cu.cuEventCreate(0)); end()", "leaked at exit: 1 streams, 1 events"),
        (
            "m = ok(cu.cuMemAlloc(64)); cu.cuMemcpyHtoD(m, bytes(65), 65); ok(cu.cuMemFree(m)); end()",
            "copy to the device of 65 bytes: the memory goes 1 bytes past the end of 64",
        ),
        (
            "m = ok(cu.cuMemAlloc(64)); ok(cu.cuMemFree(m)); cu.cuMemcpyHtoD(m, bytes(8), 8); end()",
            "copy to the device of 8 bytes: the memory was freed",
        ),
        ("m = ok(cu.cuMemAlloc(64)); ok(cu.cuMemFree(m)); cu.cuMemFree(m); end()", "freeing memory of 64 bytes twice"),
        ("cu.cuMemFree(4096); end()", "freeing an address that was never allocated"),
        (
            (
                "m = ok(cu.cuMemAlloc(64)); s = ok(cu.cuStreamCreate(1)); ok(cu.cuStreamBeginCapture(s, 1)); "
                "cu.cuMemcpyHtoDAsync(m, bytes(8), 8, s); cu.cuStreamEndCapture(s); ok(cu.cuStreamDestroy(s)); "
                "ok(cu.cuMemFree(m)); end()"
            ),
            "pageable memory in a capture",
        ),
    ],
)  # fmt: skip
def test_faults_and_leaks_are_reported(code: str, report: str) -> None:
    done = run("start(); " + code)
    assert report in done.stderr, done.stderr
    assert done.returncode == 97, (done.returncode, done.stderr)


def test_a_kernel_that_steps_outside_stops_with_a_sentence() -> None:
    done = run("""
        from helpers.official_heads import OFFICIAL, official_heads
        from helpers.kernel_runs import IDENTITY, DecodeRun
        machine = DriverMachine()
        heads = official_heads(np.zeros((1, 2, 64, 64), dtype=np.float32))
        run = DecodeRun(machine, heads, OFFICIAL, [IDENTITY], 0.0, 5)
        run.params.height *= 64
        machine.launch(run.plan.kernel, run.plan.shape, run.params)
    """)
    assert done.returncode == 98, done.stderr
    assert re.search(r"decode_float touched byte 32[78]\d\d of device memory of 32768 bytes", done.stderr), (
        done.stderr
    )


def test_unknown_symbols_abort_by_name() -> None:
    done = run("start(); cu.cuMemAllocManaged(16, 1)")
    assert done.returncode == -6
    assert "the stand-in driver has no cuMemAllocManaged" in done.stderr


def test_what_a_capture_forbids() -> None:
    succeeds("""
        import threading
        start()
        context = ok(cu.cuCtxGetCurrent())
        stream = ok(cu.cuStreamCreate(1))
        local, every = cu.CUstreamCaptureMode(1), cu.CUstreamCaptureMode(0)
        def allocate_elsewhere(seen):
            ok(cu.cuCtxPushCurrent(context))
            result = cu.cuMemAlloc(16)
            seen.append(result[0].name)
            if not int(result[0]):
                seen.append(cu.cuMemFree(result[1])[0].name)
            ok(cu.cuCtxPopCurrent())
        def capture(mode, act):
            ok(cu.cuStreamBeginCapture(stream, mode))
            act()
            result = cu.cuStreamEndCapture(stream)
            if not int(result[0]):
                ok(cu.cuGraphDestroy(result[1]))
            return result[0].name
        def elsewhere():
            thread = threading.Thread(target=allocate_elsewhere, args=(seen,))
            thread.start(); thread.join()
        seen = []
        assert capture(local, elsewhere) == "CUDA_SUCCESS"
        assert seen == ["CUDA_SUCCESS"] * 2
        assert capture(every, elsewhere) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        assert seen[2:] == ["CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"]
        invalid = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        assert capture(local, lambda: cu.cuStreamSynchronize(stream)) == invalid
        assert capture(local, lambda: cu.cuMemAlloc(16)) == invalid
        other, event = ok(cu.cuStreamCreate(1)), ok(cu.cuEventCreate(2))
        memory = ok(cu.cuMemAlloc(16))
        def fork(join):
            ok(cu.cuEventRecord(event, stream))
            ok(cu.cuStreamWaitEvent(other, event, 0))
            ok(cu.cuMemsetD8Async(memory, 1, 16, other))
            if join:
                ok(cu.cuEventRecord(event, other))
                ok(cu.cuStreamWaitEvent(stream, event, 0))
        assert capture(local, lambda: fork(False)) == "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
        assert capture(local, lambda: fork(True)) == "CUDA_SUCCESS"
        ok(cu.cuMemFree(memory)), ok(cu.cuEventDestroy(event))
        ok(cu.cuStreamDestroy(other)), ok(cu.cuStreamDestroy(stream))
        end()
    """)


def test_a_cubin_for_another_architecture_is_refused() -> None:
    succeeds("""
        from centernet_trt.kernels.compile import compile_module
        start()
        cubin = compile_module("preprocess", "sm_80", None).cubin
        result = cu.cuModuleLoadData(cubin)
        assert result[0].name == "CUDA_ERROR_NO_BINARY_FOR_GPU", result
        assert status(cu.cuModuleLoadData(bytes(64))) == "CUDA_ERROR_INVALID_IMAGE"
        end()
    """)


def test_without_a_device() -> None:
    succeeds("""
        from helpers.driver_machine import why_no_gpu
        assert "CUDA_ERROR_NO_DEVICE" in why_no_gpu()
    """, STANDIN_DEVICES=0)  # fmt: skip


def test_arguments_packed_as_pycuda_does() -> None:
    """PyCUDA hands parameters over as one packed buffer (CU_LAUNCH_PARAM_BUFFER_POINTER), not as pointers."""
    succeeds("""
        from helpers.official_heads import OFFICIAL, official_heads
        from helpers.kernel_runs import IDENTITY, DecodeRun, check_decode
        class Packed(DriverMachine):
            def enqueue(self, kernel, shape, params):
                packed = (ctypes.c_uint8 * ctypes.sizeof(params)).from_buffer_copy(params)
                size = ctypes.c_size_t(len(packed))
                extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
                library = ctypes.CDLL("libcuda.so.1")
                arguments = [ctypes.c_void_p(int(self._functions[kernel]))]
                arguments += [ctypes.c_uint(n) for n in (*shape.grid, *shape.block, shape.shared_bytes)]
                arguments += [ctypes.c_void_p(int(self.stream)), None, extra]
                assert library.cuLaunchKernel(*arguments) == 0
        machine = Packed()
        heads = official_heads(np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32))
        check_decode(DecodeRun(machine, heads, OFFICIAL, [IDENTITY], 0.0, 9), heads)
        machine.close()
    """)


def test_pycuda_itself() -> None:
    """PyCUDA's own primary context, pinned memory, streams, events, modules and launches."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("PyCUDA is not installed (extra pycuda)")
    succeeds("""
        import pycuda.driver as cuda
        from helpers.official_heads import OFFICIAL, official_heads
        from helpers.kernel_runs import IDENTITY, DecodeRun, check_decode
        from centernet_trt.kernels.compile import compile_module
        class PyCuda:
            def __init__(self):
                cuda.init()
                device = cuda.Device(0)
                self.multiprocessors = device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
                self.context = device.retain_primary_context()
                self.context.push()
                self.module = cuda.module_from_buffer(compile_module("decode", "sm_90", None).cubin)
                self.stream, self.memory = cuda.Stream(), []
            def reset(self):
                self.memory.clear()
            def allocate(self, nbytes, zero=False):
                return self.upload(bytes(nbytes) if zero else os.urandom(nbytes))
            def upload(self, data, pointers=False):
                raw = np.frombuffer(data if isinstance(data, bytes) else data.tobytes(), dtype=np.uint8)
                self.memory.append(cuda.mem_alloc(raw.nbytes))
                pinned = cuda.pagelocked_empty(raw.shape, np.uint8)
                pinned[:] = raw
                cuda.memcpy_htod_async(self.memory[-1], pinned, self.stream)
                self.stream.synchronize()
                return int(self.memory[-1])
            def write(self, address, data):
                cuda.memcpy_htod(address, data)
            def download(self, address, nbytes):
                host = np.empty(nbytes, dtype=np.uint8)
                cuda.memcpy_dtoh(host, address)
                return host
            def launch(self, kernel, shape, params):
                function = self.module.get_function(kernel)
                packed = np.frombuffer(bytes(params), dtype=np.uint8)
                before, after = cuda.Event(), cuda.Event()
                before.record(self.stream)
                function(packed, grid=shape.grid, block=shape.block, shared=shape.shared_bytes, stream=self.stream)
                after.record(self.stream)
                after.synchronize()
                assert before.time_till(after) >= 0
        machine = PyCuda()
        heads = official_heads(np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32))
        run = DecodeRun(machine, heads, OFFICIAL, [IDENTITY], 0.0, 9)
        check_decode(run, heads)
        machine.reset()
        machine.context.synchronize()
        del machine.module, machine.stream
        machine.context.pop()
        machine.context.detach()
    """)
