"""Read an ONNX file and normalise it to the form that the passes expect.

That form is: checked by ONNX; weights in memory, or those of a large model in files (`builder/graph/external_data.py`);
opset 13 or newer; local functions inlined; graph inputs are the real inputs only; no unused constants; a unique name on
every node.
"""

from collections.abc import Collection
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, checker, external_data_helper, helper, inliner, version_converter

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.diagnose import (
    FOREIGN_DOMAIN,
    check_inference_mode,
    check_operators,
    move_foreign,
)
from centernet_trt.builder.graph.external_data import data_folder, externalise_model, inline_weights
from centernet_trt.builder.graph.shapes import check
from centernet_trt.errors import ModelError

__all__ = [
    "FOREIGN_DOMAIN",
    "MINIMUM_OPSET",
    "OLDEST_OPSET",
    "UPGRADE_OPSETS",
    "load_model",
    "read_model",
    "upgrade",
]

# Neither the converter nor TensorRT's parser supports the semantics of older graphs (before 2019).
OLDEST_OPSET = 9
# From 13 on, Q/DQ have per-channel scales, and axes, clip bounds and sizes are inputs: one form for all passes.
MINIMUM_OPSET = 13
# Opsets that an older graph is converted to, best first. 19 is the first with DeformConv and with fp16 Q/DQ scales, and
# every TensorRT 10 parser reads it (20 renames GridSample's modes, which is of no use here). The converter often supports
# 17 or 13 for an operator that it cannot convert to 19.
UPGRADE_OPSETS = (19, 17, MINIMUM_OPSET)

_EXPORT_HINT = "give the .onnx file that the model was exported to"
# First bytes of files that users give by mistake: (offset, bytes, what it is, what to do).
_LOOKS_LIKE = (
    (0, b"\xff\xd8\xff", "a JPEG image", _EXPORT_HINT),
    (0, b"\x89PNG", "a PNG image", _EXPORT_HINT),
    (
        0,
        b"PK\x03\x04",
        "a zip archive, such as a PyTorch .pth or .pt file",
        "export it with torch.onnx.export",
    ),
    (0, b"\x80\x02", "a Python pickle, such as an old PyTorch .pth file", "export it with torch.onnx.export"),
    (0, b"\x89HDF", "an HDF5 file, such as Keras weights", "export it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model", "export the original model to ONNX"),
    (0, b"ftrt", "a TensorRT engine", "give the ONNX file that it was built from"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (0, b"\x7fELF", "a program or shared library", _EXPORT_HINT),
    (0, b"<", "an HTML or XML document, such as the page of a failed download", "download the file again"),
)


def load_model(
    path: Path, *, foreign_ops: Collection[str] = (), plugins_behind_heads: bool = False
) -> ModelProto:
    """Read, check and normalise an ONNX model.

    Args:
        path: the .onnx file; weights kept in files beside it are read too.
        foreign_ops: see `read_model`.
        plugins_behind_heads: see `read_model`.

    Returns:
        The model in the form that the module's docstring describes.

    Raises:
        ModelError: the file is missing, not ONNX, damaged, invalid, of an unsupported opset, exported in training mode,
            or has operators that ONNX does not define.
    """
    read = read_model(path, foreign_ops=foreign_ops, plugins_behind_heads=plugins_behind_heads)
    return upgrade(read, path)


def read_model(
    path: Path, *, foreign_ops: Collection[str] = (), plugins_behind_heads: bool = False
) -> ModelProto:
    """Read and check an ONNX model, which keeps its opset.

    Args:
        path: the .onnx file; weights kept in files beside it are read too.
        foreign_ops: operator types that exporters put into the ONNX domain though ONNX does not define them
            (`DCNv2`). Their nodes move to the domain `FOREIGN_DOMAIN`; a later pass must replace them.
        plugins_behind_heads: let operators pass that ONNX does not define where a cut at the heads may remove them.

    Returns:
        The model as it is in the file, but for local functions, which are inlined, and what no output needs.

    Raises:
        ModelError: as `load_model`.
    """
    path = Path(path)
    _check_file(path)
    model = _parse(path)
    _check_graph(model, path)
    _check_external_files(model, path)
    model = externalise_model(model, path.parent)
    outside = data_folder(model) is not None
    if not outside:
        _load_external_data(model, path)
    moved = move_foreign(model, foreign_ops)
    _check_valid(model, path, in_memory=moved or outside)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _drop_unused(model)
    check_operators(model, foreign_ops, behind_heads=plugins_behind_heads)
    check_inference_mode(model)
    return model


def upgrade(model: ModelProto, path: Path) -> ModelProto:
    """Convert a model of `read_model` to `MINIMUM_OPSET` or newer, and give every node a unique name.

    Args:
        model: is left as it is.
        path: where it was read from.

    Raises:
        ModelError: ONNX cannot convert it.
    """
    return g.name_nodes(_upgrade(model, path))


def _check_file(path: Path) -> None:
    """Refuse what is recognised without parsing: no file, a folder, an empty file, another format."""
    if path.is_dir():
        models = sorted(p.name for p in path.glob("*.onnx"))
        inside = f"; it holds {', '.join(models[:5])}" if models else ""
        raise ModelError(f"expected an ONNX file, but {path} is a folder{inside}", _EXPORT_HINT)
    if not path.exists():
        raise ModelError(f"there is no file {path}", "check the path")
    try:
        head = _head(path, 512)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error}", "check the permissions of the file") from error
    if not head:
        raise ModelError(f"{path} is empty (0 bytes)", "copy or download the file again")
    for offset, magic, what, hint in _LOOKS_LIKE:
        if head[offset:].startswith(magic):
            raise ModelError(f"{path} is not an ONNX file: it looks like {what}", hint)
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise ModelError(f"{path} is not an ONNX file: it looks like text", _EXPORT_HINT)


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _parse(path: Path) -> ModelProto:
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        # ONNX writers put ir_version, field 1, first: such a file started as a model.
        if _head(path, 1) == b"\x08":
            raise ModelError(
                f"{path} begins like an ONNX file but is truncated or damaged ({path.stat().st_size} bytes)",
                "copy, download or export the file again",
            ) from error
        raise ModelError(f"{path} is not an ONNX file", _EXPORT_HINT) from error
    if not model.ir_version or not model.opset_import:
        raise ModelError(
            f"{path} is not an ONNX file, or a truncated one: it has no IR version or opset", _EXPORT_HINT
        )
    return model


