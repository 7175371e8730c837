"""Detections: the boxes of one image, in decode order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError, InputError


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    `xyxy`: (N, 4) float32, left, top, right, bottom in source-image pixels.
    `score`: (N,) float32. `label`: (N,) int32, index of the class.
    `extra`: further heads, each (N, C) float32.
    `class_names` and `category_ids` come from the spec and may be empty.
    """

    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    extra: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: Any) -> "Detections":
        """The rows that a slice, a mask or an index array names, in that order."""
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
        """The class name of a row, or its number where the spec has no names."""
        label = int(self.label[row])
        return self.class_names[label] if self.class_names else str(label)

    def of_classes(self, classes: Sequence[int | str]) -> "Detections":
        """Only detections of these classes, given by index or by name.

        Raises:
            InputError: a name that the spec does not have, or an index out of range.
        """
        return self[np.isin(self.label, [self._class_index(c) for c in classes])]

    def _class_index(self, wanted: int | str) -> int:
        if isinstance(wanted, str):
            if wanted in self.class_names:
                return self.class_names.index(wanted)
            raise InputError(
                f"there is no class {wanted!r}", f"classes are: {', '.join(self.class_names) or 'unnamed'}"
            )
        if wanted < 0 or (self.class_names and wanted >= len(self.class_names)):
            raise InputError(f"there is no class {wanted}, expected 0..{len(self.class_names) - 1}")
        return int(wanted)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of a COCO results file: box as x, y, width, height, full precision.

        `category_id` is the spec's id of the class, or label + 1 where the spec has none.
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
        """One plain dict a detection: box (xyxy), score, label, name and the extra heads."""
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
        """A `supervision.Detections` of the same boxes, extra heads and class names in its `data`.

        Raises:
            BackendError: the package supervision is not installed (it is no dependency of this one).
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
        """A copy of the image (H, W, 3) uint8, blue first, with boxes, labels and points drawn on it."""
        from centernet_trt.runtime.draw import draw_detections

        return draw_detections(image, self)
