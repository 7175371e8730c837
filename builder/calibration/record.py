"""`calibration.json`, and TensorRT's calibration cache."""

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from centernet_trt._version import __version__
from centernet_trt.builder.calibration.images import CalibrationImages
from centernet_trt.builder.calibration.statistics import Histogram
from centernet_trt.builder.calibration.thresholds import (
    METHODS,
    Method,
    all_thresholds,
    coarse,
    signal_to_noise,
)
from centernet_trt.builder.graph.external_data import inline_constant
from centernet_trt.errors import CalibrationError
from centernet_trt.runtime.presets import describe_validation
from centernet_trt.runtime.spec import InputSpec

__all__ = [
    "CalibrationRecord",
    "Identity",
    "ImageRecord",
    "TensorRecord",
    "TrtCache",
    "format_cache",
    "graph_hash",
    "make_record",
    "parse_cache",
    "read_cache",
    "read_record",
]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RecordModel(BaseModel):
    """Base of the record's parts: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageRecord(RecordModel):
    """An image that was used: its name and SHA-256."""

    name: str
    sha256: Sha256


class TensorRecord(RecordModel):
    """What was found out about one tensor.

    Attributes:
        amax: largest magnitude on all images; 0 where the tensor was always zero.
        thresholds: by method, in the tensor's unit; int8's scale is threshold / 127.
        signal_to_noise: what survives int8 at that threshold, in dB, from the histogram; None for a tensor of zeros.
        histogram: counts of |x| in 64 equal bins up to `amax`, for drawing.
        means: mean of each channel of the tensor, for the correction of biases (see `quantise.placement`).
        exponents: channel c was multiplied by 2^exponents[c] before (see `quantise.equalise`); empty for none.
    """

    amax: float = Field(ge=0)
    thresholds: dict[Method, Annotated[float, Field(ge=0)]]
    signal_to_noise: dict[Method, float | None]
    histogram: tuple[int, ...]
    means: tuple[float, ...] = ()
    exponents: tuple[int, ...] = ()


class Identity(RecordModel):
    """What a calibration was made from: it may be used again only where all of this agrees.

    Attributes:
        model: SHA-256 of the fp32 graph whose tensors were measured.
        preprocessing: SHA-256 of the spec's input part.
        images: every image, sorted by name and hash.
    """

    model: Sha256
    preprocessing: Sha256
    images: tuple[ImageRecord, ...]

    @classmethod
    def of(cls, model: ModelProto, spec: InputSpec, images: CalibrationImages) -> "Identity":
        """The identity of a calibration of this graph, with this pre-processing, on these images."""
        rows = sorted((image.name, image.sha256) for image in images)
        settings = json.dumps(spec.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return cls(
            model=graph_hash(model),
            preprocessing=hashlib.sha256(settings.encode()).hexdigest(),
            images=tuple(ImageRecord(name=name, sha256=digest) for name, digest in rows),
        )

    def differences(self, other: "Identity") -> list[str]:
        """What of `other`, the wanted one, differs from this one, in words; empty where all agrees."""
        found = []
        if self.model != other.model:
            found.append(f"the model (graph {self.model[:12]}, now {other.model[:12]})")
        if self.preprocessing != other.preprocessing:
            found.append(f"the pre-processing ({self.preprocessing[:12]}, now {other.preprocessing[:12]})")
        if self.images != other.images:
            found.append(f"the images ({_image_difference(self.images, other.images)})")
        return found


class CalibrationRecord(RecordModel):
    """A whole calibration (`schema` 1)."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    product: str
    identity: Identity
    tensors: dict[str, TensorRecord]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @property
    def always_zero(self) -> tuple[str, ...]:
        """Tensors that were zero on every image: their scale is floored, their layers stay fp16 by default."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.amax == 0)

    def to_json(self) -> str:
        """The text of `calibration.json`."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def require(self, wanted: Identity, source: str) -> None:
        """Make sure that this record was made from `wanted`; `source` names it in the message.

        Raises:
            CalibrationError: it was made from something else; each difference is named.
        """
        if found := self.identity.differences(wanted):
            raise CalibrationError(
                f"{source} was made from something else: {'; '.join(found)}",
                "calibrate again: leave --calibration-record out",
            )


