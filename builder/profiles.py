"""The optimisation profiles to build: what a user asks for, filled in from the spec."""

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
    """Input shapes asked for: images and pixels; None where the common range, or the spec's usual one, serves."""

    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None

    @classmethod
    def parse(cls, text: str) -> "ProfileRequest":
        """Read `batch=1:4:8,height=512,width=512`, in any order and each part at most once.

        Raises:
            InputError: an unknown or repeated dimension, or something that is no range.
        """
        found: dict[str, ShapeRange] = {}
        for part in text.split(","):
            name, equals, values = (piece.strip() for piece in part.partition("="))
            if name not in _DIMENSIONS or not equals:
                raise InputError(f"{part.strip()!r} in the profile {text!r} is no dimension", _EXAMPLE)
            if name in found:
                raise InputError(f"the profile {text!r} gives the {name} twice", _EXAMPLE)
            found[name] = ShapeRange.parse(values)
        return cls(**found)

    def or_else(self, common: "ProfileRequest") -> "ProfileRequest":
        """The request with what it leaves open taken from another."""
        return ProfileRequest(
            self.batch or common.batch, self.height or common.height, self.width or common.width
        )


def resolve_profiles(
    spec: ModelSpec, common: ProfileRequest, profiles: Sequence[ProfileRequest] = ()
) -> tuple[ProfileRecord, ...]:
    """The input shapes to build for, every range filled in.

    Args:
        spec: its size rule says which sides there can be.
        common: the shapes of the only profile, or what `profiles` leave open.
        profiles: one request for each optimisation profile; none is one profile of `common`.

    Raises:
        InputError: a range that contradicts a fixed size, sides that the size rule never gives, or a profile twice.
    """
    resolved = tuple(_resolve(spec, asked.or_else(common)) for asked in profiles or (ProfileRequest(),))
    for number, profile in enumerate(resolved):
        if profile in resolved[:number]:
            raise InputError(
                f"two profiles are the same: {profile}",
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
                    f"--{what} {wanted} was asked for, the spec fixes the {what} at {side}",
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
                f"--{what} {wanted} was asked for; by the spec's size rule every {what} is a multiple of {step}",
                f"give multiples of {step}",
            )
    return ProfileRecord(batch=batch, **ranges)
