"""`centernet-trt export`: convert a PyTorch checkpoint of a known architecture to ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from centernet_trt.cli.console import out, show_lines, show_note
from centernet_trt.errors import InputError


def _heads(text: str) -> dict[str, int]:
    """Parse `hps=34,dep=1` into channels by name."""
    heads = {}
    for part in text.split(","):
        name, _, channels = part.partition("=")
        if not name.strip() or not channels.strip().isdecimal():
            raise typer.BadParameter(f"expected NAME=CHANNELS,..., got {part!r}")
        heads[name.strip()] = int(channels)
    return heads


def export_command(
    arch: Annotated[str, typer.Option(help="Name of the architecture; `--arch list` lists them.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint: .pth, .safetensors, .npz or the index of shards. Nothing in it is executed."
        ),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Use random weights, the same every time, to try a build.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The ONNX file.", show_default="ARCH.onnx"),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes: channels of the heatmap.")] = 80,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=CHANNELS,...",
            help="Additional heads, or other channels; 0 omits a head.",
            show_default=False,
        ),
    ] = None,
    head_conv: Annotated[
        int | None,
        typer.Option(help="Channels inside the heads.", show_default="the architecture's"),
    ] = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold batch norm into the convolutions.")
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="What the names of the network's tensors begin with, such as `state_dict.model.`.",
            show_default="found",
        ),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights (EMA).")] = False,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Reject tensors that the network does not have.")
    ] = True,
) -> None:
    """Convert a checkpoint of a known CenterNet to ONNX, without its source tree or PyTorch."""
    from centernet_trt.builder.export.export import architecture_names, export_model
    from centernet_trt.builder.export.registry import architecture
    from centernet_trt.builder.graph.io import save_model

    if arch == "list":
        for name in architecture_names():
            out.print(name, highlight=False)
        return
    if (weights is None) != random:
        raise InputError(
            f"expected one of --weights and --random, got {'both' if random else 'neither'}",
            "give the checkpoint with --weights FILE, or try a build with --random",
        )
    if random and (ema or prefix is not None):
        raise InputError("--prefix and --ema need a checkpoint, got --random", "give it with --weights FILE")
    chosen = architecture(arch)
    summary: list[str] = []
    model = export_model(
        arch,
        weights,
        classes=classes,
        heads=_heads(heads) if heads else None,
        head_conv=head_conv,
        fold_bn=fold_bn,
        strict=strict,
        prefix=prefix,
        ema=ema,
        report=summary.append,
    )
    path = output or Path(f"{chosen.name}.onnx")
    written = save_model(model, path)
    if random:
        show_note("random weights: the model builds and runs, but its detections mean nothing")
    show_lines(summary)
    size = sum(part.stat().st_size for part in written) / 1e6
    beside = "".join(f" (its weights are in {part.name})" for part in written[1:])
    out.print(f"{path}: {size:.1f} MB{beside}; next: centernet-trt build {path}", highlight=False)
