"""Choose the optimisation profile for an input shape.

An engine has one set of kernels per profile, tuned for its `opt` shape. An input shape runs with the profile that
contains it; if several do, with the one whose tuned shape is nearest: the smallest sum, over batch, height and width,
of |log2(value / opt)|, so that half and twice the tuned size are equally far. Ties go to the profile with the smaller
largest shape, then to the first.
"""

import math
from collections.abc import Callable, Sequence

from centernet_trt.errors import InputError
from centernet_trt.runtime.manifest import ProfileRecord

__all__ = [
    "Profiles",
    "batch_to_run",
    "check_size",
    "choose_profile",
    "described",
    "largest_batch",
    "largest_shapes",
]

Profiles = Sequence[ProfileRecord]


def choose_profile(profiles: Profiles, batch: int, height: int, width: int) -> int:
    """Choose the profile for an input of `batch` images of height x width pixels, by the rule above.

    Args:
        profiles: of the bundle.
        batch: images in the input.
        height: rows of the input.
        width: columns of the input.

    Returns:
        Index of the profile.

    Raises:
        InputError: no profile contains the shape; the message lists them all.
    """
    fitting = [
        (_distance(profile, batch, height, width), _volume(profile), number)
        for number, profile in enumerate(profiles)
        if batch in profile.batch and _has_size(profile, height, width)
    ]
    if not fitting:
        raise InputError(
            f"expected an input that the engine was built for ({described(profiles)}), "
            f"got {batch} images of {width}x{height} pixels",
            "rebuild the bundle with wider --batch, --width and --height, or with another --profile",
        )
    return min(fitting)[2]


def check_size(profiles: Profiles, height: int, width: int, subject: Callable[[], str], hint: str) -> None:
    """Check the size of one image's network input against the profiles, whatever the batch.

    Args:
        profiles: of the bundle.
        height: rows of the network's input.
        width: its columns.
        subject: makes the beginning of the message: what needs this input.
        hint: what to do about it, for the message.

    Raises:
        InputError: no profile contains the size; the message lists them all.
    """
    if not any(_has_size(profile, height, width) for profile in profiles):
        raise InputError(
            f"{subject()} needs a network input of {width}x{height}; the engine was built for {described(profiles)}",
            hint,
        )


def largest_batch(profiles: Profiles, height: int, width: int) -> int:
    """Return how many inputs of height x width pixels can run at once; 0 if no profile contains the size."""
    return max([p.batch.max for p in profiles if _has_size(p, height, width)], default=0)


def batch_to_run(profiles: Profiles, images: int, height: int, width: int) -> int:
    """Return the smallest batch of a profile that holds `images` images of height x width pixels.

    Raises:
        InputError: no profile holds so many of this size.
    """
    batches = [
        max(images, p.batch.min) for p in profiles if images <= p.batch.max and _has_size(p, height, width)
    ]
    if not batches:
        choose_profile(profiles, images, height, width)  # raises, with a list of the profiles
    return min(batches)


def largest_shapes(profiles: Profiles, max_batch: int) -> list[tuple[int, int, int]]:
    """Return the largest (batch, height, width) of each profile if at most `max_batch` images run at once.

    A profile whose smallest batch is larger runs that many.
    """
    return [(max(min(max_batch, p.batch.max), p.batch.min), p.height.max, p.width.max) for p in profiles]


def described(profiles: Profiles) -> str:
    """Format profiles for a message, such as `batch 1:1:8, height 512, width 512`; several are numbered."""
    if len(profiles) == 1:
        return str(profiles[0])
    return "; ".join(f"profile {number}: {profile}" for number, profile in enumerate(profiles))


def _has_size(profile: ProfileRecord, height: int, width: int) -> bool:
    # Called several times per detect: comparisons cost half of what `in` does.
    rows, columns = profile.height, profile.width
    return rows.min <= height <= rows.max and columns.min <= width <= columns.max


def _distance(profile: ProfileRecord, batch: int, height: int, width: int) -> float:
    pairs = ((batch, profile.batch), (height, profile.height), (width, profile.width))
    return sum(abs(math.log2(value / tuned.opt)) for value, tuned in pairs)


def _volume(profile: ProfileRecord) -> int:
    return profile.batch.max * profile.height.max * profile.width.max
