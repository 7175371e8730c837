"""Detections: the value type, drawing, and class-aware NMS."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError, InputError


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first; immutable, with `len()`, slices, masks and index arrays.

    Attributes:
        xyxy: (N, 4) float32 boxes: left, top, right, bottom in pixels of the source image.
        score: (N,) float32, 0..1, descending.
        label: (N,) int32 class indices.
        extra: further heads by name, each (N, C) float32; points are x0, y0, x1, y1, ... in source-image pixels.
        class_names: names by class index, from the spec; may be empty.
        category_ids: COCO category ids by class index, from the spec; may be empty.
    """

    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    extra: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: Any) -> "Detections":
        """Select rows.

        Args:
            rows: a row number, slice, boolean mask (N,) or index array.
        """
        if isinstance(rows, (int, np.integer)):
            rows = [rows]
        return Detections(
            self.xyxy[rows],
            self.score[rows],
            self.label[rows],
            {name: values[rows] for name, values in self.extra.items()},
            self.class_names,
            self.category_ids,
        )

    def name_of(self, row: int) -> str:
        """Name a detection's class.

        Args:
            row: index of the detection, 0..N-1.

        Returns:
            The class name, or the class index as text if the spec has no names.
        """
        label = int(self.label[row])
        return self.class_names[label] if self.class_names else str(label)

    def of_classes(self, classes: Sequence[int | str]) -> "Detections":
        """Keep only the detections of some classes.

        Args:
            classes: class indices or names.

        Returns:
            The detections of these classes, in the same order.

        Raises:
            InputError: the spec has no class of that name or index.
        """
        return self[np.isin(self.label, [self._class_index(c) for c in classes])]

    def _class_index(self, wanted: int | str) -> int:
        if isinstance(wanted, str):
            if wanted in self.class_names:
                return self.class_names.index(wanted)
            raise InputError(
                f"there is no class {wanted!r}",
                f"the classes are: {', '.join(self.class_names) or 'unnamed'}",
            )
        if wanted < 0 or (self.class_names and wanted >= len(self.class_names)):
            expected = f"0..{len(self.class_names) - 1}" if self.class_names else "0 or more"
            raise InputError(f"there is no class {wanted}: expected {expected}")
        return int(wanted)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Convert to the rows of a COCO results file.

        Args:
            image_id: the image's id in the ground truth; kept as it is.

        Returns:
            A dict per detection: `image_id`; `category_id`, the spec's id of the class, or label + 1 if it has none;
            `bbox`, [x, y, width, height] in pixels at full precision; `score`.
        """
        ids = self.category_ids
        rows = []
        for (x1, y1, x2, y2), score, label in zip(
            self.xyxy.astype(float).tolist(), self.score.tolist(), self.label.tolist(), strict=True
        ):
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": ids[label] if ids else label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
        return rows

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to plain Python values for JSON.

        Returns:
            A dict per detection: `box` ([left, top, right, bottom] in pixels), `score`, `label`, `name`, and a list of
            numbers per extra head.
        """
        return [
            {
                "box": self.xyxy[row].astype(float).tolist(),
                "score": float(self.score[row]),
                "label": int(self.label[row]),
                "name": self.name_of(row),
                **{name: values[row].astype(float).tolist() for name, values in self.extra.items()},
            }
            for row in range(len(self))
        ]

    def to_supervision(self) -> Any:
        """Convert to a `supervision.Detections`; extra heads and class names go to its `data`.

        Raises:
            BackendError: the package supervision is not installed (it is not a dependency of this one).
        """
        try:
            import supervision
        except ImportError:
            raise BackendError(
                "to_supervision() needs the package supervision, which is not installed",
                "pip install supervision",
            ) from None
        data: dict[str, Any] = dict(self.extra)
        if self.class_names:
            data["class_name"] = np.array([self.name_of(row) for row in range(len(self))], dtype=str)
        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.score, class_id=self.label.astype(int), data=data
        )

    def draw(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Draw boxes, labels and points on a copy of an image; the best are drawn on top.

        Line and text sizes follow the image's size. Extra heads named `landmarks` or `keypoints` are drawn as dots.

        Args:
            image: (H, W, 3) uint8, blue first; the image that was detected in. It is not changed.

        Returns:
            The copy, (H, W, 3) uint8.
        """
        return draw_detections(image, self)


def draw_detections(image: npt.NDArray[np.uint8], detections: Detections) -> npt.NDArray[np.uint8]:
    """Draw detections on a copy of an image: see `Detections.draw`."""
    canvas = np.ascontiguousarray(image).copy()
    thick = max(1, round(min(canvas.shape[:2]) / 300))
    for row in reversed(range(len(detections))):
        if not np.isfinite(detections.xyxy[row]).all():
            continue
        colour = class_colour(int(detections.label[row]))
        # A box may reach far outside: cut it, so that its corners fit OpenCV's integers.
        limit = np.array([canvas.shape[1], canvas.shape[0]] * 2) + 10 * thick
        x1, y1, x2, y2 = (int(v) for v in np.clip(detections.xyxy[row], -10 * thick, limit).round())
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thick, cv2.LINE_AA)
        for name in ("landmarks", "keypoints"):
            for x, y in detections.extra.get(name, np.empty((len(detections), 0)))[row].reshape(-1, 2):
                if np.isfinite((x, y)).all() and abs(x) < 1e6 and abs(y) < 1e6:
                    cv2.circle(canvas, (round(float(x)), round(float(y))), thick + 1, colour, -1, cv2.LINE_AA)
        _label(canvas, f"{detections.name_of(row)} {detections.score[row]:.2f}", (x1, y1), colour, thick)
    return canvas


def class_colour(label: int) -> tuple[int, int, int]:
    """Return a colour (blue, green, red) for a class: hues a golden ratio apart, so that near labels differ."""
    hue = int(180 * (label * 0.618034 % 1))
    pixel = cv2.cvtColor(np.array([[[hue, 200, 230]]], dtype=np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _label(
    canvas: npt.NDArray[np.uint8],
    text: str,
    corner: tuple[int, int],
    colour: tuple[int, int, int],
    thick: int,
) -> None:
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4 + 0.12 * thick
    weight = max(1, thick // 2)
    (width, height), base = cv2.getTextSize(text, font, scale, weight)
    # Keep the label inside the image, where it can be seen.
    x = min(max(corner[0], 0), max(canvas.shape[1] - width, 0))
    y = min(max(corner[1], height + base), canvas.shape[0])
    cv2.rectangle(canvas, (x, y - height - base), (x + width, y), colour, -1)
    cv2.putText(canvas, text, (x, y - base // 2 - 1), font, scale, (0, 0, 0), weight, cv2.LINE_AA)


def greedy_nms(
    xyxy: npt.NDArray[np.float32], label: npt.NDArray[np.int32], iou: float
) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression within each class.

    Args:
        xyxy: (N, 4) boxes, best first.
        label: (N,) class indices.
        iou: a box is dropped if an earlier box of its class that was kept overlaps it by more than this.

    Returns:
        Indices of the boxes kept, ascending.
    """
    side = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    area = side[:, 0] * side[:, 1]
    alive = np.ones(len(xyxy), dtype=np.bool_)
    for row in range(len(xyxy)):
        if not alive[row]:
            continue
        low = np.maximum(xyxy[row + 1 :, :2], xyxy[row, :2])
        high = np.minimum(xyxy[row + 1 :, 2:], xyxy[row, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)
        union = area[row + 1 :] + area[row] - common
        # Two empty boxes have no union; a NaN box suppresses nothing and stays.
        alive[row + 1 :] &= ~((common > iou * union) & (label[row + 1 :] == label[row]))
    return np.flatnonzero(alive)
