"""The kernels on a device, through cuda-bindings: the same cases as on the CPU. The stand-in driver runs them too."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.driver_machine import DriverMachine, checked, why_no_gpu
from helpers.kernel_runs import IDENTITY, DecodeRun, check_decode, run_preprocess
from helpers.kernel_strategies import CONTENTS, Case, cases, heatmap
from helpers.official_heads import OFFICIAL, official_heads
from hypothesis import HealthCheck, given, settings

from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.spec import ModelSpec

pytestmark = pytest.mark.gpu
RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def gpu() -> Iterator[DriverMachine]:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    machine = DriverMachine()
    yield machine
    machine.close()


@settings(max_examples=40, **RELAXED)
@given(case=cases(max_k=128))
def test_random_cases(gpu: DriverMachine, case: Case) -> None:
    run = DecodeRun(gpu, case.heads, case.spec, case.placements, case.threshold, case.top_k, **case.options)
    check_decode(run, case.heads)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [100, 1024])
def test_order_and_ties(gpu: DriverMachine, content: str, dtype: Any, k: int) -> None:
    maps = heatmap(np.random.default_rng(1), content, (2, 3, 96, 128)).astype(dtype)
    heads = official_heads(maps)
    check_decode(DecodeRun(gpu, heads, OFFICIAL, [IDENTITY] * 2, 0.0, k), heads)


def test_the_target_shape_gives_the_same_bits_at_every_launch(gpu: DriverMachine) -> None:
    heads = official_heads(heatmap(np.random.default_rng(2), "noise", (2, 80, 128, 128)).astype(np.float16))
    run = DecodeRun(gpu, heads, OFFICIAL, [IDENTITY] * 2, 0.0, 100)
    first = run.launch()
    check_decode(run, heads, first)
    for _ in range(5):
        again = run.launch()
        for name in ("count", "xyxy", "score", "label"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("name", ["official", "mmdet", "centerface", "ttf-ltrb"])
@pytest.mark.parametrize("half", [False, True])
def test_preprocess(gpu: DriverMachine, name: str, half: bool) -> None:
    spec = preset(name)
    image = np.random.default_rng(3).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    placements = [place(spec.input, 150, 120)]
    found = run_preprocess(gpu, [image], placements, spec, half, pad=6)
    wanted = preprocess([image], placements, spec.input, np.float16 if half else np.float32)
    if name in ("official", "mmdet"):
        np.testing.assert_array_equal(found, wanted)
    else:
        assert np.abs(found.astype(np.float64) - wanted).max() <= 1


def test_a_captured_graph_replays_with_other_images(gpu: DriverMachine) -> None:
    """Upload of descriptors, decode and download in a graph; a replay sees what the pinned memory holds by then."""
    cu = gpu.cu
    heads = official_heads(heatmap(np.random.default_rng(4), "noise", (2, 3, 32, 40)).astype(np.float16))
    run = DecodeRun(gpu, heads, OFFICIAL, [IDENTITY] * 2, 0.0, [20, 20])
    check_decode(run, heads)  # also loads the kernel before the capture
    descriptors = run._descriptors()
    up, down = (checked(cu.cuMemAllocHost(size)) for size in (len(descriptors), run.layout.nbytes))
    pinned_up = (ctypes.c_uint8 * len(descriptors)).from_address(int(up))
    pinned_down = (ctypes.c_uint8 * run.layout.nbytes).from_address(int(down))
    mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    checked(cu.cuStreamBeginCapture(gpu.stream, mode))
    checked(cu.cuMemcpyHtoDAsync(run.images, up, len(descriptors), gpu.stream))
    gpu.enqueue(run.plan.kernel, run.plan.shape, run.params)
    checked(cu.cuMemcpyDtoHAsync(down, run.output, run.layout.nbytes, gpu.stream))
    graph = checked(cu.cuStreamEndCapture(gpu.stream))
    executable = checked(cu.cuGraphInstantiate(graph, 0))
    for threshold, top_k in ((0.0, [20, 20]), (0.7, [20, 3]), (0.999, [20, 20]), (0.5, [0, 1])):
        run.threshold, run.top_k = threshold, top_k
        ctypes.memmove(pinned_up, run._descriptors(), len(descriptors))
        checked(cu.cuGraphLaunch(executable, gpu.stream))
        checked(cu.cuStreamSynchronize(gpu.stream))
        check_decode(run, heads, run.layout.view(np.frombuffer(bytes(pinned_down), dtype=np.uint8)))
    checked(cu.cuGraphExecDestroy(executable))
    checked(cu.cuGraphDestroy(graph))
    checked(cu.cuMemFreeHost(up))
    checked(cu.cuMemFreeHost(down))


def test_spec_without_offset_head(gpu: DriverMachine) -> None:
    heads = OFFICIAL.heads.model_copy(update={"offset": None})
    spec = ModelSpec.model_validate(OFFICIAL.model_dump() | {"heads": heads.model_dump(), "cell_offset": 0.5})
    given = official_heads(heatmap(np.random.default_rng(5), "ties", (1, 2, 16, 16)).astype(np.float32))
    check_decode(DecodeRun(gpu, given, spec, [IDENTITY], 0.0, 30), given)
