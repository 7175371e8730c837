"""Optimisation profiles, written shortly."""

from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange


def input_profile(batch: str, height: str, width: str | None = None) -> ProfileRecord:
    """The profile of these ranges, each `MIN:OPT:MAX` or one number; without a width the input is square."""
    ranges = [ShapeRange.parse(text) for text in (batch, height, width or height)]
    return ProfileRecord(batch=ranges[0], height=ranges[1], width=ranges[2])
