"""Manifest: the schema of a bundle's `manifest.json`, and the head shapes that follow from it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from centernet_trt.errors import InputError
from centernet_trt.runtime.spec import ModelSpec

Shape = tuple[int, int, int, int]

SCHEMA: Literal[1] = 1
Precision = Literal["fp32", "fp16", "int8"]
TensorType = Literal["float32", "float16"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ManifestModel(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(ManifestModel):
    """A file.

    Attributes:
        file: its name inside the bundle, or the path that it was read from.
        bytes: its size.
        sha256: its SHA-256, hexadecimal.
    """

    file: str
    bytes: int
    sha256: Sha256


class ShapeRange(ManifestModel):
    """The values that one dimension may take.

    Attributes:
        min: the smallest.
        opt: the one that the engine is tuned for.
        max: the largest.
    """

    min: int
    opt: int
    max: int

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"expected 1 <= MIN <= OPT <= MAX, got {self.min}:{self.opt}:{self.max}")
        return self

    @classmethod
    def of(cls, smallest: int, tuned: int, largest: int) -> "ShapeRange":
        """Make a range; InputError unless 1 <= smallest <= tuned <= largest."""
        if not 1 <= smallest <= tuned <= largest:
            raise InputError(
                f"range {smallest}:{tuned}:{largest} is not ordered: expected 1 <= MIN <= OPT <= MAX",
                "write it as MIN:OPT:MAX, such as 1:4:8",
            )
        return cls(min=smallest, opt=tuned, max=largest)

    @classmethod
    def parse(cls, text: str) -> "ShapeRange":
        """Parse `1:4:8` (smallest, tuned for, largest) or `4` (all three); InputError for anything else."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
            raise InputError(
                f"{text!r} is not a range",
                "write MIN:OPT:MAX, such as 1:4:8, or one number that is all three",
            )
        numbers = [int(part) for part in parts]
        return cls.of(*numbers) if len(numbers) == 3 else cls.of(*numbers * 3)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}" if self.min != self.max else str(self.min)

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max


class ProfileRecord(ManifestModel):
    """An optimisation profile: input shapes that the engines were built for; `runtime/profiles.py` chooses among several.

    Attributes:
        batch: images.
        height: rows of the network input, in pixels.
        width: columns of the network input, in pixels.
    """

    batch: ShapeRange
    height: ShapeRange
    width: ShapeRange

    def __str__(self) -> str:
        return f"batch {self.batch}, height {self.height}, width {self.width}"


class TensorRecord(ManifestModel):
    """A graph input or output.

    Attributes:
        name: its tensor name.
        dtype: its element type.
        channels: size of its second dimension.
    """

    name: str
    dtype: TensorType
    channels: int


class PlanRecord(FileRecord):
    """A TensorRT plan.

    Attributes:
        flavour: TensorRT for RTX, or full TensorRT.
        version: version of TensorRT that built it.
        target: GPUs that it runs on.
        tf32: whether fp32 layers may run as TF32.
        seconds: build time.
        peak_bytes: peak memory of the building process by its end; None if unknown.
    """

    flavour: Literal["rtx", "tensorrt"]
    version: str
    target: str
    tf32: bool
    seconds: float
    peak_bytes: int | None = None


class PassRecord(ManifestModel):
    """A graph pass of the build.

    Attributes:
        name: its name.
        seconds: its time.
        nodes: number of nodes after it.
        peak_bytes: peak memory of the building process by its end; None if unknown.
    """

    name: str
    seconds: float
    nodes: int
    peak_bytes: int | None = None


Mode = Literal["fast", "faithful"]
"""How ONNX Runtime runs a graph: `fast` optimises and may run fp16 in fp32, `faithful` rounds every result to its type."""


class HeadComparison(ManifestModel):
    """The difference of a head between `model.onnx` and the source graph, both run in ONNX Runtime.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: `max_abs` divided by the source's largest magnitude.
        mode: how ONNX Runtime ran both.
        input: what both ran on.
    """

    max_abs: float
    max_rel: float
    mode: Mode
    input: str


class CalibrationSummary(ManifestModel):
    """How an int8 bundle was calibrated, and the accuracy lost; details are in `calibration.json` and `int8.json`.

    Attributes:
        method: calibration method.
        images: number of calibration images.
        int8_share: share of the multiply-adds that run in int8, 0..1.
        max_drop: budget for `expected_drop`.
        min_agreement: lower limit for `agreement_f1`.
        expected_drop: label-free estimate of the drop in AP against the fp32 graph.
        agreement_f1: F1 of boxes matched with the fp32 graph's, at the spec's threshold.
        agreement_heads: agreement of each further head with the fp32 graph's at the objects found, 1 for equal values.
        judged_images: number of calibration images that these were measured on.
        mode: how the graph was run for that: `faithful` to its types, or with int8 `simulated` in fp32.
    """

    method: str
    images: int
    int8_share: float
    max_drop: float
    min_agreement: float
    expected_drop: float
    agreement_f1: float
    agreement_heads: dict[str, float] = {}
    judged_images: int
    mode: Literal["simulated", "faithful"]


class Manifest(ManifestModel):
    """The content of `manifest.json`: what a reader must know before it opens another file of the bundle.

    Attributes:
        schema_: version of this schema.
        name: name of the bundle.
        product: name and version of the package that built it.
        created: time of the build, ISO 8601.
        command: command line that rebuilds it.
        precision: precision of the build.
        spec: what the network means.
        profiles: input shapes that the engines were built for; at least one.
        input: the graph input.
        heads: the graph outputs.
        source: the ONNX file that it was built from.
        model: the typed ONNX graph.
        plans: the TensorRT plans; empty for a bundle that runs in ONNX Runtime only.
        files: further files of the bundle.
        passes: the graph passes of the build, in order.
        kept_fp32: nodes kept in fp32 in an fp16 or int8 build, with the reason.
        comparison: difference of each head from the source graph, by name.
        calibration: of an int8 build; None for others.
        notes: remarks of the build for the user.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: str
    product: str
    created: str
    command: str
    precision: Precision
    spec: ModelSpec
    profiles: tuple[ProfileRecord, ...] = Field(min_length=1)
    input: TensorRecord
    heads: tuple[TensorRecord, ...]
    source: FileRecord
    model: FileRecord
    plans: tuple[PlanRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    kept_fp32: dict[str, str] = {}
    comparison: dict[str, HeadComparison] = {}
    calibration: CalibrationSummary | None = None
    notes: tuple[str, ...] = ()
    # Read but not written: bundles built by earlier versions have this list, always empty.
    accuracy: tuple[()] = Field(default=(), exclude=True, repr=False)

    @property
    def profile(self) -> ProfileRecord:
        """The first profile: the build compares and measures the graph at its tuned size."""
        return self.profiles[0]

    def to_json(self) -> str:
        """Format the text of `manifest.json`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def head_shapes(manifest: Manifest, batch: int, height: int, width: int) -> dict[str, Shape]:
    """Compute the shapes (N, C, H, W) of the head tensors, by name, for an input of this shape in pixels."""
    stride = manifest.spec.stride
    return {head.name: (batch, head.channels, height // stride, width // stride) for head in manifest.heads}
