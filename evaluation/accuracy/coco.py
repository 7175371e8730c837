"""COCO mAP of a detector, by pycocotools: `CocoGroundTruth` and `CocoScores`."""

import contextlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from centernet_trt.errors import InputError, SpecError
from centernet_trt.evaluation.accuracy.coco_file import read_coco
from centernet_trt.evaluation.accuracy.coco_ids import CocoId, IdTable, spells_number
from centernet_trt.evaluation.accuracy.coco_images import check_files, image_path
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.images import read_image
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.tta.augment import Augmentation

# The order of pycocotools' COCOeval.stats for boxes.
_STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RECALLS = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")

_LARGEST_AREA = 1e10
"""pycocotools ignores larger objects."""


@dataclass(frozen=True)
class CocoScores:
    """Box AP and AR as COCO defines them: 0..1, or None (undefined) if no object of that kind is annotated.

    Attributes:
        ap: mean over IoU 0.50 to 0.95; `ap50` and `ap75` at one IoU; `ap_small`, `ap_medium`, `ap_large` by object area.
        ar1: AR with at most 1 detection an image; `ar10` and `ar100` likewise; `ar_small` to `ar_large` by object area.
        images: number of images.
        objects: number of annotated objects.
        detections: number of detections.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    images: int
    objects: int
    detections: int

    def to_json(self) -> dict[str, float | None]:
        """The fields as a plain dict; undefined figures are None, null in JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CocoImage:
    """An annotated image.

    Attributes:
        id: as the annotations have it.
        path: its file.
        size: width and height that the annotations give, if they do.
    """

    id: CocoId
    path: Path
    size: tuple[float, float] | None = None


