"""Tables of text: one source for the terminal, the HTML page and Markdown, so that they cannot differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell: its text; for a figure also its `key` in the report (parts joined by `/`) and its `value` unrounded."""

    text: str
    key: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of cells; the first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        head = [_line(self.columns), "|" + "---|" * len(self.columns)]
        return "\n".join(head + [_line(cell.text for cell in row) for row in self.rows])


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text."""
    return Table(title, tuple(columns), tuple(tuple(Cell(text) for text in row) for row in rows))


def _line(texts: Iterable[str]) -> str:
    # A bar inside a cell would begin another one.
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
