"""The manifest of an engine bundle: its schema, and the head shapes that follow from it."""

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
    """A file by name (inside the bundle, or where it was read), size in bytes and SHA-256."""

    file: str
    bytes: int
    sha256: Sha256


class ShapeRange(ManifestModel):
    """The values that one dimension may take: smallest, the one to tune for, largest."""

    min: int
    opt: int
    max: int

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"1 <= MIN <= OPT <= MAX was expected, found {self.min}:{self.opt}:{self.max}")
        return self

    @classmethod
    def of(cls, smallest: int, tuned: int, largest: int) -> "ShapeRange":
        """The range of these three; InputError when they are not ordered."""
        if not 1 <= smallest <= tuned <= largest:
            raise InputError(
                f"range {smallest}:{tuned}:{largest} is not ordered: 1 <= MIN <= OPT <= MAX was expected",
                "write it as MIN:OPT:MAX, such as 1:4:8",
            )
        return cls(min=smallest, opt=tuned, max=largest)

    @classmethod
    def parse(cls, text: str) -> "ShapeRange":
        """Read `1:4:8` (smallest, tuned for, largest) or `4` (all three); InputError for anything else."""
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
    """Input shapes that the engines were built for, in images and pixels. How several are used: `runtime/profiles.py`."""

    batch: ShapeRange
    height: ShapeRange
    width: ShapeRange

    def __str__(self) -> str:
        return f"batch {self.batch}, height {self.height}, width {self.width}"


class TensorRecord(ManifestModel):
    """A graph input or output: its name, element type and number of channels."""

    name: str
    dtype: TensorType
    channels: int


class PlanRecord(FileRecord):
    """A TensorRT plan: which TensorRT wrote it, for which GPUs, and whether fp32 may run as TF32.

    `peak_bytes`: the most memory that the building process had held by its end, None where that is not known.
    """

    flavour: Literal["rtx", "tensorrt"]
    version: str
    target: str
    tf32: bool
    seconds: float
    peak_bytes: int | None = None


class PassRecord(ManifestModel):
    """A graph pass: its name, its time in seconds, and the number of nodes after it.

    `peak_bytes`: the most memory that the building process had held by its end, None where that is not known.
    """

    name: str
    seconds: float
    nodes: int
    peak_bytes: int | None = None


Mode = Literal["fast", "faithful"]
"""How ONNX Runtime runs a graph: `fast` optimises and may run fp16 in fp32, `faithful` rounds every result to its type."""


class HeadComparison(ManifestModel):
    """How a head of `model.onnx` differs from the source graph, both run in ONNX Runtime on `input`.

    `max_abs`: largest absolute difference; `max_rel`: the same over the source's largest magnitude.
    `mode` `faithful`: every operation rounds to its own type.
    """

    max_abs: float
    max_rel: float
    mode: Mode
    input: str


class CalibrationSummary(ManifestModel):
    """How an int8 bundle was calibrated, and what that cost; the whole of it is in `calibration.json` and `int8.json`.

    `int8_share`: part of the multiply-adds in int8. `expected_drop`: label-free estimate of the drop in AP against the
    fp32 graph; `agreement_f1`: matched boxes at the spec's threshold; both on `judged_images` of the calibration
    images, run `faithful` to the typed graph, or with int8 `simulated` in fp32.
    """

    method: str
    images: int
    int8_share: float
    max_drop: float
    min_agreement: float
    expected_drop: float
    agreement_f1: float
    judged_images: int
    mode: Literal["simulated", "faithful"]


class Manifest(ManifestModel):
    """Everything that a bundle's reader must know before it opens another file of the bundle."""

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
    # Read, not written: bundles built by earlier versions have this list, and it is always empty.
    accuracy: tuple[()] = Field(default=(), exclude=True, repr=False)

    @property
    def profile(self) -> ProfileRecord:
        """The first profile: at its tuned size the graph is compared with its source, and counted."""
        return self.profiles[0]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def head_shapes(manifest: Manifest, batch: int, height: int, width: int) -> dict[str, Shape]:
    """Shapes of the head tensors by name, from the manifest alone."""
    stride = manifest.spec.stride
    return {head.name: (batch, head.channels, height // stride, width // stride) for head in manifest.heads}
