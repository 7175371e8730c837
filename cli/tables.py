"""The evaluation's tables on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from centernet_trt.cli.console import out
from centernet_trt.evaluation.tables import Table


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
