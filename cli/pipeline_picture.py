"""Draws a bundle's pipeline, image to boxes, as a PNG."""

from pathlib import Path

import cv2
import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.bundle import EngineBundle

_WIDTH, _LINE, _MARGIN = 760, 26, 18
_INK, _PAPER, _EDGE = (40, 40, 40), (255, 255, 255), (150, 110, 40)


def draw_pipeline(bundle: EngineBundle, path: Path) -> None:
    """Write the picture: one box a stage, top to bottom, with what goes from each to the next.

    Raises:
        InputError: the file cannot be written.
    """
    stages = pipeline_stages(bundle)
    heights = [_LINE * len(lines) + 2 * _MARGIN for _, lines in stages]
    gap = 34
    canvas = np.full((sum(heights) + gap * (len(stages) - 1) + 2 * _MARGIN, _WIDTH, 3), 255, dtype=np.uint8)
    y = _MARGIN
    for number, ((title, lines), height) in enumerate(zip(stages, heights, strict=True)):
        cv2.rectangle(canvas, (_MARGIN, y), (_WIDTH - _MARGIN, y + height), _EDGE, 2, cv2.LINE_AA)
        for row, text in enumerate([title, *lines[1:]]):
            at = (_MARGIN + 14, y + _MARGIN + _LINE * row + 14)
            weight = 2 if row == 0 else 1
            cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, _INK, weight, cv2.LINE_AA)
        y += height
        if number < len(stages) - 1:
            middle = _WIDTH // 2
            cv2.arrowedLine(
                canvas, (middle, y + 4), (middle, y + gap - 4), _EDGE, 2, cv2.LINE_AA, tipLength=0.4
            )
        y += gap
    ok, data = cv2.imencode(".png", canvas)
    if not ok:
        raise InputError(f"OpenCV cannot encode {path}")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def pipeline_stages(bundle: EngineBundle) -> list[tuple[str, list[str]]]:
    """Title and lines of every stage; the first line of each is its title."""
    manifest = bundle.manifest
    spec = manifest.spec
    image, heads = spec.input, spec.heads
    plans = (
        ", ".join(f"{plan.flavour} {plan.version} ({plan.target})" for plan in manifest.plans) or "no plan"
    )
    stages = [
        ["image", "any size, uint8, blue first"],
        [
            f"pre-processing: {image.resize.policy}",
            f"{image.size.rule} size",
            *map(str, manifest.profiles),
            f"{image.channel_order.upper()}, {manifest.input.dtype} {manifest.input.name}",
        ],
        [
            f"network: {manifest.precision}",
            f"{manifest.passes[-1].nodes} nodes" if manifest.passes else "",
            plans,
        ],
        [
            "heads",
            *(f"{h.name}: {h.channels} channels, {h.dtype}, stride {spec.stride}" for h in manifest.heads),
        ],
        [
            "decode",
            f"{heads.heatmap.activation}, 3x3 peaks, top {spec.top_k}, threshold {spec.threshold:g}",
            f"{heads.box.encoding} boxes in {heads.box.units}"
            + (f", IoU suppression {spec.nms_iou:g}" if spec.nms_iou else ""),
        ],
        ["detections", f"boxes, scores, {len(spec.class_names) or manifest.heads[0].channels} classes"],
    ]
    return [(lines[0], lines) for lines in stages]
