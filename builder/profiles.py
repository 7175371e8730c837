"""Resolve the optimisation profiles that a user requests, ProfileRequest, with the size rule of the spec."""

from collections.abc import Sequence
from dataclasses import dataclass

from centernet_trt.errors import InputError
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange
from centernet_trt.runtime.spec import FixedSize, ModelSpec

__all__ = ["ProfileRequest", "resolve_profiles"]

_DIMENSIONS = ("batch", "height", "width")
_EXAMPLE = (
    "write it as batch=1:1:8,height=512,width=512; what is left out is that of --batch, --height and --width"
)


@dataclass(frozen=True)
class ProfileRequest:
    """Requested input shapes of one optimisation profile.

    Attributes:
        batch: images per call; None is the common range, or 1 to 8 tuned for 1.
        height: rows in pixels; None is the common range, or the spec's default.
        width: columns in pixels, likewise.
    """

    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None

    @classmethod
    def parse(cls, text: str) -> "ProfileRequest":
        """Parse `batch=1:4:8,height=512,width=512`: any order, each part at most once.

        Raises:
            InputError: a dimension is unknown or repeated, or a range cannot be parsed.
        """
        found: dict[str, ShapeRange] = {}
        for part in text.split(","):
            name, equals, values = (piece.strip() for piece in part.partition("="))
            if name not in _DIMENSIONS or not equals:
                raise InputError(
                    f"expected batch=, height= or width=, got {part.strip()!r} in the profile {text!r}",
                    _EXAMPLE,
                )
            if name in found:
                raise InputError(f"the profile {text!r} gives the {name} twice", _EXAMPLE)
            found[name] = ShapeRange.parse(values)
        return cls(**found)

    def or_else(self, common: "ProfileRequest") -> "ProfileRequest":
        """This request, its open ranges taken from another."""
        return ProfileRequest(
            self.batch or common.batch, self.height or common.height, self.width or common.width
        )


def resolve_profiles(
    spec: ModelSpec, common: ProfileRequest, profiles: Sequence[ProfileRequest] = ()
) -> tuple[ProfileRecord, ...]:
    """Fill in every range of the requested profiles.

    Args:
        spec: its size rule gives the possible heights and widths.
        common: the ranges that `profiles` leave open.
        profiles: one request per optimisation profile; empty is one profile of `common`.

    Returns:
        The input shapes to build for.

    Raises:
        InputError: a range contradicts a fixed size or the size rule, or a profile is repeated.
    """
    resolved = tuple(_resolve(spec, asked.or_else(common)) for asked in profiles or (ProfileRequest(),))
    for number, profile in enumerate(resolved):
        if profile in resolved[:number]:
            raise InputError(
                f"expected different profiles, got one twice: {profile}",
                "leave one out, or give it another range or tuned shape",
            )
    return resolved


def _resolve(spec: ModelSpec, asked: ProfileRequest) -> ProfileRecord:
    batch = asked.batch or ShapeRange.of(1, 1, 8)
    size = spec.input.size
    if isinstance(size, FixedSize):
        sides = {"height": size.height, "width": size.width}
        for what, side in sides.items():
            wanted = getattr(asked, what)
            if wanted is not None and (wanted.min, wanted.max) != (side, side):
                raise InputError(
                    f"expected --{what} {side}, as the spec fixes the {what} at {side}, got {wanted}",
                    f"leave --{what} out, or change [spec.input.size]",
                )
        fixed = {what: ShapeRange.of(side, side, side) for what, side in sides.items()}
        return ProfileRecord(batch=batch, **fixed)
    step = size.multiple
    usual = ShapeRange.of(step, max(512 // step, 1) * step, max(1024 // step, 1) * step)
    ranges = {"height": asked.height or usual, "width": asked.width or usual}
    for what, wanted in ranges.items():
        if wanted.min % step or wanted.opt % step or wanted.max % step:
            raise InputError(
                f"expected a multiple of {step} for --{what}, by the spec's size rule, got {wanted}",
                f"give multiples of {step}",
            )
    return ProfileRecord(batch=batch, **ranges)
