"""Consoles, errors, tables and files of the command line."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.evaluation.tables import Table

EXIT_ERROR, EXIT_TOLERANCE = 1, 3  # 0 is success, 2 a usage error, which typer reports

# Results go to standard output, everything about how they come to be to standard error: output can be piped.
out = Console(soft_wrap=True)
err = Console(stderr=True)


def show_error(error: CenterNetError) -> None:
    """Print an error: what is wrong in red, what to do below it."""
    err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.hint:
        err.print(f"[bold]hint:[/]  {escape(error.hint)}", highlight=False, soft_wrap=True)


def write_json(path: Path, data: Any) -> None:
    """Write a command's `--json` file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress display on standard error; plain silence where that is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


class BuildProgress:
    """Shows the stages of a build (a `builder.prepare.Reporter`)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._stage = ""

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._stage = name
        self._progress.update(self._task, description=name, completed=0, total=None)

    def step(self, name: str, done: int, total: int) -> None:
        """Part of the stage is done."""
        self._progress.update(
            self._task, description=f"{self._stage}: {name}", completed=done, total=total or None
        )


def write_text(path: Path, text: str) -> None:
    """Write a file, making its folder; InputError when that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def show_tables(tables: Sequence[Table]) -> None:
    """Print tables, one below the other."""
    # Piped into a file there is no width to keep to, and a cut figure is worse than a long line.
    console = out if out.is_terminal else Console(width=240)
    for table in tables:
        shown = RichTable(title=escape(table.title), title_justify="left")
        for row, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="left" if row == 0 else "right")
        for cells in table.rows:
            shown.add_row(*(escape(cell.text) for cell in cells))
        console.print(shown)
