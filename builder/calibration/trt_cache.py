"""TensorRT's own text calibration cache, as TensorRT 5 to 10 write it: a head line, then `tensor: scale` lines.

The scale is the eight hexadecimal digits of an IEEE 754 float32, most significant first; threshold = 127 * scale.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from centernet_trt.errors import CalibrationError

__all__ = ["TrtCache", "format_cache", "parse_cache", "read_cache"]

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
