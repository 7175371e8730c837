"""The preprocess kernel, run on the CPU under sanitizers, against OpenCV 5 (the host's pre-processing)."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from helpers.cpu_kernels import CpuMachine
from helpers.kernel_runs import PreprocessRun, run_preprocess
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.kernels import absent_image
from centernet_trt.runtime.host.preprocess import level_table, preprocess
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.spec import InputSpec, ModelSpec

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
Photo = npt.NDArray[np.uint8]
POLICIES: dict[str, dict[str, Any]] = {
    "fix_res": {"size": {"rule": "fixed", "width": 128, "height": 96}, "resize": {"policy": "fix_res"}},
    "keep_res": {"size": {"rule": "pad", "multiple": 32}, "resize": {"policy": "keep_res"}},
    "letterbox": {
        "size": {"rule": "fixed", "width": 128, "height": 128},
        "resize": {"policy": "letterbox", "pad_value": 114},
    },
    "letterbox_corner": {
        "size": {"rule": "fixed", "width": 160, "height": 64},
        "resize": {"policy": "letterbox", "align": "top_left", "upscale": False},
    },
    "stretch": {"size": {"rule": "multiple", "multiple": 32}, "resize": {"policy": "stretch"}},
    "stretch_fixed": {"size": {"rule": "fixed", "width": 132, "height": 76}, "resize": {"policy": "stretch"}},
}


def spec_of(policy: str, **changes: Any) -> ModelSpec:
    base = preset("official").model_dump()
    base["input"] = base["input"] | POLICIES[policy] | changes
    return ModelSpec.model_validate(base)


def grey_levels(tensor: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[np.int64]:
    """The level behind every value, by the table; a value that is not in the table is an error."""
    levels = np.empty(tensor.shape, dtype=np.int64)
    for channel, row in enumerate(level_table(spec).astype(tensor.dtype)):
        at = np.searchsorted(row, tensor[:, channel])
        np.testing.assert_array_equal(row[np.minimum(at, 255)], tensor[:, channel])
        levels[:, channel] = at
    return levels


def check(
    machine: CpuMachine,
    images: list[Photo],
    spec: ModelSpec,
    half: bool = False,
    exact: bool = False,
    pad: int = 0,
) -> None:
    placements = [place(spec.input, image.shape[1], image.shape[0]) for image in images]
    found = run_preprocess(machine, images, placements, spec, half, pad)
    wanted = preprocess(images, placements, spec.input, np.float16 if half else np.float32)
    if exact:
        np.testing.assert_array_equal(found, wanted)
        return
    apart = np.abs(grey_levels(found, spec.input) - grey_levels(wanted, spec.input))
    assert apart.max() <= 1, f"{apart.max()} grey levels apart"
    assert (apart > 0).mean() < 0.2


def synthetic(height: int, width: int, seed: int = 0) -> Photo:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("half", [False, True])
def test_every_policy(sanitized: CpuMachine, policy: str, order: str, half: bool) -> None:
    spec = spec_of(policy, channel_order=order, scale=1.0, mean=(3.0, 2.0, 1.0), std=(2.0, 4.0, 8.0))
    check(
        sanitized, [synthetic(75, 109), synthetic(75, 109, 1)], spec, half, exact=policy == "keep_res", pad=5
    )


@pytest.mark.parametrize("policy", ["fix_res", "letterbox", "letterbox_corner", "stretch_fixed"])
def test_images_of_different_sizes_in_one_launch(sanitized: CpuMachine, policy: str) -> None:
    sizes = [(1, 1), (300, 20), (17, 211), (2, 3), (96, 128)]
    check(sanitized, [synthetic(h, w, h) for h, w in sizes], spec_of(policy))


@settings(max_examples=60, **RELAXED)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    seed=st.integers(0, 99),
    half=st.booleans(),
)
def test_random_sizes(
    sanitized: CpuMachine, policy: str, height: int, width: int, seed: int, half: bool
) -> None:
    sanitized.seed = seed
    smooth = cv2.GaussianBlur(synthetic(height, width, seed), (5, 5), 0)
    check(
        sanitized,
        [np.asarray(smooth, dtype=np.uint8)],
        spec_of(policy, scale=1.0),
        half,
        policy == "keep_res",
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_four_channels(sanitized: CpuMachine, channels: int) -> None:
    spec = spec_of("letterbox")
    image = np.random.default_rng(8).integers(0, 256, (60, 80, channels), dtype=np.uint8)
    as_bgr = np.repeat(image, 3, axis=2) if channels == 1 else np.ascontiguousarray(image[:, :, :3])
    placement = [place(spec.input, 80, 60)]
    np.testing.assert_array_equal(
        run_preprocess(sanitized, [image], placement, spec),
        run_preprocess(sanitized, [as_bgr], placement, spec),
    )


def test_an_absent_image_gives_padding(sanitized: CpuMachine) -> None:
    """One image of a batch that could not be read: the others are as they would be without it."""
    spec = spec_of("letterbox")
    image = synthetic(40, 50)
    placements = [place(spec.input, 50, 40)] * 2
    run = PreprocessRun(sanitized, [image, image], placements, spec)
    both = run.launch()
    sanitized.write(run.images, bytes(absent_image()))
    one = run.launch()
    np.testing.assert_array_equal(one[1], both[1])
    assert (grey_levels(one[:1], spec.input) == 0).all()


@pytest.mark.shared
@pytest.mark.parametrize("policy", ["official", "mmdet", "centerface", "ttf-ltrb", "fix_res"])
def test_photographs(plain: CpuMachine, shared: Path, policy: str) -> None:
    fixed = {"size": {"rule": "fixed", "width": 512, "height": 512}, "resize": {"policy": "fix_res"}}
    spec = spec_of("fix_res", **fixed) if policy == "fix_res" else preset(policy)
    for path in sorted((shared / "assets" / "coco_val2017_dev" / "images").glob("*.jpg"))[:6]:
        image = cv2.imread(str(path))
        assert image is not None
        exact = policy in ("official", "mmdet")
        check(plain, [np.asarray(image, dtype=np.uint8)], spec, half=True, exact=exact)
