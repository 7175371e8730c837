"""`centernet-trt inspect`: what a graph or a bundle is."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from centernet_trt.cli.console import err, out, write_json

if TYPE_CHECKING:
    from onnx import ModelProto

    from centernet_trt.builder.guess.spec import Guess
    from centernet_trt.runtime.bundle import EngineBundle
    from centernet_trt.runtime.spec import ModelSpec
    from centernet_trt.runtime.trt.inspector import EngineLayer


def inspect_command(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx|BUNDLE", help="An ONNX file or a bundle's folder.")
    ],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer of a bundle.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Show what a graph is taken for and why, or what a bundle holds and how it was made."""
    data = _inspect_bundle(path, layers) if path.is_dir() else _inspect_model(path)
    if json_file is not None:
        write_json(json_file, data)


def _inspect_model(path: Path) -> dict[str, Any]:
    from centernet_trt.builder.guess.spec import describe, guess_spec
    from centernet_trt.builder.source import read_source

    model = read_source(path)
    guess = guess_spec(model)
    ops = Counter(node.op_type for node in model.graph.node)
    size = _count_size(model, guess)
    counted = _complexity(model, size)
    out.print(f"{path}: {len(model.graph.node)} nodes, {counted}", highlight=False)
    out.print("operators: " + ", ".join(f"{count} {op}" for op, count in ops.most_common()), highlight=False)
    out.print("tensors that could be heads:")
    for candidate in guess.candidates:
        out.print(f"  {escape(describe(candidate))}", highlight=False)
    out.print("concluded:")
    for reason in guess.reasons:
        out.print(f"  {escape(reason)}", highlight=False)
    if guess.doubts:
        err.print("[yellow]left to you:[/]")
        for doubt in guess.doubts:
            err.print(f"  {escape(doubt)}", highlight=False)
    elif guess.spec is not None:
        out.print(f"spec: preset {guess.family}; build it: centernet-trt build {path}", highlight=False)
    return {
        "model": path.name,
        "nodes": len(model.graph.node),
        "operators": dict(ops),
        "candidates": [describe(candidate) for candidate in guess.candidates],
        "reasons": guess.reasons,
        "doubts": guess.doubts,
        "spec": None if guess.spec is None else guess.spec.model_dump(mode="json"),
    }


def _count_size(model: "ModelProto", guess: "Guess") -> tuple[int, int]:
    """A (height, width) to count for: that of the graph, or the one that it was looked at with."""
    if guess.candidates:
        rows, columns = guess.candidates[0].grid
        return rows * guess.stride, columns * guess.stride
    return 512, 512


def _complexity(model: "ModelProto", size: tuple[int, int]) -> str:
    from centernet_trt.builder.graph.complexity import count_complexity
    from centernet_trt.errors import CenterNetError

    try:
        found = count_complexity(model, *size)
    except CenterNetError as error:  # a graph behind whose heads something else hangs, with shapes of its own
        return f"not counted ({error.message})"
    return (
        f"{found.parameters / 1e6:.3f} M parameters, {found.multiply_adds / 1e9:.2f} G multiply-adds "
        f"at {size[1]}x{size[0]}"
    )


def _inspect_bundle(path: Path, layers: bool) -> dict[str, Any]:
    import onnx

    from centernet_trt.cli.build import show_bundle
    from centernet_trt.runtime.bundle import EngineBundle

    bundle = EngineBundle.load(path)
    manifest = bundle.manifest
    show_bundle(bundle)
    for line in _spec_lines(manifest.spec):
        out.print(line, highlight=False)
    size = (manifest.profile.height.opt, manifest.profile.width.opt)
    out.print(f"network: {_complexity(onnx.load(bundle.model_path), size)}", highlight=False)
    rows = json.loads((path / "layers.json").read_text(encoding="utf-8")) if _has_layers(bundle) else []
    counts = Counter(row["precision"] for row in rows)
    requested = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    out.print(f"layers, precision as requested: {requested or 'not recorded'}", highlight=False)
    out.print(f"source: {manifest.source.file}, SHA-256 {manifest.source.sha256}", highlight=False)
    out.print(
        f"made by {manifest.product} at {manifest.created}: {escape(manifest.command)}", highlight=False
    )
    for line in _islands(manifest.kept_fp32):
        out.print(line, highlight=False, markup=False)
    made = _engine_layers(bundle)
    if layers:
        out.print(_layer_table(rows))
        if made:
            out.print(_engine_table(made))
    engine = None if made is None else [asdict(layer) for layer in made]
    return {"manifest": manifest.model_dump(mode="json", by_alias=True), "layers": rows, "engine": engine}


def _islands(kept: dict[str, str]) -> list[str]:
    """Which nodes stay fp32, by reason: most first."""
    reasons: dict[str, list[str]] = {}
    for name, reason in kept.items():
        reasons.setdefault(reason, []).append(name)
    lines = ["kept in fp32:"] if kept else []
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {reason}: {', '.join(names[:3])}{more}")
    return lines


def _engine_layers(bundle: "EngineBundle") -> "list[EngineLayer] | None":
    """What TensorRT made of the layers, where a GPU can tell; said why not, else."""
    from centernet_trt.errors import CenterNetError
    from centernet_trt.runtime.cuda.device import gpu_count
    from centernet_trt.runtime.trt.inspector import engine_layers

    if not bundle.manifest.plans or gpu_count() == 0:
        why = "what an engine made of them shows on a GPU only"
    else:
        try:
            made = engine_layers(bundle)
        except CenterNetError as error:
            why = f"the engine does not tell what it made of them: {error.message}"
        else:
            kinds = Counter(layer.outputs[0] if layer.outputs else "not told" for layer in made)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            out.print(f"layers of the engine: {len(made)}; results: {told}", highlight=False, markup=False)
            return made
    err.print(f"[yellow]note:[/] layers as asked for; {escape(why)}", soft_wrap=True)
    return None


def _engine_table(made: "list[EngineLayer]") -> Table:
    table = Table(title="layers of the engine")
    for column in ("layer", "kind", "results"):
        table.add_column(column)
    for layer in made:
        table.add_row(escape(layer.name), escape(layer.kind), escape(", ".join(layer.outputs)))
    return table


def _has_layers(bundle: "EngineBundle") -> bool:
    return any(record.file == "layers.json" for record in bundle.manifest.files)


def _spec_lines(spec: "ModelSpec") -> list[str]:
    image, heads = spec.input, spec.heads
    box = heads.box
    offset = f" + {heads.offset.tensor}" if heads.offset else ""
    normalised = f"(pixel * {image.scale:.6g} - {list(image.mean)}) / {list(image.std)}"
    peaks = f"top {spec.top_k}, threshold {spec.threshold:g}, plateau {spec.plateau}"
    centre = f"centre = cell + {spec.cell_offset:g}{offset}"
    return [
        f"image: {image.resize.policy}, {image.size.rule} size, {image.channel_order.upper()}, {normalised}",
        f"heatmap: {heads.heatmap.tensor} ({heads.heatmap.activation}), {peaks}",
        f"box: {box.tensor} ({box.encoding}, {box.units}, {box.order}); {centre}; stride {spec.stride}",
        *(
            f"extra: {extra.name} ({extra.kind}, {extra.channels} channels of {extra.tensor})"
            for extra in heads.extra
        ),
    ]


def _layer_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="layers")
    for column in ("layer", "operator", "precision", "why"):
        table.add_column(column)
    for row in rows:
        table.add_row(escape(row["name"]), row["op"], row["precision"], escape(row.get("reason", "")))
    return table
