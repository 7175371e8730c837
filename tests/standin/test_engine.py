"""Loading a plan, and the network by itself."""

import gc
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.fake_bundle import write_bundle
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import same, tiny, world
from helpers.standin_session import ON_STANDIN
from helpers.tiny_centernet import scene, tiny_model, tiny_spec

from centernet_trt.errors import BackendError, BundleError, InputError
from centernet_trt.runtime import Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.interop import DeviceArray
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.ops import GpuOps
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.onnxruntime import allocate_heads
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.trt.context import NetworkContext, TensorRTExecutor
from centernet_trt.runtime.trt.engine import load_engine

pytestmark = ON_STANDIN


def bundle_of(folder: Path, **plan: Any) -> EngineBundle:
    return write_bundle(folder / "b", tiny_model(), tiny_spec(), (1, 1, 4), (32, 64, 128), **plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"version": "1.6.0.1"}, "built by tensorrt_rtx 1.6.0.1, 1.7.1.116 is installed here"),
        ({"target": "sm_120"}, "built for sm_120, stand-in is sm_90"),
        ({"flavour": "tensorrt"}, "tensorrt is not installed"),
    ],
)
def test_a_plan_for_something_else(
    tmp_path: Path,
    faults: Faults,
    device: Device,
    plan: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    if plan.get("flavour") == "tensorrt":
        monkeypatch.delitem(sys.modules, "tensorrt")
    bundle = bundle_of(tmp_path, **plan)
    with pytest.raises(BundleError, match="no plan of the bundle can run here") as caught:
        load_engine(bundle, device.info)
    assert message in caught.value.message
    assert "centernet-trt build tiny.onnx" in caught.value.hint
    with pytest.raises(BackendError, match="TensorRT cannot run here: no plan of the bundle"):
        Detector.load(bundle, backend="tensorrt")
    with Detector.load(bundle, threads=1) as detector:
        assert detector.note.startswith("network ran in ONNX Runtime")


def test_a_portable_plan_on_an_old_gpu(tmp_path: Path, faults: Faults, device: Device) -> None:
    from dataclasses import replace

    with pytest.raises(
        BundleError, match="built for sm_80 and later, stand-in is sm_75; build with --target sm_75"
    ):
        load_engine(bundle_of(tmp_path), replace(device.info, capability=(7, 5)))


def test_a_tensorrt_that_is_too_old(tmp_path: Path, device: Device) -> None:
    with (
        world(tmp_path, "tensorrt", "10.0.1"),
        pytest.raises(BundleError, match=r"tensorrt 10.0.1 is installed, 10.1 or newer is needed"),
    ):
        load_engine(bundle_of(tmp_path, flavour="tensorrt", version="10.0.1", target="current"), device.info)


def test_a_name_that_tensorrt_11_removed_fails_there(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor that uses the old name of the memory query would work on 10 alone."""
    current = TensorRTExecutor.__init__

    def old(self: TensorRTExecutor, bundle: EngineBundle, on: Device) -> None:
        current(self, bundle, on)
        self.workspace_bytes = int(self.loaded.engine.device_memory_size)

    monkeypatch.setattr(TensorRTExecutor, "__init__", old)
    for version, works in (("10.13.3.9", True), ("11.0.0.1", False)):
        options = {"flavour": "tensorrt", "version": version, "target": "current"}
        bundle = bundle_of(tmp_path / version, **options)
        with world(tmp_path, "tensorrt", version):
            if works:
                TensorRTExecutor(bundle, device).close()
                continue
            with pytest.raises(AttributeError, match="device_memory_size"):
                TensorRTExecutor(bundle, device)
            gc.collect()


def test_type_stubs_are_no_tensorrt(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(BundleError, match="only type stubs of it are"):
        load_engine(bundle_of(tmp_path, flavour="tensorrt", target="current"), device.info)


def test_a_plan_that_tensorrt_refuses(tmp_path: Path, faults: Faults, device: Device) -> None:
    faults.refuse_plan = True
    bundle = bundle_of(tmp_path)
    with device.current, pytest.raises(BackendError, match=r"refuses the plan fake\.plan") as caught:
        load_engine(bundle, device.info)
    assert "[ERROR] [fake] Magic tag does not match" in caught.value.message


def test_a_plan_with_other_tensors(tmp_path: Path, faults: Faults, device: Device) -> None:
    bundle = bundle_of(tmp_path)
    heads = tuple(head.model_copy(update={"dtype": "float16"}) for head in bundle.manifest.heads)
    other = EngineBundle(bundle.path, bundle.manifest.model_copy(update={"heads": heads}))
    with (
        device.current,
        pytest.raises(BundleError, match=r"expected hm \(output, HALF\).*got hm \(output, FLOAT\)"),
    ):
        load_engine(other, device.info)


def test_the_network_on_buffers_of_its_caller(tmp_path: Path, faults: Faults, device: Device) -> None:
    """Contexts of several shapes share one workspace and the same tensors, as the lane's programs do, turn by turn."""
    bundle = bundle_of(tmp_path)
    executor, stream, spec = TensorRTExecutor(bundle, device), device.stream(), bundle.manifest.spec
    pinned, workspace = device.allocate_pinned(1 << 20), device.allocate(executor.workspace_bytes)
    memory = {name: device.allocate(1 << 19) for name in ("image", "hm", "wh", "reg")}
    addresses = {name: buffer.address for name, buffer in memory.items()}
    contexts: dict[tuple[int, int, int], NetworkContext] = {}
    for height, width in ((60, 90), (60, 90), (30, 30), (60, 90)):
        placement = place(spec.input, width, height)
        image = scene(height, width) if height > 30 else np.full((30, 30, 3), 200, np.uint8)
        tensor = preprocess([image], [placement], spec.input)
        heads = allocate_heads(bundle.manifest, 1, *tensor.shape[2:])
        pinned.array[: tensor.nbytes] = tensor.view(np.uint8).reshape(-1)
        stream.copy_to_device(memory["image"].address, pinned.address, tensor.nbytes)
        shape = (1, *tensor.shape[2:])
        if shape not in contexts:
            contexts[shape] = executor.context(shape, addresses, workspace.address, stream)
        contexts[shape].enqueue(stream)
        for name, head in heads.items():
            stream.copy_to_host(pinned.address, memory[name].address, head.nbytes)
            stream.synchronize()
            head[...] = pinned.array[: head.nbytes].view(np.float32).reshape(head.shape)
        with Detector.load(bundle, backend="onnxruntime", threads=1) as host:
            same(decode(heads, spec, [placement], 0.3)[0], host.detect(image, 0.3))
    assert len(contexts) == 2
    for context in contexts.values():
        context.close()
        context.close()
    executor.close()
    executor.close()
    with pytest.raises(BackendError, match="the engine is closed"):
        executor.context((1, 32, 32), addresses, workspace.address, stream)


def test_what_the_network_cannot_be_bound_to(tmp_path: Path, faults: Faults, device: Device) -> None:
    executor, stream = TensorRTExecutor(bundle_of(tmp_path), device), device.stream()
    workspace = device.allocate(executor.workspace_bytes)
    memory = {name: device.allocate(1 << 19) for name in ("image", "hm", "wh", "reg")}
    addresses = {name: buffer.address for name, buffer in memory.items()}
    with pytest.raises(
        InputError, match=r"expected an input that the engine was built for \(.*\), got \d+ images"
    ):
        executor.context((1, 16, 64), addresses, workspace.address, stream)
    before = device.open_resources
    for name, address in addresses.items():
        with pytest.raises(BackendError, match=f"refuses the address of '{name}'"):
            executor.context((1, 64, 64), addresses | {name: address + 1}, workspace.address, stream)
        fewer = {other: at for other, at in addresses.items() if other != name}
        context = executor.context((1, 64, 64), fewer, workspace.address, stream)
        with pytest.raises(BackendError, match="not all addresses were set"):
            context.enqueue(stream)
        context.close()
    assert device.open_resources == before
    executor.close()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 2, 64, 64), "float32", r"of shape \(1, 3, height, width\) was expected"),
        ((1, 3, 64, 64), "float64", "an array of float64 and shape"),
        (None, "float32", "an array in GPU memory was expected, found ndarray"),
    ],
)
def test_arrays_that_are_no_network_input(
    tmp_path: Path, faults: Faults, device: Device, shape: tuple[int, ...] | None, dtype: str, message: str
) -> None:
    """Arrays of the caller's reach the kernels through `GpuOps`, which looks at them first."""
    memory = device.allocate(1 << 19)
    array: Any = np.zeros((1, 3, 64, 64), np.float32)
    if shape is not None:
        size = np.dtype(dtype).itemsize
        strides = tuple(size * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        array = DeviceArray(memory.address, shape, strides, dtype, None, memory)
    with (
        GpuOps(tiny_spec(), max_batch=1, max_pixels=10000, binding="cuda-bindings") as ops,
        pytest.raises(InputError, match=message),
    ):
        ops.preprocess([scene(60, 60)], array)


def test_the_compiled_kernels_are_kept(tmp_path: Path, faults: Faults) -> None:
    """TensorRT for RTX compiles on the user's GPU; the next start reads what this one compiled."""
    bundle = tiny(tmp_path)
    options: dict[str, Any] = {"backend": "tensorrt", "max_pixels": 10000, "binding": "cuda-bindings"}
    with Detector.load(bundle, **options) as detector:
        detector.warmup([(60, 60)], batches=[1])
        (entry,) = (tmp_path / "cache" / "rtx").iterdir()
        assert entry.read_bytes() == b"KERNELS (1, 3, 64, 64)"
        detector.detect(np.zeros((20, 20, 3), np.uint8))
    assert entry.read_bytes() == b"KERNELS (1, 3, 32, 32)"
    entry.write_bytes(b"damaged")
    with Detector.load(bundle, **options) as detector:
        detector.detect(np.zeros((60, 60, 3), np.uint8))
    assert entry.read_bytes() == b"KERNELS (1, 3, 64, 64)"
    assert list(entry.parent.iterdir()) == [entry]


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    bundle = tiny(tmp_path)
    with Detector.load(bundle, backend="tensorrt", max_pixels=10000, binding="cuda-bindings") as detector:
        detector.detect(np.zeros((20, 20, 3), np.uint8))
    assert "could not be saved" in caplog.text


def test_the_engines_own_layers(tmp_path: Path, faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from centernet_trt.cli.app import app
    from centernet_trt.runtime.trt.inspector import EngineLayer, engine_layers

    bundle = bundle_of(tmp_path)
    wanted = [EngineLayer(name, "conv", ("Float NCHW",)) for name in ("hm", "wh", "reg")]
    assert engine_layers(bundle, binding="cuda-bindings") == wanted
    done = CliRunner().invoke(app, ["inspect", str(bundle.path), "--layers"])
    assert done.exit_code == 0, done.output
    assert "layers of the engine: 3; results: 3 Float NCHW" in done.output
    faults.refuse_plan = True
    done = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert done.exit_code == 0, done.output
    assert "those of the engine cannot be read: TensorRT refuses the plan" in done.output.replace("\n", " ")
