"""The rows that the decode kernel wrote -> Detections."""

from centernet_trt.kernels.outputs import DecodeRows
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.nms import greedy_nms
from centernet_trt.runtime.spec import ModelSpec


def detections_of(rows: DecodeRows, image: int, spec: ModelSpec) -> Detections:
    """Detections of one image of a batch, copied out of the buffer, after the spec's NMS if it has one."""
    kept = slice(int(rows.count[image]))
    extra, column = {}, 0
    for head in spec.heads.extra:
        extra[head.name] = rows.extra[image, kept, column : column + head.channels].copy()
        column += head.channels
    found = Detections(
        rows.xyxy[image, kept].copy(),
        rows.score[image, kept].copy(),
        rows.label[image, kept].copy(),
        extra,
        spec.class_names,
        spec.category_ids,
    )
    return found if spec.nms_iou is None else found[greedy_nms(found.xyxy, found.label, spec.nms_iou)]
