"""Bundles of several optimisation profiles on the stand-in driver."""

from pathlib import Path
from typing import Any

import pytest
from helpers.fake_bundle import write_bundle
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import pictures, same, world
from helpers.standin_session import ON_STANDIN
from helpers.tiny_centernet import tiny_model, tiny_spec

from centernet_trt.errors import BundleError, InputError
from centernet_trt.runtime import Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange
from centernet_trt.runtime.trt.engine import load_engine

pytestmark = ON_STANDIN


def profile(batch: str, height: str, width: str) -> ProfileRecord:
    parse = ShapeRange.parse
    return ProfileRecord(batch=parse(batch), height=parse(height), width=parse(width))


# Numbers 1 and 2; number 0 is for one to three images of 32 to 64 pixels a side, tuned for 64.
TALL = profile("4", "64", "32")
LARGE = profile("1:2:8", "64:96:128", "64:96:128")


def bundle_of(folder: Path, flavour: str = "rtx", **plan: Any) -> EngineBundle:
    model, spec = tiny_model(), tiny_spec()
    return write_bundle(
        folder / "b", model, spec, (1, 1, 3), (32, 64, 64), flavour, further=(TALL, LARGE), **plan
    )


def load(bundle: EngineBundle, **options: Any) -> Detector:
    options = {"binding": "cuda-bindings", "max_pixels": 200 * 200, "streams": 1} | options
    return Detector.load(bundle, backend="tensorrt", **options)


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_each_shape_runs_on_its_profile(tmp_path: Path, flavour: str, cuda_graph: bool) -> None:
    # (images, height, width) -> the profiles that their parts run on.
    cases: list[tuple[tuple[int, int, int], list[int]]] = [
        ((1, 60, 60), [0]),
        ((3, 60, 60), [0]),  # log2(3) from profile 0; 3 times log2(1.5) from profile 2
        ((4, 60, 60), [2]),
        ((1, 60, 30), [0]),
        ((4, 60, 30), [1]),
        ((9, 60, 30), [1, 1, 0]),
        ((5, 30, 30), [0, 0]),  # 3 and 2
        ((1, 90, 90), [2]),
        ((10, 90, 120), [2, 2]),
    ]
    with world(tmp_path, flavour) as faults:
        bundle = bundle_of(tmp_path, flavour, target="portable" if flavour == "rtx" else "current")
        with (
            Detector.load(bundle, backend="onnxruntime", threads=1) as host,
            load(bundle, cuda_graph=cuda_graph) as detector,
        ):
            for repeat in range(3):
                for (count, height, width), profiles in cases:
                    images = pictures(count, height, width, seed=repeat)
                    faults.profiles.clear()
                    found = detector.detect_batch(images, 0.3)
                    if not repeat:
                        assert faults.profiles == profiles, (count, height, width)
                    for one, wanted in zip(found, host.detect_batch(images, 0.3), strict=True):
                        same(one, wanted)


def test_a_batch_below_the_smallest_is_filled(tmp_path: Path, faults: Faults) -> None:
    """Profile 1 alone: four images or none; one image and max_batch=4 run as four."""
    bundle = write_bundle(
        tmp_path / "b", tiny_model(), tiny_spec(), (4, 4, 4), (64, 64, 64), further=(LARGE,)
    )
    images = pictures(1, 60, 60)
    with (
        Detector.load(bundle, backend="onnxruntime", threads=1) as host,
        load(bundle, max_batch=2) as detector,
    ):
        # LARGE takes a single image as well, and the smallest batch that serves is run.
        same(detector.detect(images[0], 0.3), host.detect(images[0], 0.3))
        assert faults.profiles == [1]
    other = write_bundle(
        tmp_path / "c",
        tiny_model(),
        tiny_spec(),
        (4, 4, 4),
        (64, 64, 64),
        further=(profile("1", "128", "128"),),
    )
    with Detector.load(other, backend="onnxruntime", threads=1) as host, load(other, max_batch=1) as detector:
        faults.profiles.clear()
        same(detector.detect(images[0], 0.3), host.detect(images[0], 0.3))
        assert faults.profiles == [0]


def test_warmup_and_memory(tmp_path: Path, faults: Faults) -> None:
    bundle = bundle_of(tmp_path)
    with load(bundle) as detector:
        detector.warmup()
        faults.profiles.clear()
        detector.warmup([(30, 60)], batches=[1, 4])
        assert set(faults.profiles) == {0, 1}
        with pytest.raises(InputError, match="1 to 4 images"):
            detector.warmup([(30, 60)], batches=[5])
        with pytest.raises(InputError, match=r"profile 0: .*profile 1: .*profile 2: "):
            detector.warmup([(120, 30)])
        # Eight images of 128x128 are the most that any profile takes.
        tensors = detector.memory.device["network input and heads"]
    assert tensors == 8 * 128 * 128 * 4 * (3 + 6 / 16)


@pytest.mark.parametrize("change", ["fewer", "order", "other"])
def test_a_plan_with_other_profiles(tmp_path: Path, faults: Faults, change: str) -> None:
    shapes = [
        [[1, 3, 32, 32], [1, 3, 64, 64], [3, 3, 64, 64]],
        [[4, 3, 64, 32]] * 3,
        [[1, 3, 64, 64], [2, 3, 96, 96], [8, 3, 128, 128]],
    ]
    with Device.open(0, "cuda-bindings") as device, device.current:
        load_engine(bundle_of(tmp_path, engine_profiles=shapes), device.info)
        if change == "fewer":
            shapes = shapes[:2]
        elif change == "order":
            shapes = shapes[::-1]
        else:
            shapes[2][1] = [2, 3, 96, 128]
        with pytest.raises(BundleError, match=r"optimisation profiles .*differ from the manifest") as caught:
            load_engine(bundle_of(tmp_path, engine_profiles=shapes), device.info)
    assert "centernet-trt build tiny.onnx" in caught.value.hint
