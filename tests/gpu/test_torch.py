"""PyTorch in the same process: its tensors by DLPack and `__cuda_array_interface__`, its streams, its pinned images."""

from typing import Any

import numpy as np
import pytest
from helpers.driver_machine import why_no_gpu
from helpers.official_heads import OFFICIAL, official_heads

from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.interop import device_array, stream_number
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.ops import GpuOps
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.presets import preset

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def torch() -> Any:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    found = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not found.cuda.is_available():
        pytest.skip(f"PyTorch {found.__version__} sees no GPU")
    return found


class ByInterface:
    """A tensor that shows `__cuda_array_interface__` and no DLPack."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


def shown(tensor: Any, protocol: str) -> Any:
    return tensor if protocol == "dlpack" else ByInterface(tensor)


PROTOCOLS = pytest.mark.parametrize("protocol", ["dlpack", "interface"])


@PROTOCOLS
def test_a_tensor_is_seen_where_it_lies(torch: Any, protocol: str) -> None:
    tensor = torch.arange(24, device="cuda", dtype=torch.float16).reshape(2, 3, 4)
    for given in (tensor, tensor[1], tensor.transpose(0, 1)):
        seen = device_array(shown(given, protocol))
        assert (seen.address, seen.shape, seen.dtype) == (given.data_ptr(), tuple(given.shape), "float16")
        assert seen.strides == tuple(2 * step for step in given.stride())
        assert seen.contiguous == given.is_contiguous()


@PROTOCOLS
@pytest.mark.parametrize("half", [False, True])
def test_preprocess_into_a_tensor(torch: Any, protocol: str, half: bool) -> None:
    spec = preset("mmdet")
    images = [np.random.default_rng(n).integers(0, 256, (50, 60, 3), dtype=np.uint8) for n in range(2)]
    dtype, kind = (np.float16, torch.float16) if half else (np.float32, torch.float32)
    out = torch.full((2, 3, 64, 64), float("nan"), device="cuda", dtype=kind)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    on_gpu = torch.from_numpy(images[1]).cuda()
    torch.cuda.synchronize()
    with GpuOps(spec, max_batch=2, max_pixels=8000) as ops:
        placements = ops.preprocess([images[0], shown(on_gpu, protocol)], shown(out, protocol), stream)
        with torch.cuda.stream(stream):  # ordered behind the kernel by the stream alone
            doubled = out * 2
        stream.synchronize()
    np.testing.assert_array_equal(
        doubled.cpu().numpy(), 2 * preprocess(images, placements, spec.input, np.dtype(dtype))
    )


@PROTOCOLS
@pytest.mark.parametrize("half", [False, True])
def test_decode_of_what_a_stream_is_still_computing(torch: Any, protocol: str, half: bool) -> None:
    maps = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float16 if half else np.float32)
    heads = official_heads(maps)
    placements = [place(OFFICIAL.input, 640, 480), place(OFFICIAL.input, 500, 333)]
    sources = {name: torch.from_numpy(head).cuda() for name, head in heads.items()}
    tensors = {name: torch.zeros_like(source) for name, source in sources.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with GpuOps(OFFICIAL, max_batch=2, max_pixels=8000) as ops:
        for _ in range(20):
            with torch.cuda.stream(stream):
                for tensor in tensors.values():
                    tensor.zero_()
                torch.cuda._sleep(2_000_000)  # about a millisecond: an unordered decode would read zeros
                for name, tensor in tensors.items():
                    tensor.copy_(sources[name], non_blocking=True)
            given = {name: shown(tensor, protocol) for name, tensor in tensors.items()}
            for found, wanted in zip(
                ops.decode(given, placements, 0.5, stream=stream),
                decode(heads, OFFICIAL, placements, 0.5),
                strict=True,
            ):
                np.testing.assert_array_equal(found.label, wanted.label)
                np.testing.assert_allclose(found.score, wanted.score, rtol=1e-6)
                np.testing.assert_allclose(found.xyxy, wanted.xyxy, rtol=1e-5, atol=1e-2)


def test_streams_have_numbers(torch: Any) -> None:
    stream = torch.cuda.Stream()
    assert stream_number(stream) == stream.cuda_stream
    with Device.open(0, "cuda-bindings") as device:
        own = device.stream()
        assert torch.cuda.ExternalStream(own.number).cuda_stream == own.number


def test_our_memory_as_a_tensor(torch: Any) -> None:
    with Device.open(0, "cuda-bindings") as device:
        memory, stream = device.allocate(1000), device.stream()
        stream.fill(memory.address, 7, 1000)
        stream.synchronize()
        tensor = torch.as_tensor(memory, device="cuda")
        assert tensor.data_ptr() == memory.address
        assert int(tensor.sum()) == 7000


def test_pytorch_goes_on_after_our_context_is_given_back(torch: Any) -> None:
    tensor = torch.ones(1000, device="cuda")
    for _ in range(3):
        with Device.open(0, "cuda-bindings") as device:
            device.allocate(1 << 20)
        assert float((tensor + 1).sum()) == 2000


def test_the_baselines_of_the_benchmark_answer_as_the_host(torch: Any) -> None:
    from kernel_steps import DecodeStep, PreprocessStep
    from torch_baselines import decode_calls, preprocess_calls

    from centernet_trt.runtime.gpu.kernels import Kernels

    with Device.open(0, "cuda-bindings") as device, device.stream() as stream:
        kernels = Kernels(device)
        decoding = DecodeStep(device, kernels, stream, (2, 5, 32, 40), 50)
        decoding.check()
        calls, _ = decode_calls(torch, decoding)
        assert "PyTorch eager" in calls
        decoding.close()
        preparing = PreprocessStep(device, kernels, stream, 2, (64, 48), (96, 64))
        preparing.check()
        calls, _ = preprocess_calls(torch, preparing)
        assert "PyTorch eager" in calls
        preparing.close()
        kernels.close()
