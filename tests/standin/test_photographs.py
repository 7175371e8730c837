"""Real models on photographs, the pipeline against the ONNX Runtime backend."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers.detector_parts import programs
from helpers.fake_bundle import write_bundle
from helpers.standin_pipeline import BINDINGS, half_heads, load, on_host, same, world
from helpers.standin_session import ON_STANDIN
from helpers.threads import in_threads

from centernet_trt.runtime import Detections
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.tta.augment import TestTimeAugmentation

pytestmark = [*ON_STANDIN, pytest.mark.shared]
PIXELS = 640 * 640
MODELS = {
    "centerface": ("centerface/centerface.onnx", "demo_images", (32, 320, 640)),
    "ttf-ltrb": ("mb3_centernet_coco/mb3_centernet.onnx", "coco_val2017_dev/images", (512, 512, 512)),
}


@pytest.fixture
def in_world(tmp_path: Path) -> Iterator[None]:
    with world(tmp_path):
        yield


def bundle_of(folder: Path, assets: Path, name: str, half: bool) -> EngineBundle:
    """The model with an open batch (and size, where the engine has one), its heads and nothing else as outputs."""
    file, _, sides = MODELS[name]
    model, spec = onnx.load(str(assets / file)), preset(name)
    # Old files list their weights as inputs too.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    outputs = [value for value in model.graph.output if value.name in spec.heads.tensors]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    del model.graph.value_info[:]
    for value in (model.graph.input[0], *model.graph.output):
        for axis in (0, 2, 3) if sides[0] != sides[2] else (0,):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    return write_bundle(folder / "bundle", half_heads(model) if half else model, spec, (1, 1, 8), sides)


def photographs(assets: Path, name: str, count: int) -> list[BgrImage]:
    """Pictures of different sizes, at most 640 pixels a side."""
    found = []
    for number, path in enumerate(sorted((assets / MODELS[name][1]).glob("*.jpg"))[:count]):
        picture = cv2.imread(str(path))
        assert picture is not None
        scale = min(1.0, (640 - 64 * (number % 3)) / max(picture.shape))
        found.append(np.asarray(cv2.resize(picture, None, fx=scale, fy=scale), dtype=np.uint8))
    return found


def agree(found: Detections, wanted: Detections) -> None:
    """Every sure detection has its like in the other set: same label, score within 0.01, sides within 4 pixels.

    Where an image is scaled, the kernel may be one grey level beside OpenCV, and the networks amplify that. Seen on these
    pictures: scores 0.0044 apart.
    """
    for one, other in ((found, wanted), (wanted, found)):
        for row in np.flatnonzero(one.score > 0.35):
            near = (
                (other.label == one.label[row])
                & (np.abs(other.score - one.score[row]) < 0.01)
                & (np.abs(other.xyxy - one.xyxy[row]).max(axis=1) < 4)
            )
            assert near.any(), (one.label[row], one.score[row], one.xyxy[row])
            for name, values in one.extra.items():
                gaps = np.abs(other.extra[name][near] - values[row]).max(axis=1)
                assert gaps.min() < 4


def rows_of(
    found: Iterable[Detections], wanted: Iterable[Detections]
) -> Iterator[tuple[Detections, Detections]]:
    return zip(found, wanted, strict=True)


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_real_models(
    tmp_path: Path, shared: Path, in_world: None, name: str, half: bool, binding: BindingName
) -> None:
    assets = shared / "assets"
    bundle = bundle_of(tmp_path, assets, name, half)
    images = photographs(assets, name, 8)
    with on_host(bundle) as host, load(bundle, binding=binding, streams=2, max_pixels=PIXELS) as detector:
        every = host.detect_batch(images, 0.3)
        for count in (1, 3, 8):
            wanted = every[:count]
            assert sum(len(detections) for detections in wanted) >= count
            for _ in range(2):  # as launches, then as a graph
                for one, other in rows_of(detector.detect_batch(images[:count], 0.3), wanted):
                    agree(one, other)
        # Cut to a size that is not scaled, there is nothing to differ.
        exact = [
            np.ascontiguousarray(image[:320, :512])
            for image in images
            if min(image.shape[0] - 320, image.shape[1] - 512) >= 0
        ]
        found, wanted = detector.detect_batch(exact[:3], 0.3), host.detect_batch(exact[:3], 0.3)
        for one, other in rows_of(found, wanted):
            if len(other):
                same(one, other, pixels=0.5 if half else 1e-2)
    with load(bundle, binding=binding, cuda_graph=False, max_pixels=PIXELS) as plain:
        for one, other in rows_of(plain.detect_batch(images[:3], 0.3), every[:3]):
            agree(one, other)
        assert not any(captured for kept in programs(plain) for captured in kept.values())


SEVERAL = [4, *(pytest.param(streams, marks=pytest.mark.slow) for streams in (1, 2, 3))]


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("streams", SEVERAL)
@pytest.mark.parametrize("name", MODELS)
def test_eight_threads_on_photographs(
    tmp_path: Path, shared: Path, in_world: None, name: str, streams: int, binding: BindingName
) -> None:
    """Each thread has photographs of its own, of other sizes; by `detect`, `detect_batch` and `submit`."""
    bundle = bundle_of(tmp_path, shared / "assets", name, half=True)
    images = photographs(shared / "assets", name, 8)
    with (
        on_host(bundle) as host,
        load(bundle, binding=binding, streams=streams, max_pixels=PIXELS) as detector,
    ):
        wanted = host.detect_batch(images, 0.3)

        def work(number: int) -> None:
            image, pair = images[number], [images[number], images[(number + 1) % 8]]
            match number % 3:
                case 0:
                    found = [detector.detect(image, 0.3)]
                case 1:
                    found = detector.detect_batch(pair, 0.3)
                case _:
                    found = [detector.submit(image, threshold=0.3).result(60) for image in pair]
            for one, other in zip(found, [wanted[number], wanted[(number + 1) % 8]], strict=False):
                agree(one, other)

        in_threads(work)


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.25)])
@pytest.mark.parametrize("name", MODELS)
def test_flip_and_multiscale_on_photographs(
    tmp_path: Path,
    shared: Path,
    in_world: None,
    name: str,
    scales: tuple[float, ...],
    binding: BindingName,
) -> None:
    """The heads are averaged on the host, from inputs made there: nothing may differ but the last bits."""
    bundle = bundle_of(tmp_path, shared / "assets", name, half=False)
    points = {head.name: (1, 0, 2, 4, 3) for head in bundle.manifest.spec.heads.extra}
    images = [image[:500, :500] for image in photographs(shared / "assets", name, 2)]
    for flip in (True, False):
        tta = TestTimeAugmentation(flip=flip, scales=scales, flip_index=points if flip else {})
        with on_host(bundle) as host, load(bundle, binding=binding, max_pixels=PIXELS) as detector:
            for one, other in rows_of(
                detector.detect_batch(images, 0.3, tta=tta), host.detect_batch(images, 0.3, tta=tta)
            ):
                same(one, other, pixels=1e-2)