def _image_difference(old: Sequence[ImageRecord], new: Sequence[ImageRecord]) -> str:
    before, now = {i.sha256: i.name for i in old}, {i.sha256: i.name for i in new}
    lost = [name for digest, name in before.items() if digest not in now]
    added = [name for digest, name in now.items() if digest not in before]
    parts = [f"{len(old)} then, {len(new)} now"]
    parts += [f"{len(lost)} no longer there, {lost[0]} the first"] if lost else []
    parts += [f"{len(added)} new, {added[0]} the first"] if added else []
    return "; ".join(parts)


def graph_hash(model: ModelProto) -> str:
    """SHA-256 of a graph's nodes and constants; what only annotates it (names of the producer, shapes) is left out."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(inline_constant(tensor).SerializeToString(deterministic=True))
    for value in model.graph.output:
        digest.update(value.name.encode())
    return digest.hexdigest()


def make_record(
    identity: Identity,
    histograms: Mapping[str, Histogram],
    means: Mapping[str, npt.NDArray[np.float64]] | None = None,
    exponents: Mapping[str, tuple[int, ...]] | None = None,
) -> CalibrationRecord:
    """The record of a calibration: all thresholds of every histogram."""
    tensors = {}
    for name, histogram in histograms.items():
        thresholds = all_thresholds(histogram)
        noise: dict[Method, float | None] = {}
        for method in METHODS:
            ratio = signal_to_noise(histogram, thresholds[method])
            noise[method] = round(ratio, 3) if ratio < float("inf") else None
        tensors[name] = TensorRecord(
            amax=histogram.amax,
            thresholds=thresholds,
            signal_to_noise=noise,
            histogram=tuple(coarse(histogram).tolist()),
            # Seven digits are more than a bias in fp16 shows.
            means=tuple(float(f"{mean:.7g}") for mean in (means or {}).get(name, ())),
            exponents=(exponents or {}).get(name, ()),
        )
    return CalibrationRecord(product=f"centernet-trt {__version__}", identity=identity, tensors=tensors)


def read_record(path: Path) -> CalibrationRecord:
    """Read a `calibration.json`.

    Raises:
        CalibrationError: missing, or not such a record; what is wrong is named.
    """
    try:
        return CalibrationRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(
            f"cannot read the calibration record {path}: {error.strerror}",
            "give the calibration.json of a bundle",
        ) from None
    except ValidationError as error:
        raise CalibrationError(
            f"{path} is not a calibration record:\n{describe_validation(error)}",
            "give the calibration.json of an int8 bundle, or leave it out to calibrate again",
        ) from None
    except UnicodeDecodeError:
        raise CalibrationError(f"{path} is not a calibration record: it is not text") from None


_HEAD = re.compile(r"^TRT-(?P<version>\d+)-(?P<algorithm>\w+)$")


@dataclass(frozen=True)
class TrtCache:
    """Scales (real value of one int8 step) by tensor name, and the head line: `TRT-8601-EntropyCalibration2`."""

    head: str
    scales: dict[str, float]


def read_cache(path: Path) -> TrtCache:
    """Read a cache file.

    Raises:
        CalibrationError: missing, or not such a cache; the line is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"cannot read the calibration cache {path}: {getattr(error, 'strerror', None) or error}",
            "give TensorRT's text cache, which begins with TRT-",
        ) from None
    return parse_cache(text, str(path))


def parse_cache(text: str, source: str = "the calibration cache") -> TrtCache:
    """Read a cache from its text; `source` is for messages. Raises as `read_cache`."""
    lines = text.splitlines()
    head = lines[0].strip() if lines else ""
    if not _HEAD.match(head):
        raise CalibrationError(
            f"{source} begins with {head[:60]!r}; TRT-<version>-<algorithm> was expected",
            "give TensorRT's text cache, such as TRT-8601-EntropyCalibration2",
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        # Tensor names may hold colons ("input:0"); the scale holds none.
        name, separator, digits = line.rpartition(": ")
        if not separator or not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits.strip()):
            raise CalibrationError(
                f"{source}, line {number}: {line[:80]!r}; `tensor: hexadecimal float` was expected",
                "the file is damaged: write it again",
            )
        (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
        if not 0 <= scale < float("inf"):
            raise CalibrationError(
                f"{source}, line {number}: the scale of {name!r} is {scale}, a positive number was expected"
            )
        scales[name] = scale
    return TrtCache(head, scales)


def format_cache(scales: Mapping[str, float], head: str = "TRT-8601-EntropyCalibration2") -> str:
    """The text of a cache with these scales, rounded to float32."""
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([head, *lines]) + "\n"
