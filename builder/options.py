"""Options of a build: BuildOptions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from centernet_trt.builder.int8.quantise import Int8Options
from centernet_trt.builder.profiles import ProfileRequest, resolve_profiles
from centernet_trt.runtime.manifest import Precision, ProfileRecord, ShapeRange
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["BuildOptions"]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        precision: of weights and activations: `fp32`, `fp16` or `int8`.
        batch: images per call; None is 1 to 8, tuned for 1.
        height: rows of the network input in pixels, if the spec does not fix them; None is up to 1024, tuned for 512.
        width: columns, likewise.
        profiles: optimisation profiles, each tuned for its own shape; a range that one leaves open is that of `batch`,
            `height` or `width`. Empty is one profile of these three. The built graph is compared with its source at the
            tuned size of the first profile.
        flavour: the TensorRT that compiles the plan. `auto` is full TensorRT if it is installed and a GPU is present,
            else TensorRT for RTX; `none` makes a bundle without a plan.
        targets: the GPUs to build a plan for, one plan each; empty is the flavour's default.
        heads: element type of the head tensors of an fp16 or int8 graph; `fp32` computes their last convolutions in fp32.
        calibration: a folder of images or a COCO annotation file: the images that int8 is calibrated on and that fp16's
            range check runs on. None is the images that ship with the package, which int8 does not accept.
        int8: how an int8 graph is calibrated and searched. Its `calibration` is ignored: the images are those above.
        keep_fp32: names of nodes that stay fp32 in an fp16 or int8 graph, as `layers.json` of a bundle lists them.
        max_difference: largest difference of a head from the source's, root mean square relative to the source's; None
            is `calibration.limits.LIMITS` of the precision.
        tf32: allow TF32 in fp32 convolutions.
        command: the command line that the manifest records; None records an equivalent one.
    """

    precision: Precision = "fp16"
    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None
    profiles: tuple[ProfileRequest, ...] = ()
    flavour: Literal["auto", "rtx", "tensorrt", "none"] = "auto"
    targets: tuple[str, ...] = ()
    heads: Literal["fp16", "fp32"] = "fp16"
    calibration: Path | None = None
    int8: Int8Options = field(default_factory=Int8Options)
    keep_fp32: tuple[str, ...] = ()
    max_difference: float | None = None
    tf32: bool = False
    command: str | None = None

    def resolve_profiles(self, spec: ModelSpec) -> tuple[ProfileRecord, ...]:
        """Fill in every range of the requested profiles.

        Args:
            spec: its size rule gives the possible heights and widths.

        Returns:
            The input shapes to build for.

        Raises:
            InputError: a range does not fit the spec, or a profile is repeated.
        """
        return resolve_profiles(spec, ProfileRequest(self.batch, self.height, self.width), self.profiles)
