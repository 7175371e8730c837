"""Tables of text, shown alike in the terminal, the HTML page and Markdown: `Table`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as shown.
        key: of a figure: its place in the report, parts joined by `/`.
        value: of a figure: the unrounded value.
    """

    text: str
    key: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of cells whose first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Format the table in Markdown, without its title."""
        head = [_line(self.columns), "|" + "---|" * len(self.columns)]
        return "\n".join(head + [_line(cell.text for cell in row) for row in self.rows])


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table of plain text cells."""
    return Table(title, tuple(columns), tuple(tuple(Cell(text) for text in row) for row in rows))


def _line(texts: Iterable[str]) -> str:
    # A bar inside a cell would start another cell.
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
