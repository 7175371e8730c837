"""Entry point of `centernet-trt`: the table of commands, and errors as messages."""

import sys

import typer
from typer.main import get_command

from centernet_trt._version import __version__
from centernet_trt.cli.bench import bench_command
from centernet_trt.cli.build import build_command
from centernet_trt.cli.console import EXIT_ERROR, err, show_error
from centernet_trt.cli.detect import detect_command
from centernet_trt.cli.doctor import doctor_command
from centernet_trt.cli.eval import eval_command
from centernet_trt.cli.export import export_command
from centernet_trt.cli.fetch import fetch_command
from centernet_trt.cli.inspect import inspect_command
from centernet_trt.cli.verify import verify_command
from centernet_trt.errors import CenterNetError

app = typer.Typer(
    name="centernet-trt",
    help="CenterNet detectors, fast and exact on NVIDIA GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"centernet-trt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


app.command("build")(build_command)
app.command("detect")(detect_command)
app.command("eval")(eval_command)
app.command("bench")(bench_command)
app.command("verify")(verify_command)
app.command("doctor")(doctor_command)
app.command("export")(export_command)
app.command("fetch")(fetch_command)
app.command("inspect")(inspect_command)


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 error, 2 usage error, 3 tolerance or budget not met."""
    try:
        get_command(app).main(prog_name="centernet-trt", standalone_mode=True)
    except CenterNetError as error:
        show_error(error)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
