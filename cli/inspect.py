"""`centernet-trt inspect`: describe an ONNX graph or a bundle."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from centernet_trt.cli.console import err, make_table, out, show_lines, show_note, write_json
from centernet_trt.cli.spec_lines import spec_lines

if TYPE_CHECKING:
    from onnx import ModelProto

    from centernet_trt.builder.guess.spec import Guess
    from centernet_trt.runtime.bundle import EngineBundle
    from centernet_trt.runtime.trt.inspector import EngineLayer


def inspect_command(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx|BUNDLE", help="An ONNX file or the folder of a bundle.")
    ],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer of a bundle.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there.")
    ] = None,
) -> None:
    """Show the spec guessed for a graph and why, or the contents and origin of a bundle."""
    data = _inspect_bundle(path, layers) if path.is_dir() else _inspect_model(path)
    if json_file is not None:
        write_json(json_file, data)


def _inspect_model(path: Path) -> dict[str, Any]:
    from centernet_trt.builder.guess.spec import describe, guess_spec
    from centernet_trt.builder.source import read_source

    model = read_source(path)
    guess = guess_spec(model)
    ops = Counter(node.op_type for node in model.graph.node)
    work, counted = _count(model, *_image_size(guess))
    show_lines(
        [
            f"{path}: {len(model.graph.node)} nodes, {work[0]}",
            *work[1:],
            "operators: " + ", ".join(f"{count} {op}" for op, count in ops.most_common()),
            "tensors that could be heads:",
            *(f"  {describe(candidate)}" for candidate in guess.candidates),
            "concluded:",
            *(f"  {reason}" for reason in guess.reasons),
        ]
    )
    if guess.doubts:
        err.print("[yellow]cannot be inferred:[/]")
        for doubt in guess.doubts:
            err.print(f"  {escape(doubt)}", highlight=False)
    elif guess.spec is not None:
        show_lines(
            [
                f"spec: preset {guess.family}",
                *(f"  {line}" for line in spec_lines(guess.spec)),
                f"  pre-processing: {guess.preprocessing}",
                f"next: centernet-trt build {path}",
            ]
        )
    return {
        "model": path.name,
        "nodes": len(model.graph.node),
        "operators": dict(ops),
        "complexity": counted,
        "candidates": [describe(candidate) for candidate in guess.candidates],
        "reasons": guess.reasons,
        "doubts": guess.doubts,
        "preprocessing": guess.preprocessing,
        "spec": None if guess.spec is None else guess.spec.model_dump(mode="json"),
    }


def _image_size(guess: "Guess") -> tuple[int, int]:
    """(height, width) to count multiply-adds for: the size that the graph was analysed at."""
    if guess.candidates:
        rows, columns = guess.candidates[0].grid
        return rows * guess.stride, columns * guess.stride
    return 512, 512


def _count(model: "ModelProto", height: int, width: int) -> tuple[list[str], dict[str, int] | None]:
    """Count parameters and multiply-adds of one image, also as published tables count them: lines, and plain data."""
    from centernet_trt.builder.graph.complexity import count_complexity
    from centernet_trt.errors import CenterNetError

    try:
        found = count_complexity(model, height, width)
    except CenterNetError as error:  # such as a graph that continues behind its heads with fixed shapes
        return [f"not counted ({error.message})"], None
    exact, outputs, mmcv = (
        f"{count / 1e9:.2f} G" for count in (found.multiply_adds, found.output_convention, found.mmcv_flops)
    )
    lines = [
        f"{found.parameters / 1e6:.3f} M parameters, {exact} multiply-adds at {width}x{height}",
        f"  {outputs} with transposed convolutions counted at their output size, as some published tables do",
        f"  {mmcv} by mmcv's counter, which adds biases, batch norms, ReLU and pooling",
    ]
    return lines, {"height": height, "width": width, **asdict(found)}


def _inspect_bundle(path: Path, layers: bool) -> dict[str, Any]:
    import onnx

    from centernet_trt.cli.build import show_bundle
    from centernet_trt.runtime.bundle import EngineBundle

    bundle = EngineBundle.load(path)
    manifest = bundle.manifest
    show_bundle(bundle)
    work, counted = _count(
        onnx.load(bundle.model_path), manifest.profile.height.opt, manifest.profile.width.opt
    )
    rows = json.loads((path / "layers.json").read_text(encoding="utf-8")) if _has_layers(bundle) else []
    counts = Counter(row["precision"] for row in rows)
    requested = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    show_lines(
        [
            *spec_lines(manifest.spec),
            f"network: {work[0]}",
            *work[1:],
            f"layers, precision as requested: {requested or 'not recorded'}",
            f"source: {manifest.source.file}, SHA-256 {manifest.source.sha256}",
            f"made by {manifest.product} at {manifest.created}: {manifest.command}",
            *_kept_lines(manifest.kept_fp32),
        ]
    )
    made = _engine_layers(bundle)
    if layers:
        out.print(_layer_table(rows))
        if made:
            out.print(_engine_table(made))
    return {
        "manifest": manifest.model_dump(mode="json", by_alias=True),
        "complexity": counted,
        "layers": rows,
        "engine": None if made is None else [asdict(layer) for layer in made],
    }


def _kept_lines(kept: dict[str, str]) -> list[str]:
    """List the nodes that stay fp32 by reason, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for name, reason in kept.items():
        reasons.setdefault(reason, []).append(name)
    lines = ["kept in fp32:"] if kept else []
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {reason}: {', '.join(names[:3])}{more}")
    return lines


def _engine_layers(bundle: "EngineBundle") -> "list[EngineLayer] | None":
    """Read the layers of the engine, which needs a GPU; prints a note and returns None if they cannot be read."""
    from centernet_trt.errors import CenterNetError
    from centernet_trt.runtime.cuda.device import gpu_count
    from centernet_trt.runtime.trt.inspector import engine_layers

    if not bundle.manifest.plans or gpu_count() == 0:
        why = "those of an engine can be read on a GPU only"
    else:
        try:
            made = engine_layers(bundle)
        except CenterNetError as error:
            why = f"those of the engine cannot be read: {error.message}"
        else:
            kinds = Counter(layer.outputs[0] if layer.outputs else "unknown" for layer in made)
            types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            show_lines([f"layers of the engine: {len(made)}; results: {types}"])
            return made
    show_note(f"layers as requested; {why}")
    return None


def _engine_table(made: "list[EngineLayer]") -> Table:
    rows = ((layer.name, layer.kind, ", ".join(layer.outputs)) for layer in made)
    return make_table("layers of the engine", ("layer", "kind", "results"), rows)


def _has_layers(bundle: "EngineBundle") -> bool:
    return any(record.file == "layers.json" for record in bundle.manifest.files)


def _layer_table(rows: list[dict[str, Any]]) -> Table:
    cells = ((row["name"], row["op"], row["precision"], row.get("reason", "")) for row in rows)
    return make_table("layers", ("layer", "operator", "precision", "reason"), cells)
