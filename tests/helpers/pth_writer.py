"""Write files as torch.save does, opcode by opcode, without PyTorch; and files that attack their reader."""

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u2": "BFloat16"}


@dataclass
class Part:
    """A tensor that is a view of a storage; u2 numbers are bfloat16."""

    storage: Array
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    key: str = ""


@dataclass
class Parameter:
    """A tensor wrapped as torch.nn.Parameter."""

    data: Part


@dataclass
class Raw:
    """Opcodes that push one value."""

    code: bytes


def tensor(value: Array) -> Part:
    value = np.ascontiguousarray(value).reshape(np.shape(value))
    strides = tuple(s // value.itemsize for s in value.strides)
    return Part(value.reshape(-1), value.shape, strides)


def call(module: str, name: str, *arguments: Any) -> Raw:
    writer = _Writer()
    return Raw(writer.name(module, name) + writer.value(arguments) + b"R")


@dataclass
class _Writer:
    storages: dict[str, Array] = field(default_factory=dict)

    def pickle(self, value: Any) -> bytes:
        return b"\x80\x02" + self.value(value) + b"."

    def name(self, module: str, name: str) -> bytes:
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"

    def value(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return value.code
        if isinstance(value, Part):
            return self._tensor(value)
        if isinstance(value, Parameter):
            name = self.name("torch._utils", "_rebuild_parameter")
            hooks = self.name("collections", "OrderedDict") + b")R"
            return name + b"(" + self.value(value.data) + b"\x88" + hooks + b"tR"
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            digits = value.to_bytes(16, "little", signed=True)
            return b"\x8a\x10" + digits
        if value is None:
            return b"N"
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.value, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.value, value)) + b"e"
        assert isinstance(value, Mapping), value
        items = b"".join(self.value(k) + self.value(v) for k, v in value.items())
        return b"}(" + items + b"u"

    def _tensor(self, part: Part) -> bytes:
        key = part.key or str(len(self.storages))
        self.storages[key] = part.storage
        kind = STORAGES[part.storage.dtype.str[1:]]
        reference = (
            b"("
            + self.value("storage")
            + self.name("torch", f"{kind}Storage")
            + b"".join(map(self.value, (key, "cpu", part.storage.size)))
            + b"tQ"
        )
        rest = b"".join(map(self.value, (part.offset, part.shape, part.stride, False)))
        hooks = self.name("collections", "OrderedDict") + b")R"
        return self.name("torch._utils", "_rebuild_tensor_v2") + b"(" + reference + rest + hooks + b"tR"


def write_pth(path: Path, value: Any, *, order: str = "little", compress: bool = False) -> Path:
    """The zip format."""
    writer = _Writer()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", writer.pickle(value))
        archive.writestr("archive/byteorder", order)
        for key, numbers in writer.storages.items():
            swapped = numbers.astype(numbers.dtype.newbyteorder(">" if order == "big" else "<"))
            archive.writestr(f"archive/data/{key}", swapped.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path: Path, value: Any) -> Path:
    """The format before torch 1.6."""
    writer = _Writer()
    out = io.BytesIO()
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    main = writer.pickle(value)
    for part in (LEGACY_MAGIC, 1001, system):
        out.write(_Writer().pickle(part))
    out.write(main)
    out.write(_Writer().pickle(list(writer.storages)))
    for numbers in writer.storages.values():
        out.write(struct.pack("<q", numbers.size) + numbers.tobytes())
    path.write_bytes(out.getvalue())
    return path
