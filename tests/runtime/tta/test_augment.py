"""Test-time augmentation: scaled inputs, the flip test and the merged scales."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.runtime import Detector, TestTimeAugmentation
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.decode import decode_image
from centernet_trt.runtime.host.preprocess import preprocess, resample
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.spec import InputSpec, ModelSpec
from centernet_trt.runtime.tta.augment import OFFICIAL_SCALES, detect_augmented, parse_augmentation, soft_nms
from centernet_trt.runtime.tta.flip import average_with_mirror
from centernet_trt.runtime.tta.scale import scaled_input

FIXED = {"rule": "fixed", "width": 128, "height": 96}
INPUTS: dict[str, dict[str, Any]] = {
    "keep_res": {"size": {"rule": "pad", "multiple": 32}, "resize": {"policy": "keep_res"}},
    "fix_res": {"size": FIXED, "resize": {"policy": "fix_res"}},
    "letterbox": {"size": FIXED, "resize": {"policy": "letterbox", "pad_value": 7}},
    "corner": {"size": FIXED, "resize": {"policy": "letterbox", "align": "top_left", "upscale": False}},
    "stretch": {"size": FIXED, "resize": {"policy": "stretch"}},
    "stretch_free": {"size": {"rule": "multiple", "multiple": 32}, "resize": {"policy": "stretch"}},
}


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    write_tiny_bundle(tmp_path / "b", largest=512)
    with Detector.load(tmp_path / "b", threads=1) as loaded:
        yield loaded


def assert_same(found: Detections, expected: Detections, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.score, expected.score, rtol=tolerance)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=tolerance, atol=100 * tolerance)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(INPUTS)), st.integers(40, 200), st.integers(40, 200), st.sampled_from(OFFICIAL_SCALES)
)  # fmt: skip
def test_every_pixel_lies_where_the_placement_says(name: str, width: int, height: int, scale: float) -> None:
    """The image holds its own coordinates, so a pixel of the network input says where it was taken from."""
    spec = InputSpec.model_validate(INPUTS[name])
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    image[:, :, 2] = 255
    scaled = scaled_input(image, spec, scale)
    placement = scaled.placement
    assert scaled.canvas.shape == (placement.height, placement.width, 3)
    assert (placement.source_width, placement.source_height) == (width, height)
    rows, columns = np.nonzero(scaled.canvas[:, :, 2] == 255)
    assert len(rows) > 50
    source = placement.to_source(np.stack([columns, rows], axis=1))
    seen = scaled.canvas[rows, columns, :2]
    # Half a pixel of the source between the two conventions, the rounding of a side spread over it, a grey level.
    slack = 1.5 + 1.0 / min(placement.scale_x, placement.scale_y)
    assert np.abs(source - seen).max() <= slack


def test_official_sizes_and_corners() -> None:
    """int(side * scale), padded to (side | 31) + 1, the halves rounded down; boxes divided by the scale."""
    image = np.zeros((75, 101, 3), dtype=np.uint8)
    spec = InputSpec.model_validate(INPUTS["keep_res"])
    for scale, width, height in ((0.5, 64, 64), (0.75, 96, 64), (1.25, 128, 96), (1.5, 160, 128)):
        placement = scaled_input(image, spec, scale).placement
        assert (placement.width, placement.height) == (width, height)
        inner = int(101 * scale)
        at = placement.to_source(np.array([[width // 2 - inner // 2 + 30, 0]]))
        assert at[0, 0] == pytest.approx(30 / scale)
    # fix_res scales by the longer side of the image as it came, so a larger one loses its outer part.
    placement = scaled_input(image, InputSpec.model_validate(INPUTS["fix_res"]), 1.5).placement
    corners = placement.to_source(np.array([[0, 0], [128, 96]]))
    assert (corners[0] > 0).any()
    assert corners[1, 0] - corners[0, 0] == pytest.approx(101 / 1.5)


def test_boxes_of_cut_objects_are_dropped() -> None:
    """A 128x96 image in a 128x96 input at scale 2: the middle is seen, network pixels are 2 * source - (64, 48)."""
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    scaled = scaled_input(image, InputSpec.model_validate(INPUTS["letterbox"]), 2.0)
    assert scaled.drops_cut
    boxes = [
        [40, 30, 90, 60],
        [33, 30, 60, 60],
        [40, 25, 60, 60],
        [40, 30, 95, 60],
        [40, 30, 60, 71],
        [35, 27, 93, 69],
    ]
    whole = scaled.is_whole(np.array(boxes, dtype=np.float32), 4)
    assert whole.tolist() == [True, False, False, False, False, True]
    # In the corner, only the right and the lower side cut. A scale that fits cuts nothing.
    corner = scaled_input(image, InputSpec.model_validate(INPUTS["corner"]), 2.0)
    assert corner.is_whole(np.array([[0, 0, 40, 30], [0, 0, 63, 30]], dtype=np.float32), 4).tolist() == [
        True,
        False,
    ]
    small = scaled_input(image, InputSpec.model_validate(INPUTS["letterbox"]), 0.5)
    assert small.is_whole(np.array([[0, 0, 128, 96]], dtype=np.float32), 4).all()
    for name in ("fix_res", "keep_res", "stretch_free"):  # as the official code has it
        assert not scaled_input(image, InputSpec.model_validate(INPUTS[name]), 1.5).drops_cut


def test_the_cut_is_applied(tmp_path: Path) -> None:
    """Every box of the tiny network is a cell or more: at scale 2 those at the border go, at 1 none."""
    image = np.random.default_rng(9).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    manifest = manifest_of(tmp_path / "b", input=INPUTS["letterbox"])
    single = detect_augmented(image, manifest, AnyNetwork(), TestTimeAugmentation(scales=(1.0,)), 0.0)
    assert len(single) == 100
    cut = detect_augmented(image, manifest, AnyNetwork(), TestTimeAugmentation(scales=(2.0,)), 0.0)
    assert 0 < len(cut) < 100
    scaled = scaled_input(image, manifest.spec.input, 2.0)
    assert scaled.is_whole(cut.xyxy, 4).all()


@pytest.mark.parametrize("name", INPUTS)
def test_scale_one_is_the_plain_input(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    spec = InputSpec.model_validate(INPUTS[name])
    scaled = scaled_input(image, spec, 1.0)
    assert scaled.placement == place(spec, 90, 70)
    np.testing.assert_array_equal(scaled.canvas, resample(image, scaled.placement))
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive"):
            scaled_input(image, spec, scale)
    assert scaled_input(image[:1], spec, 0.5).canvas.any()  # a sliver keeps a pixel


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 95)])
def test_flip_of_a_symmetric_network_changes_nothing(detector: Detector, height: int, width: int) -> None:
    """The tiny network sees a mirrored cell as it sees the cell."""
    image = scene(height, width)
    plain = detector.detect(image, 0.0)
    assert_same(detector.detect(image, 0.0, tta="flip"), plain, 1e-6)
    assert_same(detector.detect(image, 0.5, top_k=1, tta="flip"), plain[:1], 1e-6)
    assert len(detector.detect(image, 0.5, classes=["green"], tta="flip")) == 0


class AnyNetwork:
    """Heads that are arbitrary functions of each image of the input, and a record of the inputs."""

    def __init__(self) -> None:
        self.inputs: list[npt.NDArray[np.floating]] = []

    def __call__(self, tensor: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.float32]]:
        self.inputs.append(tensor.copy())
        found: dict[str, list[npt.NDArray[np.float32]]] = {"hm": [], "wh": [], "reg": []}
        for picture in tensor:
            random = np.random.default_rng(np.frombuffer(picture.tobytes(), dtype=np.uint8)[::97])
            shape = (2, picture.shape[1] // 4, picture.shape[2] // 4)
            found["hm"].append(random.normal(size=shape).astype(np.float32))
            found["wh"].append(random.uniform(1, 9, size=shape).astype(np.float32))
            found["reg"].append(random.uniform(0, 1, size=shape).astype(np.float32))
        return {name: np.stack(heads) for name, heads in found.items()}


def manifest_of(folder: Path, batch: int = 4, largest: int = 512, **spec: Any) -> Manifest:
    return write_tiny_bundle(folder, batch, largest, **spec).manifest


def oracle(
    image: npt.NDArray[np.uint8], spec: ModelSpec, scales: tuple[float, ...], top_k: int
) -> Detections:
    """The official order of operations, written out: flip, average, decode, divide, soft-NMS, best."""
    network, parts = AnyNetwork(), []
    probable = spec.heads.heatmap.model_copy(update={"activation": "probability"})
    decoded_as = spec.model_copy(update={"heads": spec.heads.model_copy(update={"heatmap": probable})})
    for scale in scales:
        resized = cv2.resize(image, (int(image.shape[1] * scale), int(image.shape[0] * scale)))
        placement = place(spec.input, resized.shape[1], resized.shape[0])
        tensor = preprocess([np.asarray(resized, dtype=np.uint8)], [placement], spec.input)
        direct = {name: head[0] for name, head in network(tensor).items()}
        other = {name: head[0] for name, head in network(np.ascontiguousarray(tensor[..., ::-1])).items()}
        found = decode_image(average_with_mirror(direct, other, spec, {}), decoded_as, placement, 0.0)
        parts.append((found.xyxy / np.float32(scale), found.score, found.label))
    xyxy, score, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = soft_nms(xyxy, score, label)
    return Detections(xyxy[kept.rows], kept.score, label[kept.rows])[:top_k]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_order_of_operations(tmp_path: Path, batch: int) -> None:
    image = np.random.default_rng(2).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    manifest, network = manifest_of(tmp_path / "b", batch), AnyNetwork()
    found = detect_augmented(image, manifest, network, parse_augmentation("flip+multiscale"), 0.0)
    assert_same(found, oracle(image, manifest.spec, OFFICIAL_SCALES, 100), 1e-5)
    assert len(found) == 100
    assert (np.diff(found.score) <= 0).all()
    assert found.class_names == ("blue", "green")
    assert [len(tensor) for tensor in network.inputs] == ([2] * 5 if batch > 1 else [1] * 10)
    pairs = list(network.inputs) if batch > 1 else list(zip(*[iter(network.inputs)] * 2, strict=True))
    for pair in pairs:
        direct, mirrored = (np.squeeze(one) for one in pair)
        np.testing.assert_array_equal(mirrored, direct[:, :, ::-1])


def test_top_k_and_threshold_cut_the_same_list(tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    manifest = manifest_of(tmp_path / "b")
    tta = TestTimeAugmentation(scales=(0.5, 1.0), sigma=0.02)  # a strong decay: many change places
    whole = detect_augmented(image, manifest, AnyNetwork(), tta, 0.0)
    assert_same(detect_augmented(image, manifest, AnyNetwork(), tta, 0.0, top_k=7), whole[:7])
    level = float(whole.score[20])
    assert_same(
        detect_augmented(image, manifest, AnyNetwork(), tta, level), whole[whole.score >= whole.score[20]]
    )
    # None is the spec's 0.3 and 100.
    assert_same(detect_augmented(image, manifest, AnyNetwork(), tta), whole[whole.score >= np.float32(0.3)])
    mild = TestTimeAugmentation(scales=(0.5, 1.0))
    assert len(detect_augmented(image, manifest, AnyNetwork(), mild, 0.0, top_k=150)) > 100


def test_multiscale_finds_one_object_once(detector: Detector) -> None:
    """A block of one colour is found at every scale, and soft-NMS leaves one box with its score."""
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[48:80, 48:80] = (255, 0, 90)
    found = detector.detect(image, 0.8, tta=TestTimeAugmentation(scales=(0.5, 1.0, 2.0)))
    assert len(found) >= 1
    assert (found.label == 0).all()
    centre = (found.xyxy[:, :2] + found.xyxy[:, 2:]) / 2
    assert (np.abs(centre - 64) <= 24).all()
    assert len(detector.detect(image, 0.8, tta="multiscale")) <= len(detector.detect(image, 0.8))


def test_hard_nms_stays_with_one_scale_and_gives_way_to_soft(tmp_path: Path) -> None:
    image = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    plain = manifest_of(tmp_path / "a")
    hard = manifest_of(tmp_path / "b", nms_iou=0.01)
    one, two = TestTimeAugmentation(), TestTimeAugmentation(scales=(1.0, 0.5))
    assert len(detect_augmented(image, hard, AnyNetwork(), one, 0.0)) < len(
        detect_augmented(image, plain, AnyNetwork(), one, 0.0)
    )
    assert_same(
        detect_augmented(image, hard, AnyNetwork(), two, 0.0),
        detect_augmented(image, plain, AnyNetwork(), two, 0.0),
    )


def test_errors(detector: Detector, tmp_path: Path) -> None:
    image = scene(300, 400)
    with pytest.raises(InputError, match=r"400x300 pixels at scale 1.5 needs a network input of 608x480"):
        detector.detect(image, tta="flip+multiscale")
    with pytest.raises(InputError, match="there is no augmentation 'mirror'"):
        detector.detect(image, tta="mirror")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threshold"):
        detector.detect(image, 2.0, tta="flip")
    for wrong in ({"scales": ()}, {"scales": (1.0, 0.0)}, {"scales": (float("nan"),)}, {"sigma": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TestTimeAugmentation(**wrong)  # type: ignore[arg-type]
    heads = tiny_spec().heads.model_dump()
    heads["extra"] = [{"kind": "points", "name": "marks", "tensor": "marks", "points": 2}]
    network = AnyNetwork()
    with pytest.raises(InputError, match="'marks'"):
        detect_augmented(image, manifest_of(tmp_path / "c", heads=heads), network, TestTimeAugmentation())
    assert network.inputs == []


@pytest.mark.shared
@pytest.mark.slow
def test_augmentation_does_not_lower_the_accuracy_of_a_real_model(shared: Path, tmp_path: Path) -> None:
    """COCO MobileNetV3 on 103 images: AP's standard error is 0.018, that of a paired difference 0.0065."""
    from centernet_trt.builder.build import BuildOptions, build
    from centernet_trt.builder.recipe import read_recipe
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, coco_rows

    folder = shared / "assets" / "coco_val2017_dev"
    truth = CocoGroundTruth(folder / "instances_val2017_dev.json", folder / "images")
    model = shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx"
    spec = read_recipe("coco-mobilenetv3").spec
    build(model, spec, tmp_path / "b", BuildOptions(precision="fp32", flavour="none"))
    ap = {}
    with Detector.load(tmp_path / "b") as detector:
        for tta in (None, "flip", "flip+multiscale"):
            found = {one.id: detector.detect(one.path, 0.0, tta=tta) for one in truth.images}  # type: ignore[arg-type]
            ap[tta] = truth.score(coco_rows(found)).ap
    assert ap[None] == pytest.approx(0.305, abs=0.002)
    assert ap["flip"] > ap[None]
    assert ap["flip+multiscale"] > ap[None] - 2 * 0.0065
