"""Tensors of a checkpoint before they are read: `Entry`, and the error that names those of unreadable types."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.errors import ModelError

__all__ = ["Checkpoint", "Entry", "array_entries", "unreadable"]

Array = NDArray[Any]

_LISTED = 5
# Part of the kind of an unreadable tensor -> what to do about it.
_ADVICE = (
    (
        "float8",
        "8-bit floats need scales that the file does not define: multiply by them, and save in float16 or float32",
    ),
    ("sparse", "save value.to_dense() for each sparse tensor"),
    ("quantised", "save the weights before quantisation, or value.dequantize() for each tensor"),
    ("NumPy", "save torch.from_numpy(value), or the arrays alone with numpy.savez"),
    ("Python object", "save model.state_dict() where the model's code is installed"),
    ("", "convert the weights to float32 before saving"),
)


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint, not read yet.

    Attributes:
        shape: empty where `problem` hides it.
        read: returns the numbers, contiguous; bfloat16 as float32, other types as stored. Raises ModelError for a
            damaged tensor and for one with a `problem`.
        folder: path of the dictionary that it is in, dotted and with a final dot; empty for the file's own.
        problem: why its numbers cannot be read, such as "float8_e4m3fn" or "sparse"; empty for readable tensors.
    """

    shape: tuple[int, ...]
    read: Callable[[], Array]
    folder: str = ""
    problem: str = ""

    @property
    def is_object(self) -> bool:
        """Whether it is no tensor at all, such as a setting or a whole pickled network."""
        return self.problem.startswith(("a Python object", "a NumPy array"))


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        path: of the file.
        format: `torch`, `safetensors`, `npz` or `shards`.
        tensors: by name; the name begins with the keys of the dictionaries that it is in: `state_dict.conv1.weight`.
        objects: class of each Python object that could be a network, by dotted key. Objects are not read.
        swaps_ema: whether mmcv or mmengine wrote it, which exchange the weights and their average on saving.
    """

    path: Path
    format: str
    tensors: Mapping[str, Entry]
    objects: Mapping[str, str] = field(default_factory=dict)
    swaps_ema: bool = False


def array_entries(arrays: Mapping[str, Array]) -> dict[str, Entry]:
    """Entries of arrays in memory."""

    def entry(value: Array) -> Entry:
        return Entry(tuple(np.shape(value)), lambda: value)

    return {name: entry(value) for name, value in arrays.items()}


def unreadable(where: str, problems: Mapping[str, str]) -> ModelError:
    """The error for tensors that cannot be read: their names, why, and what to do.

    Args:
        where: names the checkpoint.
        problems: `Entry.problem` by name of the tensor.
    """
    kinds = " ".join(problems.values()).replace("F8_", "float8 ")
    advice = next(text for part, text in _ADVICE if part in kinds)
    listed = ", ".join(f"{name!r} ({problem})" for name, problem in list(problems.items())[:_LISTED])
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    noun = "tensor" if len(problems) == 1 else "tensors"
    return ModelError(f"{where}: {len(problems)} {noun} cannot be read: {listed}{more}", advice)