class CocoGroundTruth:
    """A COCO instances file, repaired and checked, and the folder of its images.

    Attributes:
        path: the instances file.
        images: its images, with the file's own ids.
        categories: category names by the file's own ids.
        objects: number of annotations.
        notes: what was repaired or looks wrong, for the user.
    """

    def __init__(self, annotations: Path, images: Path, *, only: Collection[Path] | None = None) -> None:
        """Read the annotations and find the images.

        Args:
            annotations: the instances file, JSON; see `coco_file.read_coco` for what is repaired.
            images: folder of the images it lists.
            only: paths of the images that count; None for all.

        Raises:
            InputError: not a usable COCO instances file, or an image is missing.
        """
        file = read_coco(annotations)
        self.path, self.categories, self.notes = annotations, file.categories, file.notes
        self.images = [
            CocoImage(own, image_path(images, name), file.sizes.get(own)) for own, name in file.names.items()
        ]
        if only is not None:
            self.images = [image for image in self.images if image.path in only]
        check_files([image.path for image in self.images], annotations, images)
        self._image_ids = IdTable(image.id for image in self.images)
        self._category_ids = IdTable(self.categories)
        kept = self._image_ids.keys
        rows = [row for row in file.annotations if row["image_id"] in kept]
        self.objects = len(rows)
        self.labelled = {
            row["category_id"] for row in rows if not row["iscrowd"] and row["area"] <= _LARGEST_AREA
        }
        """Ids of the categories with objects that count; AP is undefined if there are none."""
        if not self.labelled:
            empty = "no object is annotated" if not rows else "all annotated objects are crowds"
            self.notes += (f"{annotations.name}: {empty}, so AP and AR are undefined",)
        self._coco = _index(
            {
                "images": [{"id": key} for key in self._image_ids.keys.values()],
                "categories": [{"id": key} for key in self._category_ids.keys.values()],
                "annotations": [self._keyed(row) for row in rows],
            }
        )

    def image_key(self, image_id: CocoId) -> int:
        """The number of an image in `evaluation`.

        Raises:
            InputError: there is no such image.
        """
        own = self._image_ids.find(image_id)
        if own is None:
            raise InputError(
                f"{self.path} lists no image with the id {image_id!r}",
                "give results of the images of these annotations",
            )
        return self._image_ids.keys[own]

    def category(self, category_id: CocoId) -> CocoId | None:
        """The file's own id of a category, such as "7" for 7; None if it has none."""
        return self._category_ids.find(category_id)

    def _keyed(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the ids that pycocotools gets: it needs numbers, and annotations and results of one type."""
        category = self.category(row["category_id"])
        # pycocotools leaves out results of categories that it does not know, here those with key 0.
        key = 0 if category is None else self._category_ids.keys[category]
        return {**row, "image_id": self.image_key(row["image_id"]), "category_id": key}

    def evaluation(self, results: Sequence[dict[str, Any]]) -> Any:
        """Make a pycocotools COCOeval of COCO result rows; it is not run yet.

        Its image ids are those of `image_key`.

        Raises:
            InputError: a row's image is not annotated, or the categories of all rows are unknown.
        """
        from pycocotools.cocoeval import COCOeval

        rows = [self._keyed(row) for row in results]
        if rows and not any(row["category_id"] for row in rows):
            raise InputError(
                f"expected results of the categories of {self.path}, got {results[0]['category_id']!r}",
                "set category_ids in the spec to the ids of the annotations",
            )
        with contextlib.redirect_stdout(io.StringIO()):
            # loadRes fails on an empty list.
            found = self._coco.loadRes(rows) if rows else _index({**self._coco.dataset, "annotations": []})
            return COCOeval(self._coco, found, "bbox")

    def score(
        self, results: Sequence[dict[str, Any]], image_ids: Sequence[CocoId] | None = None
    ) -> CocoScores:
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
                run.params.imgIds = sorted(map(self.image_key, image_ids))
            run.evaluate()
            run.accumulate()
            run.summarize()
        figures = (None if value < 0 else float(value) for value in run.stats)
        values = dict(zip(_STATISTICS + _RECALLS, figures, strict=True))
        count = len(self.images) if image_ids is None else len(set(image_ids))
        return CocoScores(**values, images=count, objects=self.objects, detections=len(results))


def _index(dataset: dict[str, Any]) -> Any:
    """A pycocotools COCO object."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        made: Any = COCO()
        made.dataset = dataset
        made.createIndex()
    return made


def official_rounding(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Round boxes and scores to two decimals, as for the published AP of CenterNet.

    Source: `_to_float` and `convert_eval_format` of the official `datasets/coco.py`.
    """
    return [
        row | {"bbox": [float(f"{v:.2f}") for v in row["bbox"]], "score": float(f"{row['score']:.2f}")}
        for row in rows
    ]


def check_categories(spec: ModelSpec, truth: CocoGroundTruth) -> tuple[CocoId, ...]:
    """Check that the classes of a spec are those of the annotations.

    Args:
        spec: names classes and category ids.
        truth: the annotations.

    Returns:
        The annotations' own id of each class. Ids that are text but no numbers are found by the class name.

    Raises:
        SpecError: the annotations lack a category id, give classes other names than the spec, or have objects, but
            none of the spec's classes.
    """
    wanted = spec.category_ids or tuple(range(1, len(spec.class_names) + 1))
    named = {name.casefold(): own for own, name in truth.categories.items()}
    hint = _category_hint(spec, truth, named)
    names: dict[CocoId, str] = {}
    for number, name in zip(wanted, spec.class_names, strict=True):
        own = truth.category(number)
        if own is None and isinstance(by_name := named.get(name.casefold()), str):
            own = None if spells_number(by_name) else by_name
        if own is not None:
            names[own] = name
    if len(names) < len(wanted):
        unknown = [number for number in wanted if truth.category(number) is None]
        raise SpecError(
            f"the spec's category ids {unknown[:5]} are not in {truth.path}, which has "
            f"{len(truth.categories)} categories",
            hint,
        )
    # A name may have two spellings ("motorbike", "motorcycle"); if all differ, or if the annotations give the name to
    # another id, these are other classes.
    differ = {own: name for own, name in names.items() if truth.categories[own].casefold() != name.casefold()}
    moved = [own for own, name in differ.items() if name.casefold() in named]
    if differ and (moved or len(differ) == len(names)):
        first = moved[0] if moved else next(iter(differ))
        raise SpecError(
            f"{len(differ)} of the {len(names)} classes of the spec are not what {truth.path} calls their category: "
            f"number {first} is {names[first]!r} in the spec and {truth.categories[first]!r} in the annotations",
            f"give annotations of the model's own classes, or correct class_names and category_ids; {hint}",
        )
    if truth.labelled and not truth.labelled & names.keys():
        raise SpecError(
            f"{truth.path} has no object of the spec's classes: all are of {_listed(truth.labelled, truth)}",
            hint,
        )
    return tuple(names)


def category_notes(ids: Collection[CocoId], truth: CocoGroundTruth) -> tuple[str, ...]:
    """Say which annotated categories lower AP because the model does not know them; `ids` are those that it knows."""
    others = truth.labelled.difference(ids)
    if not others:
        return ()
    listed = _listed(others, truth)
    return (f"{len(others)} annotated categories are not in the spec and count with an AP of 0: {listed}",)


def _category_hint(spec: ModelSpec, truth: CocoGroundTruth, named: Mapping[str, CocoId]) -> str:
    by_name = [named.get(name.casefold()) for name in spec.class_names]
    if all(one is not None and spells_number(one) for one in by_name):
        line = ", ".join(str(one).strip() for one in by_name)
        return f"the names of the spec fit `category_ids = [{line}]`: write that into the spec"
    known = _listed(truth.categories.keys(), truth)
    return f"set category_ids in the spec, one for each class, to the ids of the annotations: {known}"


def _listed(ids: Collection[CocoId], truth: CocoGroundTruth) -> str:
    first = sorted(ids, key=str)[:10]
    return ", ".join(f"{own!r} {truth.categories[own]}" for own in first) + ", ..." * (len(ids) > len(first))


def detect_all(
    detector: Detector,
    truth: CocoGroundTruth,
    progress: Callable[[int, int], None] | None = None,
    tta: Augmentation | None = None,
) -> dict[CocoId, Detections]:
    """Detect in every annotated image, with no threshold and the spec's top K.

    Images of another size than the annotations say are reported in `truth.notes`.

    Args:
        detector: a loaded detector.
        truth: names the images.
        progress: called with (images done, images in total).
        tta: test-time augmentation, as for `Detector.detect`.

    Returns:
        Detections by image id; image and category ids are those of the annotations.

    Raises:
        SpecError: the spec's classes are not those of the annotations.
        InputError: an image cannot be used; a score without it would be of another data set.
    """
    ids = check_categories(detector.bundle.manifest.spec, truth)
    found: dict[CocoId, Detections] = {}
    resized: list[str] = []
    for done, image in enumerate(truth.images):
        if progress is not None:
            progress(done, len(truth.images))
        pixels = read_image(image.path)
        if image.size is not None and image.size != (pixels.shape[1], pixels.shape[0]):
            resized.append(f"{image.path.name}, {pixels.shape[1]}x{pixels.shape[0]}")
        found[image.id] = replace(detector.detect(pixels, threshold=0.0, tta=tta), category_ids=ids)
    if progress is not None:
        progress(len(truth.images), len(truth.images))
    note = (
        f"{truth.path.name}: {len(resized)} of {len(truth.images)} images have another size than the annotations say, "
        f"so their boxes may be of other pixels, the first {resized[0] if resized else ''}"
    )
    if resized and note not in truth.notes:
        truth.notes += (note,)
    return found


def coco_rows(found: Mapping[CocoId, Detections]) -> list[dict[str, Any]]:
    """Convert detections by image id to COCO result rows."""
    return [row for image_id, detections in found.items() for row in detections.to_coco(image_id)]
