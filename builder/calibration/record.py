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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from centernet_trt._version import __version__
from centernet_trt.builder.calibration.histogram import Histogram
from centernet_trt.builder.calibration.images import CalibrationImages
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
    """Base of the record's parts; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageRecord(RecordModel):
    """Name and SHA-256 of an image."""

    name: str
    sha256: Sha256


# Entries that earlier builds wrote for a method that no longer exists.
_RETIRED_METHODS = ("entropy-as-published",)


class TensorRecord(RecordModel):
    """The statistics of one tensor.

    Attributes:
        amax: largest magnitude on all images; 0 for a tensor that was always zero.
        thresholds: by method, in the tensor's unit; int8's scale is threshold / 127.
        signal_to_noise: by method, signal-to-quantisation-noise ratio in dB, from the histogram; None for a tensor of
            zeros.
        histogram: counts of |x| in 64 equal bins up to `amax`, for drawing.
        means: mean of each channel, for the correction of biases (see `int8.placement`).
        exponents: channel c was multiplied by 2^exponents[c] beforehand (see `int8.equalise`); empty for none.
    """

    amax: float = Field(ge=0)
    thresholds: dict[Method, Annotated[float, Field(ge=0)]]
    signal_to_noise: dict[Method, float | None]
    histogram: tuple[int, ...]
    means: tuple[float, ...] = ()
    exponents: tuple[int, ...] = ()

    @field_validator("thresholds", "signal_to_noise", mode="before")
    @classmethod
    def _drop_retired(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {method: number for method, number in value.items() if method not in _RETIRED_METHODS}


class Identity(RecordModel):
    """What a calibration was made from; it is reused only if all of this agrees.

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
        """Identify a calibration.

        Args:
            model: the graph whose tensors are measured.
            spec: the pre-processing; the name of the input does not matter.
            images: in any order.
        """
        rows = sorted((image.name, image.sha256) for image in images)
        settings = json.dumps(spec.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return cls(
            model=graph_hash(model),
            preprocessing=hashlib.sha256(settings.encode()).hexdigest(),
            images=tuple(ImageRecord(name=name, sha256=digest) for name, digest in rows),
        )

    def differences(self, other: "Identity") -> list[str]:
        """Describe how `other`, the expected identity, differs from this one; empty if it does not."""
        found = []
        if self.model != other.model:
            found.append(f"the model (graph {self.model[:12]}, now {other.model[:12]})")
        if self.preprocessing != other.preprocessing:
            found.append(f"the pre-processing ({self.preprocessing[:12]}, now {other.preprocessing[:12]})")
        if self.images != other.images:
            found.append(f"the images ({_image_difference(self.images, other.images)})")
        return found


class CalibrationRecord(RecordModel):
    """A calibration, as `calibration.json` holds it (schema 1).

    Attributes:
        schema_: version of the file's layout.
        product: name and version of what wrote it.
        identity: what it was made from.
        tensors: statistics by tensor name.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    product: str
    identity: Identity
    tensors: dict[str, TensorRecord]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @property
    def always_zero(self) -> tuple[str, ...]:
        """Tensors that were zero on every image; their layers stay fp16."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.amax == 0)

    def to_json(self) -> str:
        """The text of `calibration.json`."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def require(self, wanted: Identity, source: str) -> None:
        """Check that this record was made from `wanted`.

        Args:
            wanted: the expected identity.
            source: names the record in the message.

        Raises:
            CalibrationError: it was not; each difference is named.
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
    parts += [f"{len(lost)} missing, {lost[0]} first"] if lost else []
    parts += [f"{len(added)} new, {added[0]} first"] if added else []
    return "; ".join(parts)


def graph_hash(model: ModelProto) -> str:
    """SHA-256 of a graph's nodes, constants and output names; annotations (producer, shapes) do not count."""
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
    """Make the record of a calibration, with the thresholds of every method.

    Args:
        identity: what the calibration was made from.
        histograms: by tensor name.
        means: mean of each channel, (C,), by tensor name.
        exponents: of the channels of equalised tensors, by tensor name.
    """
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
            # Seven digits: more than a bias in fp16 resolves.
            means=tuple(float(f"{mean:.7g}") for mean in (means or {}).get(name, ())),
            exponents=(exponents or {}).get(name, ()),
        )
    return CalibrationRecord(product=f"centernet-trt {__version__}", identity=identity, tensors=tensors)


def read_record(path: Path) -> CalibrationRecord:
    """Read a `calibration.json`.

    Raises:
        CalibrationError: missing, or not a calibration record; the message names each invalid entry.
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
        raise CalibrationError(
            f"{path} is not a calibration record: expected UTF-8 text",
            "give the calibration.json of an int8 bundle",
        ) from None


_HEAD = re.compile(r"^TRT-(?P<version>\d+)-(?P<algorithm>\w+)$")


@dataclass(frozen=True)
class TrtCache:
    """TensorRT's text calibration cache.

    Attributes:
        head: first line, such as `TRT-8601-EntropyCalibration2`.
        scales: real value of one int8 step, by tensor name.
    """

    head: str
    scales: dict[str, float]


def read_cache(path: Path) -> TrtCache:
    """Read a calibration cache.

    Raises:
        CalibrationError: missing, or not a calibration cache; the message names the line.
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
    """Parse the text of a calibration cache.

    Args:
        text: the whole file.
        source: names the cache in messages.

    Raises:
        CalibrationError: not a calibration cache; the message names the line.
    """
    lines = text.splitlines()
    head = lines[0].strip() if lines else ""
    if not _HEAD.match(head):
        raise CalibrationError(
            f"{source} begins with {head[:60]!r}, expected TRT-<version>-<algorithm>",
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
                f"{source}, line {number}: expected `tensor: hexadecimal float`, got {line[:80]!r}",
                "the file is damaged: write it again",
            )
        (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
        if not 0 <= scale < float("inf"):
            raise CalibrationError(
                f"{source}, line {number}: the scale of {name!r} is {scale}, expected a finite number, 0 or more",
                "the file is damaged: write it again",
            )
        scales[name] = scale
    return TrtCache(head, scales)


def format_cache(scales: Mapping[str, float], head: str = "TRT-8601-EntropyCalibration2") -> str:
    """Write the text of a calibration cache.

    Args:
        scales: real value of one int8 step, by tensor name; rounded to float32.
        head: first line.
    """
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([head, *lines]) + "\n"
