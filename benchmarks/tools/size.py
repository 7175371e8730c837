"""Print the size of the project: files, lines, and lines of code by folder. Nothing fails on these figures.

A line of code is one that is left without blanks, comments and docstrings; in C++ without blanks and comments.

    python benchmarks/tools/size.py [ROOT]
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

INSTALLED = (
    "src/centernet_trt",
    "kernels",
    "runtime",
    "evaluation",
    "builder",
    "cli",
    "engines",
    "calib_data",
)
OTHERS = ("benchmarks", "tests")
CPP = {".cu", ".cuh", ".cpp", ".h"}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings take, and strings that stand alone, which document constants."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def code_lines(path: Path, text: str) -> int:
    """Lines of code of a source file."""
    if path.suffix in CPP:
        return sum(bool(line.strip()) for line in _COMMENT.sub("", text).splitlines())
    documented = docstring_lines(ast.parse(text))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in documented
        for number, line in lines
    )


@dataclass
class Size:
    """Totals of a folder and what is below it."""

    files: int = 0
    lines: int = 0
    code: int = 0
    folders: dict[Path, int] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Count a file."""
        text = path.read_text(encoding="utf-8")
        self.files += 1
        self.lines += text.count("\n")
        self.code += code_lines(path, text)
        self.folders[path.parent] = self.folders.get(path.parent, 0) + 1


def sources(folder: Path) -> Iterator[Path]:
    """Source files below a folder; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from sources(path)
        elif path.suffix in {".py", *CPP}:
            yield path


def measure(root: Path, names: Iterable[str]) -> dict[str, Size]:
    """Sizes by folder."""
    sizes = {name: Size() for name in names}
    for name, size in sizes.items():
        for path in sources(root / name):
            size.add(path)
    return sizes


def main() -> None:
    """Print the tables."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    row = "{:<18} {:>6} {:>8} {:>8}"
    print(row.format("", "files", "lines", "code"))
    installed = measure(root, INSTALLED)
    for name, size in installed.items():
        print(row.format(name, size.files, size.lines, size.code))
    totals = [sum(getattr(size, what) for size in installed.values()) for what in ("files", "lines", "code")]
    print(row.format("installed", *totals))
    for name, size in measure(root, OTHERS).items():
        print(row.format(name, size.files, size.lines, size.code))
    folder, files = max(
        ((folder, count) for size in installed.values() for folder, count in size.folders.items()),
        key=lambda item: item[1],
    )
    print(f"largest folder: {folder.relative_to(root)}, {files} files")


if __name__ == "__main__":
    main()
