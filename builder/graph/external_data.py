"""Keep the large weights of a model in files while it is built: external_weights."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, helper, numpy_helper

from centernet_trt.errors import ModelError

__all__ = [
    "PROTOBUF_LIMIT",
    "as_array",
    "data_folder",
    "external_size",
    "external_weights",
    "externalise_constant",
    "externalise_model",
    "inline_constant",
    "inline_weights",
    "make_constant",
    "save_with_external_data",
    "serialised_size",
]

# A protobuf message may not be serialised beyond 2 GiB; the margin is for the bytes that we estimate.
PROTOBUF_LIMIT = 2**31 - 2**20


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# A smaller constant stays in the message, where shape inference sees it: scales, shapes and axes.
_SMALLEST = 64 << 10
# A smaller graph keeps its weights in memory: copies are faster than files.
_LARGE = 256 << 20
# Types that numpy can map. Strings, and numbers of less than a byte, stay in the message.
_WHOLE_BYTES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
    }
)


class _Folder:
    """A temporary folder of weights; `used` once a large model has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = f"w{secrets.token_hex(6)}"
        self.used = False
        self._count = 0

    def adopt(self, tensor: TensorProto, data: memoryview) -> TensorProto:
        """Write a tensor's bytes to a file of its own and return a tensor that refers to it."""
        self._count += 1
        location = f"{self.token}-{self._count}"
        (self.path / location).write_bytes(data)
        return _referring(tensor, location, data.nbytes)


_PREFIX, _LOCK = "centernet-trt-weights-", "lock"
_OPEN: dict[str, Path] = {}  # folders by their token, with which all their locations begin
_CURRENT: ContextVar[_Folder | None] = ContextVar("weights", default=None)


@contextmanager
def external_weights() -> Iterator[None]:
    """Keep large constants in temporary files, from when a large model is read (`externalise_model`).

    The files are removed at the end: a graph made inside the context cannot be used after it.
    """
    if _CURRENT.get() is not None:
        yield
        return
    _remove_abandoned()
    with TemporaryDirectory(prefix=_PREFIX) as name, _held(Path(name)):
        folder = _Folder(Path(name))
        _OPEN[folder.token] = folder.path
        previous = _CURRENT.set(folder)
        try:
            yield
        finally:
            _CURRENT.reset(previous)
            del _OPEN[folder.token]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder, which tells other processes that it is in use."""
    with (folder / _LOCK).open("wb") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned() -> None:
    """Remove the folders of builds that were killed (they may be gigabytes)."""
    if fcntl is None:
        return
    for lock in Path(gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use, another user's, or just removed
            continue


def make_constant(name: str, array: NDArray[Any]) -> TensorProto:
    """Make a constant of an array; in a file if it is large and this build keeps weights in files."""
    folder = _CURRENT.get()
    array = np.ascontiguousarray(array).reshape(array.shape)
    if folder is None or not folder.used or array.nbytes < _SMALLEST:
        return numpy_helper.from_array(array, name)
    tensor = TensorProto(name=name, dims=array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return folder.adopt(tensor, _array_bytes(array))


def externalise_constant(tensor: TensorProto) -> TensorProto:
    """The constant, moved to a file if it is large and this build keeps weights in files."""
    folder = _CURRENT.get()
    if (
        folder is None
        or not folder.used
        or tensor.ByteSize() < _SMALLEST
        or tensor.data_type not in _WHOLE_BYTES
    ):
        return tensor
    return make_constant(tensor.name, as_array(tensor))


def as_array(tensor: TensorProto) -> NDArray[Any]:
    """The values of a constant; those of one in a file are mapped read-only.

    Raises:
        ModelError: the file was removed: the model is used after the end of `external_weights`.
    """
    if not external_data_helper.uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    file, dtype = _file(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=tuple(tensor.dims)))


def data_folder(model: ModelProto) -> Path | None:
    """The folder with the model's large constants; None if all constants are in the model itself."""
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            return _OPEN.get(_token(tensor))
    return None


def external_size(model: ModelProto) -> int:
    """Bytes of the model's constants that are in files."""
    found = 0
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            found += external_data_helper.ExternalDataInfo(tensor).length or 0
    return found


def serialised_size(model: ModelProto) -> int:
    """Estimate how many bytes the model takes when serialised; works for any size."""
    graph = model.graph
    size = sum(int(tensor.ByteSize()) for tensor in graph.initializer) + external_size(model)
    return size + sum(int(node.ByteSize()) for node in graph.node) + 200 * len(graph.initializer)