def _check_graph(model: ModelProto, path: Path) -> None:
    graph, opset = model.graph, g.main_opset(model)
    if not graph.output:
        raise ModelError(
            f"the graph of {path} has no outputs ({len(graph.node)} nodes)",
            "the file is truncated; get it again",
        )
    if not graph.input:
        raise ModelError(f"the graph of {path} has no inputs", "export the model with its image input")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"expected opset {OLDEST_OPSET} to {newest}, got {opset} in {path}",
            f"export it again with opset {UPGRADE_OPSETS[0]}",
        )


def _tensors(model: ModelProto) -> list[TensorProto]:
    """The constants of the main graph and those in its nodes' attributes."""
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        tensors.extend(attr.t for attr in node.attribute if attr.HasField("t"))
    return tensors


def _check_external_files(model: ModelProto, path: Path) -> None:
    external = [tensor for tensor in _tensors(model) if external_data_helper.uses_external_data(tensor)]
    files: dict[str, int] = {}
    for tensor in external:
        info = external_data_helper.ExternalDataInfo(tensor)
        files[info.location] = max(files.get(info.location, 0), (info.offset or 0) + (info.length or 0))
    for location, size in sorted(files.items()):
        file = path.parent / location
        if not file.is_file():
            raise ModelError(
                f"{path} keeps {len(external)} weights in other files; {location} is missing",
                f"put {location} into {path.parent or Path()}",
            )
        if file.stat().st_size < size:
            raise ModelError(
                f"{file} is truncated: expected {size} bytes, as {path.name} requires, got {file.stat().st_size}",
                "copy or download the file again",
            )


def _load_external_data(model: ModelProto, path: Path) -> None:
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, checker.ValidationError) as error:
        raise ModelError(
            f"cannot read the external weights of {path}: {error}", "copy or export the model again"
        ) from error


def _check_valid(model: ModelProto, path: Path, *, in_memory: bool) -> None:
    try:
        # By path the checker also reads external data, and has no 2 GB limit.
        if in_memory:
            check(model)
        else:
            checker.check_model(str(path))
    except (checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {error}", "export the model again") from error


def _drop_unused(model: ModelProto) -> None:
    """Remove inputs that are constants or unused, and unused constants (in place)."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node for name in g.node_uses(node)} | {
        value.name for value in graph.output
    }
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    if not inputs:
        raise ModelError(
            "expected outputs that depend on an input, got constant or unused inputs only",
            "export the model with its image input",
        )
    real = {value.name for value in inputs}
    g.keep_only(graph.input, lambda value: value.name in real)
    g.prune(graph)
    # Before IR 4 every constant had to be an input too; and each opset requires some IR version.
    oldest = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, oldest, 4)


def _upgrade(model: ModelProto, path: Path) -> ModelProto:
    opset = g.main_opset(model)
    if opset >= MINIMUM_OPSET:
        return model
    outputs = [value.name for value in model.graph.output]
    reasons: list[str] = []
    whole = inline_weights(model)  # the converter copies the weights in the message only
    for target in UPGRADE_OPSETS:
        try:
            upgraded = version_converter.convert_version(whole, target)
            if opset < 11:
                _restore_resize(upgraded)
            check(upgraded)
        except (RuntimeError, ValueError, version_converter.ConvertError, ModelError) as error:
            reasons.append(f"to {target}: {error}")
            continue
        if [value.name for value in upgraded.graph.output] != outputs:
            reasons.append(f"to {target}: the converter renames the outputs")
            continue
        _drop_unused(upgraded)
        return externalise_model(upgraded, path.parent)
    raise ModelError(
        f"expected opset {MINIMUM_OPSET} or newer, got {opset} in {path}, which ONNX cannot convert: "
        + "; ".join(reasons),
        f"export the model again with opset {UPGRADE_OPSETS[0]}",
    )


def _restore_resize(model: ModelProto) -> None:
    """Give converted Resize nodes the coordinate mode that Upsample and Resize had before opset 11 (in place).

    The converter leaves the new default, half pixels, which shifts the image: a linear x2 of values of unit size differs
    by up to 0.4 (measured, onnx 1.23).
    """
    modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in model.graph.node:
        if node.op_type == "Resize" and node.domain in ("", "ai.onnx"):
            g.keep_only(node.attribute, lambda attr: attr.name not in modes)
            node.attribute.extend(helper.make_attribute(name, value) for name, value in modes.items())
