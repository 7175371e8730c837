"""Output of the command line: consoles, errors, notes, tables, progress and files."""

import json
from collections.abc import Iterable, Iterator, Sequence
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

# Results go to standard output, everything else to standard error, so that results can be piped.
out = Console(soft_wrap=True)
err = Console(stderr=True)


def show_error(error: CenterNetError) -> None:
    """Print an error and its hint."""
    err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.hint:
        err.print(f"[bold]hint:[/]  {escape(error.hint)}", highlight=False, soft_wrap=True)


def show_note(text: str) -> None:
    """Print a note on standard error."""
    err.print(f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines of plain text on standard output."""
    for line in lines:
        out.print(line, highlight=False, markup=False)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> RichTable:
    """Make a table of plain text, all columns to the left."""
    table = RichTable(*map(escape, columns), title=escape(title))
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def show_tables(tables: Sequence[Table]) -> None:
    """Print tables of figures, one below the other."""
    # Output that is piped has no width to keep to, and a cut figure is worse than a long line.
    console = out if out.is_terminal else Console(width=240)
    for table in tables:
        shown = RichTable(title=escape(table.title), title_justify="left")
        for row, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="left" if row == 0 else "right")
        for cells in table.rows:
            shown.add_row(*(escape(cell.text) for cell in cells))
        console.print(shown)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, making its folder.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write a command's `--json` file; see `write_bytes`."""
    write_text(path, json.dumps(data, indent=2) + "\n")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on standard error if that is a terminal."""
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
    """Shows the stages of a build (a `builder.progress.BuildReporter`)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._stage = ""

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self._stage = name
        self._progress.update(self._task, description=name, completed=0, total=None)

    def step(self, name: str, done: int, total: int) -> None:
        """Show how much of the stage is done."""
        self._progress.update(
            self._task, description=f"{self._stage}: {name}", completed=done, total=total or None
        )
