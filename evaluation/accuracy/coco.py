"""COCO mAP of a detector, by pycocotools: `CocoGroundTruth` and `CocoScores`."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError, SpecError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.tta.augment import Augmentation

# The order of pycocotools' COCOeval.stats for boxes.
_STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RECALLS = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


@dataclass(frozen=True)
class CocoScores:
    """Box AP and AR as COCO defines them: 0..1, or -1 if no object of that kind is annotated.

    Attributes:
        ap: mean over IoU 0.50 to 0.95; `ap50` and `ap75` at one IoU; `ap_small`, `ap_medium`, `ap_large` by object area.
        ar1: AR with at most 1 detection an image; `ar10` and `ar100` likewise; `ar_small` to `ar_large` by object area.
        images: number of images.
        objects: number of annotated objects.
        detections: number of detections.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    images: int
    objects: int
    detections: int

    def to_json(self) -> dict[str, float]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class CocoImage:
    """Id and file of an annotated image."""

    id: int
    path: Path


class CocoGroundTruth:
    """A COCO instances file and the folder of its images."""

    def __init__(self, annotations: Path, images: Path) -> None:
        """Read the annotations and find the images.

        Args:
            annotations: the instances file, JSON.
            images: folder of the images it lists.

        Raises:
            InputError: not a readable COCO instances file, or an image is missing.
        """
        from pycocotools.coco import COCO

        try:
            data = json.loads(annotations.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the annotations {annotations}: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{annotations} is not JSON: {error}") from None
        wanted = {"images", "annotations", "categories"}
        if not isinstance(data, dict) or not wanted <= data.keys():
            raise InputError(
                f"{annotations} is not a COCO instances file: expected the keys {', '.join(sorted(wanted))}"
            )
        self.path = annotations
        self.images = [CocoImage(int(row["id"]), images / row["file_name"]) for row in data["images"]]
        missing = [image.path for image in self.images if not image.path.is_file()]
        if missing or not self.images:
            raise InputError(
                f"{len(missing)} of the {len(self.images)} images that {annotations} lists are not in {images}"
                + (f", {missing[0].name} the first of them" if missing else ""),
                "give the folder that holds the images, and annotations that list only those",
            )
        self.categories = {int(row["id"]): str(row["name"]) for row in data["categories"]}
        self.objects = len(data["annotations"])
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco: Any = COCO()
            self._coco.dataset = data
            self._coco.createIndex()

    def evaluation(self, results: Sequence[dict[str, Any]]) -> Any:
        """Make a pycocotools COCOeval of COCO result rows; it is not run yet."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        found: Any
        with contextlib.redirect_stdout(io.StringIO()):
            if results:
                found = self._coco.loadRes(list(results))
            else:  # loadRes fails on an empty list
                found = COCO()
                found.dataset = {**self._coco.dataset, "annotations": []}
                found.createIndex()
            return COCOeval(self._coco, found, "bbox")

    def score(self, results: Sequence[dict[str, Any]], image_ids: Sequence[int] | None = None) -> CocoScores:
        """Compute AP and AR.

        Args:
            results: COCO result rows, as `Detections.to_coco` makes them.
            image_ids: images that count; None for all.

        Returns:
            The scores.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            run = self.evaluation(results)
            if image_ids is not None:
                run.params.imgIds = sorted(image_ids)
            run.evaluate()
            run.accumulate()
            run.summarize()
        values = dict(zip(_STATISTICS + _RECALLS, map(float, run.stats), strict=True))
        count = len(self.images) if image_ids is None else len(set(image_ids))
        return CocoScores(**values, images=count, objects=self.objects, detections=len(results))


def official_rounding(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Round boxes and scores to two decimals, as for the published AP of CenterNet.

    Source: `_to_float` and `convert_eval_format` of the official `datasets/coco.py`.
    """
    return [
        row | {"bbox": [float(f"{v:.2f}") for v in row["bbox"]], "score": float(f"{row['score']:.2f}")}
        for row in rows
    ]


def check_categories(spec: ModelSpec, truth: CocoGroundTruth) -> None:
    """Check that the classes of a spec are those of the annotations.

    Args:
        spec: names classes and category ids.
        truth: the annotations.

    Raises:
        SpecError: the annotations lack a category id, or give all of them other names than the spec.
    """
    ids = spec.category_ids or tuple(range(1, len(spec.class_names) + 1))
    if unknown := sorted(set(ids) - truth.categories.keys()):
        raise SpecError(
            f"the spec's category ids {unknown[:5]} are not in {truth.path}, which has "
            f"{len(truth.categories)} categories",
            "set category_ids in the spec, one for each class, to the ids of the annotations",
        )
    names = dict(zip(ids, spec.class_names, strict=True))
    # A name may have two spellings ("motorbike", "motorcycle"); if all differ, these are other classes.
    if names and all(truth.categories[i].casefold() != name.casefold() for i, name in names.items()):
        first = ids[0]
        raise SpecError(
            f"no class of the spec has the name that {truth.path} gives its category: number {first} is "
            f"{names[first]!r} in the spec and {truth.categories[first]!r} in the annotations",
            "give annotations of the model's own classes, or correct class_names and category_ids in the spec",
        )


def detect_all(
    detector: Detector,
    truth: CocoGroundTruth,
    progress: Callable[[int, int], None] | None = None,
    tta: Augmentation | None = None,
) -> dict[int, Detections]:
    """Detect in every annotated image, with no threshold and the spec's top K.

    Args:
        detector: a loaded detector.
        truth: names the images.
        progress: called with (images done, images in total).
        tta: test-time augmentation, as for `Detector.detect`.

    Returns:
        Detections by image id.

    Raises:
        SpecError: the spec's classes are not those of the annotations.
        InputError: an image cannot be used; a score without it would be of another data set.
    """
    check_categories(detector.bundle.manifest.spec, truth)
    found = {}
    for done, image in enumerate(truth.images):
        if progress is not None:
            progress(done, len(truth.images))
        found[image.id] = detector.detect(image.path, threshold=0.0, tta=tta)
    if progress is not None:
        progress(len(truth.images), len(truth.images))
    return found


def coco_rows(found: dict[int, Detections]) -> list[dict[str, Any]]:
    """Convert detections by image id to COCO result rows."""
    return [row for image_id, detections in found.items() for row in detections.to_coco(image_id)]
