"""Large weights in files of their own."""

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


# A smaller constant stays in the message: scales, shapes and axes, where shape inference sees them.
_SMALLEST = 64 << 10
# A graph with less than this keeps its weights in memory: copies are quicker than files.
_LARGE = 256 << 20
# What numpy can map. Strings, and numbers of less than a byte, stay in the message.
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
    """A temporary folder of weights; it is used from when a large model is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = f"w{secrets.token_hex(6)}"
        self.used = False
        self._count = 0

    def adopt(self, tensor: TensorProto, data: memoryview) -> TensorProto:
        """Write a tensor's bytes to a file of its own -> a tensor that refers to it."""
        self._count += 1
        location = f"{self.token}-{self._count}"
        (self.path / location).write_bytes(data)
        return _referring(tensor, location, data.nbytes)


_PREFIX, _LOCK = "centernet-trt-weights-", "lock"
_OPEN: dict[str, Path] = {}  # folders by their token, with which all their locations begin
_CURRENT: ContextVar[_Folder | None] = ContextVar("weights", default=None)


@contextmanager
def external_weights() -> Iterator[None]:
    """Within it, once a large model is read (`externalise_model`), large constants go into files; they are gone at its end.

    A graph that is made within it is of no use after it.
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
    """Hold a lock in a folder, by which others know that it is in use."""
    with (folder / _LOCK).open("wb") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned() -> None:
    """Remove the folders of builds that were killed: gigabytes that nobody else would."""
    if fcntl is None:
        return
    for lock in Path(gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use, somebody else's, or just gone
            continue


def make_constant(name: str, array: NDArray[Any]) -> TensorProto:
    """The array as a constant, in a file where it is large and that is the way of this build."""
    folder = _CURRENT.get()
    array = np.ascontiguousarray(array).reshape(array.shape)
    if folder is None or not folder.used or array.nbytes < _SMALLEST:
        return numpy_helper.from_array(array, name)
    tensor = TensorProto(name=name, dims=array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return folder.adopt(tensor, _array_bytes(array))


def externalise_constant(tensor: TensorProto) -> TensorProto:
    """The constant, in a file where it is large and that is the way of this build."""
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
    """The numbers of a constant; of one in a file they are mapped, not read, and cannot be written.

    Raises:
        ModelError: the file is gone: the model is used outside of `external_weights`.
    """
    if not external_data_helper.uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    file, dtype = _file(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=tuple(tensor.dims)))


def data_folder(model: ModelProto) -> Path | None:
    """The folder that the model's large constants lie in; None for a model that has them all itself."""
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            return _OPEN.get(_token(tensor))
    return None


def external_size(model: ModelProto) -> int:
    """Bytes of the model's constants that lie in files."""
    found = 0
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            found += external_data_helper.ExternalDataInfo(tensor).length or 0
    return found


def serialised_size(model: ModelProto) -> int:
    """Return about how many bytes the model takes when serialised; never fails, whatever the size."""
    graph = model.graph
    size = sum(int(tensor.ByteSize()) for tensor in graph.initializer) + external_size(model)
    return size + sum(int(node.ByteSize()) for node in graph.node) + 200 * len(graph.initializer)


def inline_weights(model: ModelProto) -> ModelProto:
    """The model with all its constants in its message, for who takes one file only; as it is where it has them."""
    if data_folder(model) is None:
        return model
    whole = ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            tensor.CopyFrom(inline_constant(tensor))
    return whole


def inline_constant(tensor: TensorProto) -> TensorProto:
    """The constant with its numbers in its message; as it is where it has them."""
    if not external_data_helper.uses_external_data(tensor):
        return tensor
    return numpy_helper.from_array(as_array(tensor), tensor.name)


def externalise_model(model: ModelProto, beside: Path) -> ModelProto:
    """The model with its large constants in files, if they are large together and within `external_weights`.

    Args:
        model: it is emptied on the way, so that its weights are not held twice; external data is not loaded yet.
        beside: the folder that its external data, if any, lies in.

    Raises:
        ModelError: a constant has more or fewer bytes than its shape says.
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
    # Protobuf frees nothing that a message once held before the message itself goes.
    lean = ModelProto()
    lean.ParseFromString(model.SerializeToString())
    return lean


def save_with_external_data(model: ModelProto, path: Path, location: str) -> None:
    """Write a model to `path`, and its constants to the file `location` beside it: for any size."""
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
    """The place of the next tensor: at a page, from where a reader can map it."""
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
    """The bytes of a tensor that is as its file had it: beside it, raw, or number by number."""
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
            f"constant {tensor.name!r} of shape {list(tensor.dims)} has {found} bytes, {wanted} were expected",
            "copy, download or export the file again",
        )


def _token(tensor: TensorProto) -> str:
    location: str = external_data_helper.ExternalDataInfo(tensor).location
    return location.partition("-")[0]


def _file(tensor: TensorProto) -> Path:
    location, folder = external_data_helper.ExternalDataInfo(tensor).location, _OPEN.get(_token(tensor))
    if folder is None:
        raise ModelError(
            f"constant {tensor.name!r} lies in the file {location}, which is not there",
            "read the model with loading.load_model, and use it within weights.external_weights only",
        )
    return folder / location
