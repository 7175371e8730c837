"""Accuracy of a bundle with each test-time augmentation, on annotated images.

    python -m centernet_trt.evaluation.augmentation_table BUNDLE ANNOTATIONS.json IMAGES [--json FILE]

As for published figures, no threshold is applied. Prints a table in Markdown.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

from centernet_trt.errors import CenterNetError
from centernet_trt.evaluation.coco import CocoGroundTruth, check_categories, coco_rows
from centernet_trt.evaluation.tables import text_table
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.tta import Augmentation

AUGMENTATIONS = (None, "flip", "multiscale", "flip+multiscale")


def augmentation_table(detector: Detector, truth: CocoGroundTruth) -> list[dict[str, Any]]:
    """One row for each augmentation: its name, AP, AP50, AP75.

    Raises:
        SpecError: the spec's classes are not those of the annotations.
        InputError: an image cannot be used, or a scale needs an input that the bundle was not built for.
    """
    check_categories(detector.bundle.manifest.spec, truth)
    paths = [image.path for image in truth.images]
    rows = []
    for name in AUGMENTATIONS:
        found = detector.detect_batch(paths, 0.0, tta=cast(Augmentation | None, name))
        score = truth.score(
            coco_rows({image.id: one for image, one in zip(truth.images, found, strict=True)})
        )
        rows.append({"tta": name, "ap": score.ap, "ap50": score.ap50, "ap75": score.ap75})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    cells = [
        [
            "none" if row["tta"] is None else f'`"{row["tta"]}"`',
            *(f"{row[key]:.3f}" for key in ("ap", "ap50", "ap75")),
        ]
        for row in rows
    ]
    return text_table("", ["`tta`", "AP", "AP50", "AP75"], cells).markdown()


def main() -> int:
    """Run from the command line; the exit code is 1 when it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m centernet_trt.evaluation.augmentation_table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    asked = parser.parse_args()
    try:
        truth = CocoGroundTruth(asked.annotations, asked.images)
        with Detector.load(asked.bundle) as detector:
            rows = augmentation_table(detector, truth)
            print(detector.note)
    except CenterNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(truth.images)} images of {asked.annotations.name}\n\n{markdown(rows)}")
    if asked.json is not None:
        told = {"bundle": asked.bundle.name, "images": len(truth.images), "rows": rows}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