def inline_weights(model: ModelProto) -> ModelProto:
    """The model with all its constants in its message; the same object if they are there already."""
    if data_folder(model) is None:
        return model
    whole = ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            tensor.CopyFrom(inline_constant(tensor))
    return whole


def inline_constant(tensor: TensorProto) -> TensorProto:
    """The constant with its values in its message; the same object if they are there already."""
    if not external_data_helper.uses_external_data(tensor):
        return tensor
    return numpy_helper.from_array(as_array(tensor), tensor.name)


def externalise_model(model: ModelProto, beside: Path) -> ModelProto:
    """Move the large constants of a large model to files, inside `external_weights`; else return it unchanged.

    Args:
        model: its external data is not loaded yet. It is emptied in the process, so that weights are not held twice.
        beside: the folder of its external data, if any.

    Returns:
        The model whose large constants are in files.

    Raises:
        ModelError: a constant has more or fewer bytes than its shape requires.
    """
    folder = _CURRENT.get()
    inside = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if folder is None or inside + external_size(model) < _LARGE:
        return model
    folder.used = True
    for tensor in model.graph.initializer:
        if tensor.data_type not in _WHOLE_BYTES:
            if external_data_helper.uses_external_data(tensor):
                external_data_helper.load_external_data_for_tensor(tensor, str(beside))
        elif external_data_helper.uses_external_data(tensor) or tensor.ByteSize() >= _SMALLEST:
            data = _tensor_bytes(tensor, beside)
            _check_size(tensor, data.nbytes)
            tensor.CopyFrom(folder.adopt(tensor, data))
    # Protobuf frees the memory of a message's fields only with the message itself.
    lean = ModelProto()
    lean.ParseFromString(model.SerializeToString())
    return lean


def save_with_external_data(model: ModelProto, path: Path, location: str) -> None:
    """Write a model of any size to `path`, and its large constants to the file `location` beside it."""
    lean = ModelProto()
    lean.CopyFrom(model)
    with (path.parent / location).open("wb") as file:
        for tensor in lean.graph.initializer:
            outside = external_data_helper.uses_external_data(tensor)
            if outside or (tensor.data_type in _WHOLE_BYTES and tensor.ByteSize() >= _SMALLEST):
                offset = _aligned(file)
                length = file.write(_array_bytes(as_array(tensor)))
                tensor.CopyFrom(_referring(tensor, location, length, offset))
    path.write_bytes(lean.SerializeToString())


def _aligned(file: BinaryIO) -> int:
    """Pad to the offset of the next tensor, at a page boundary, from which a reader can map it."""
    file.write(bytes(-file.tell() % 4096))
    return file.tell()


def _referring(tensor: TensorProto, location: str, length: int, offset: int = 0) -> TensorProto:
    made = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        made.external_data.add(key=key, value=value)
    return made


def _array_bytes(array: NDArray[Any]) -> memoryview:
    # ONNX is little-endian, and so is every machine that TensorRT runs on.
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _tensor_bytes(tensor: TensorProto, beside: Path) -> memoryview:
    """The bytes of a tensor as it was read from its file: external, raw, or a field of numbers."""
    if not external_data_helper.uses_external_data(tensor):
        return memoryview(tensor.raw_data) if tensor.raw_data else _array_bytes(numpy_helper.to_array(tensor))
    info = external_data_helper.ExternalDataInfo(tensor)
    file, offset = beside / info.location, info.offset or 0
    length = file.stat().st_size - offset if info.length is None else info.length
    if not length:
        return memoryview(b"")
    return _array_bytes(np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=(length,)))


def _check_size(tensor: TensorProto, found: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    wanted = int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize
    if found != wanted:
        raise ModelError(
            f"constant {tensor.name!r} of shape {list(tensor.dims)}: expected {wanted} bytes, got {found}",
            "copy, download or export the file again",
        )


def _token(tensor: TensorProto) -> str:
    location: str = external_data_helper.ExternalDataInfo(tensor).location
    return location.partition("-")[0]


def _file(tensor: TensorProto) -> Path:
    location, folder = external_data_helper.ExternalDataInfo(tensor).location, _OPEN.get(_token(tensor))
    if folder is None:
        raise ModelError(
            f"constant {tensor.name!r} is in the file {location}, which is missing",
            "use the model inside the `external_weights` context that it was loaded in",
        )
    return folder / location
