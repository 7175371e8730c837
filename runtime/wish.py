"""What a call asks of an image: checked once, in the caller's thread, whichever way the image then goes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.spec import MAX_TOP_K, ModelSpec
from centernet_trt.runtime.tta import Augmentation, TestTimeAugmentation, augmentation_of


@dataclass(frozen=True, slots=True)
class Wish:
    """The lowest score, the classes, the most detections, None for the spec's; the augmentation, None for none."""

    threshold: float | None = None
    classes: tuple[int | str, ...] | None = None
    top_k: int | None = None
    tta: TestTimeAugmentation | None = None

    def chosen(self, found: Detections) -> Detections:
        """The detections of the classes asked for; threshold and top_k have been seen to by the decode."""
        return found if self.classes is None else found.of_classes(self.classes)


PLAIN = Wish()


def wish_of(
    spec: ModelSpec,
    threshold: float | None,
    classes: Sequence[int | str] | None,
    top_k: int | None,
    tta: Augmentation | None,
) -> Wish:
    """The arguments of a call, checked.

    Raises:
        InputError: a threshold that is no score, a class that the spec does not have, a top_k out of range, or no such
            augmentation.
    """
    if threshold is None and classes is None and top_k is None and tta is None:
        return PLAIN
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, a score from 0 to 1 was expected")
    if top_k is not None and not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"top_k is {top_k}, 1 to {MAX_TOP_K} was expected")
    if classes is not None:
        none = np.zeros(0, dtype=np.float32)
        Detections(none.reshape(0, 4), none, none.astype(np.int32), {}, spec.class_names).of_classes(classes)
        classes = tuple(classes)
    return Wish(threshold, classes, top_k, None if tta is None else augmentation_of(tta))
