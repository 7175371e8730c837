"""Loading a plan, and the TensorRT executor by itself; run by tests/runtime/test_pipeline.py."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_bundle import write_bundle
from fake_tensorrt import Faults
from standin_world import same, tiny, world
from tiny_centernet import scene, tiny_model, tiny_spec

from centernet_trt.errors import BackendError, BundleError, InputError
from centernet_trt.runtime import Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.decode import decode
from centernet_trt.runtime.device_arrays import DeviceArray
from centernet_trt.runtime.driver import Device
from centernet_trt.runtime.driver_objects import DeviceBuffer
from centernet_trt.runtime.executor import allocate_heads
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.preprocess import preprocess
from centernet_trt.runtime.tensorrt_engine import load_engine
from centernet_trt.runtime.tensorrt_executor import TensorRTExecutor


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    with world(tmp_path) as found:
        yield found


@pytest.fixture
def device() -> Iterator[Device]:
    with Device.open(0, "cuda-bindings") as opened:
        yield opened


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
    """An executor that asked for the memory by the old name would work on 10 alone."""
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
    with device.current, pytest.raises(BundleError, match=r"hm \(output, FLOAT\).*says hm \(output, HALF\)"):
        load_engine(other, device.info)


def cuda_array(memory: DeviceBuffer, shape: tuple[int, ...]) -> DeviceArray:
    strides = tuple(4 * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return DeviceArray(memory.address, shape, strides, "float32", None, memory)


def test_the_executor_alone(tmp_path: Path, faults: Faults, device: Device) -> None:
    """`run` on CUDA arrays of the caller's, at changing shapes."""
    bundle = bundle_of(tmp_path)
    executor, stream, spec = TensorRTExecutor(bundle, device), device.stream(), bundle.manifest.spec
    assert executor.note == ""
    pinned = device.allocate_pinned(1 << 20)
    memory = {name: device.allocate(1 << 19) for name in ("image", "hm", "wh", "reg")}
    for height, width in ((60, 90), (60, 90), (30, 30)):
        placement = place(spec.input, width, height)
        image = scene(height, width) if height > 30 else np.full((30, 30, 3), 200, np.uint8)
        tensor = preprocess([image], [placement], spec.input)
        heads = allocate_heads(bundle.manifest, 1, *tensor.shape[2:])
        pinned.array[: tensor.nbytes] = tensor.view(np.uint8).reshape(-1)
        stream.copy_to_device(memory["image"].address, pinned.address, tensor.nbytes)
        outputs = {name: cuda_array(memory[name], head.shape) for name, head in heads.items()}
        executor.run({"image": cuda_array(memory["image"], tensor.shape)}, outputs, stream)
        for name, head in heads.items():
            stream.copy_to_host(pinned.address, memory[name].address, head.nbytes)
            stream.synchronize()
            head[...] = pinned.array[: head.nbytes].view(np.float32).reshape(head.shape)
        with Detector.load(bundle, backend="onnxruntime", threads=1) as host:
            same(decode(heads, spec, [placement], 0.3)[0], host.detect(image, 0.3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "the input 'image' is missing"),
        ({"image": cuda_array(memory["image"], (1, 3, 16, 64))}, "was asked for; the engine was built for"),
        ({"image": cuda_array(memory["image"], (1, 2, 64, 64))}, "of shape (1, 3, 64, 64) was expected"),
        ({"image": np.zeros((1, 3, 64, 64))}, "an array in GPU memory was expected, found ndarray"),
    ]
    for inputs, message in wrong:
        with pytest.raises(InputError) as caught:
            executor.run(inputs, {} if not inputs else outputs, stream)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="needs a stream"):
        executor.run({"image": cuda_array(memory["image"], (1, 3, 64, 64))}, outputs)
    executor.close()
    executor.close()
    with pytest.raises(BackendError, match="the executor is closed"):
        executor.run({"image": cuda_array(memory["image"], (1, 3, 32, 32))}, outputs, stream)


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
    assert "could not be kept" in caplog.text


def test_the_engines_own_layers(tmp_path: Path, faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from centernet_trt.cli.app import app
    from centernet_trt.runtime.tensorrt_layers import EngineLayer, engine_layers

    bundle = bundle_of(tmp_path)
    wanted = [EngineLayer(name, "conv", ("Float NCHW",)) for name in ("hm", "wh", "reg")]
    assert engine_layers(bundle, binding="cuda-bindings") == wanted
    done = CliRunner().invoke(app, ["inspect", str(bundle.path), "--layers"])
    assert done.exit_code == 0, done.output
    assert "layers of the engine: 3; results: 3 Float NCHW" in done.output
    faults.refuse_plan = True
    done = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert done.exit_code == 0, done.output
    assert "does not tell what it made of them: TensorRT refuses the plan" in done.output.replace("\n", " ")
