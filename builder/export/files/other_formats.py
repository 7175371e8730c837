"""Recognise files that are no checkpoint that can be read, and say what they are: `name_format`."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from centernet_trt.errors import ModelError

__all__ = ["HINT", "name_archive", "name_format", "name_pickle"]

HINT = "give a .pth file of torch.save, a .safetensors or an .npz file with the tensors of a state_dict"
_PADDLE = (
    "export the network to ONNX with paddle2onnx and give that to `centernet-trt build`: Paddle's layers and names are "
    "not those of the architectures here"
)
_TENSORFLOW = (
    "export the network to ONNX with tf2onnx (--inputs-as-nchw) and give that to `centernet-trt build`"
)
_SCRIPT = (
    "save its weights alone, where PyTorch is installed: "
    "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
)
_GGUF = (
    "it stores quantised weights of other networks: give the .pth or .safetensors file that it was made from"
)

# First bytes -> what the file is, and what to do. The longest that fits counts.
_BEGINNINGS = (
    (b"\x08\x01\x12", "a TensorFlow SavedModel", _TENSORFLOW),
    (b"\x08", "an ONNX model", "it is already exported: give it to `centernet-trt build`"),
    (b"\x89HDF", "an HDF5 file, such as Keras weights", _TENSORFLOW),
    (b"model_checkpoint_path", "the text file beside a TensorFlow checkpoint", _TENSORFLOW),
    (b"GGUF", "a GGUF file", _GGUF),
    (b"\x93NUMPY", "one NumPy array", HINT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"<", "an HTML or XML document, such as the page of a failed download", "download the file again"),
)
# For formats without a beginning of their own.
_ENDINGS = (
    (".pdparams", "Paddle weights", _PADDLE),
    (".pdopt", "the state of a Paddle optimiser", _PADDLE),
    (".pdiparams", "Paddle weights of an exported network", _PADDLE),
    (".pdmodel", "a Paddle network", _PADDLE),
    (".tflite", "a TensorFlow Lite model", _TENSORFLOW),
    (".pb", "a TensorFlow graph", _TENSORFLOW),
    (".index", "the index of a TensorFlow checkpoint", _TENSORFLOW),
    (".data-00000-of-00001", "the data of a TensorFlow checkpoint", _TENSORFLOW),
)


def name_format(path: Path, head: bytes) -> ModelError:
    """The error for a file that is no zip archive, no pickle, no safetensors and no JSON; `head` is its beginning."""
    beginnings = [entry for entry in _BEGINNINGS if head.startswith(entry[0])]
    endings = [entry for entry in _ENDINGS if path.name.endswith(entry[0])]
    if head[4:8] == b"TFL3":
        endings = [entry for entry in _ENDINGS if entry[0] == ".tflite"]
    found = endings or beginnings
    if found:
        _, what, hint = found[0]
        return _not_a_checkpoint(path, what, hint)
    return ModelError(f"{path} has no known checkpoint format; it begins with {head[:8]!r}", HINT)


def name_archive(path: Path, members: Iterable[zipfile.ZipInfo]) -> ModelError | None:
    """The error for zip archives of other tools, by the names of their members; None for those of torch.save."""
    # Names relative to the archive's only folder, as torch.jit.save and torch.export write them.
    names = {info.filename for info in members}
    inner = names | {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return _not_a_checkpoint(path, "a TorchScript archive of torch.jit.save", _SCRIPT)
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        script = _SCRIPT.replace("torch.jit.load(path)", "torch.export.load(path)")
        return _not_a_checkpoint(path, "a program of torch.export", script)
    if "model.weights.h5" in inner or {"config.json", "metadata.json"} <= inner:
        return _not_a_checkpoint(path, "a Keras model", _TENSORFLOW)
    return None


def name_pickle(path: Path, value: object, called: Iterable[str]) -> ModelError:
    """The error for a pickle that torch.save did not write, by its value and the names that it calls."""
    of_paddle = isinstance(value, dict) and "StructuredToParameterName@@" in value
    if of_paddle or path.suffix in (".pdparams", ".pdopt"):
        return _not_a_checkpoint(path, "Paddle weights", _PADDLE)
    save = "save the weights with torch.save(model.state_dict(), path)"
    if any(name.startswith("numpy") for name in called):
        save = (
            "if it is of Paddle, " + _PADDLE + "; otherwise save the arrays with numpy.savez(path, **arrays)"
        )
        return ModelError(f"{path} is a Python pickle of NumPy arrays, but not one of torch.save", save)
    return ModelError(f"{path} is a Python pickle, but not one of torch.save", save)


def _not_a_checkpoint(path: Path, what: str, hint: str) -> ModelError:
    return ModelError(f"{path} is not a checkpoint: it looks like {what}", hint)
