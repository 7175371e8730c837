"""`centernet-trt export`: a PyTorch checkpoint of a known architecture -> an ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from centernet_trt.cli.console import err, out
from centernet_trt.errors import InputError


def _heads(text: str) -> dict[str, int]:
    """`hps=34,dep=1` as names and channels."""
    heads = {}
    for part in text.split(","):
        name, _, channels = part.partition("=")
        if not name.strip() or not channels.strip().isdecimal():
            raise typer.BadParameter(f"NAME=CHANNELS,... was expected, found {part!r}")
        heads[name.strip()] = int(channels)
    return heads


def export_command(
    arch: Annotated[str, typer.Option(help="The architecture; `--arch list` lists them.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="The checkpoint: .pth, .safetensors or .npz. Nothing in it is executed."),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights instead, the same every time: to try a build.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: ARCH.onnx]")
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Channels of the heatmap.")] = 80,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=CHANNELS,...",
            help="Further heads, or other channels; 0 leaves one out.",
            show_default=False,
        ),
    ] = None,
    head_conv: Annotated[
        int | None,
        typer.Option(help="Width inside the heads. [default: the architecture's]", show_default=False),
    ] = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold batch norm into the convolutions.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse tensors that the network has no place for.")
    ] = True,
) -> None:
    """Turn a checkpoint of a known CenterNet into ONNX, with no source tree and no PyTorch."""
    from centernet_trt.builder.export.export import architecture_names, export_model
    from centernet_trt.builder.export.registry import architecture
    from centernet_trt.builder.graph.io import save_model

    if arch == "list":
        for name in architecture_names():
            out.print(name, highlight=False)
        return
    if (weights is None) != random:
        raise InputError(
            "one of --weights and --random is needed",
            "give the checkpoint with --weights FILE; --random makes random weights, to try a build",
        )
    chosen = architecture(arch)
    model = export_model(
        arch,
        weights,
        classes=classes,
        heads=_heads(heads) if heads else None,
        head_conv=head_conv,
        fold_bn=fold_bn,
        strict=strict,
    )
    path = output or Path(f"{chosen.name}.onnx")
    written = save_model(model, path)
    if random:
        err.print("[yellow]note:[/] random weights: it builds and runs, and finds nothing")
    size = sum(part.stat().st_size for part in written) / 1e6
    beside = "".join(f" (its weights in {part.name}, beside it)" for part in written[1:])
    out.print(f"{path}: {size:.1f} MB{beside}; build it: centernet-trt build {path}", highlight=False)
