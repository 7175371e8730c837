"""docs/builder.md: its tables have the cases of the tests, and its command is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
from broken_cases import BROKEN
from graph_cases import GRAPHS

from centernet_trt.builder.profiles import ProfileRequest

PAGE = Path(__file__).parents[2] / "docs" / "builder.md"


def rows(table: str) -> list[list[str]]:
    """The cells of a table that docs/graph_table.py made, without its head."""
    text = PAGE.read_text(encoding="utf-8")
    body = text.split(f"<!-- {table}: made by docs/graph_table.py -->")[1].split(f"<!-- end of {table} -->")[
        0
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.strip().splitlines()[2:]]


def test_every_graph_of_the_tests_is_in_the_table() -> None:
    found = rows("graphs")
    assert [row[0] for row in found if "(real)" not in row[0]] == list(GRAPHS)
    assert len(found) >= 15
    assert not [row for row in found if "wrong" in row[-1]]
    assert sum("(real)" in row[0] for row in found) == 2


def test_every_broken_one_is_in_the_table_with_its_words() -> None:
    found = {row[0]: row for row in rows("errors")}
    assert list(found) == list(BROKEN)
    for name, (_, words) in BROKEN.items():
        if not found[name][1].endswith("..."):
            assert re.search(words, found[name][1]), name
        assert found[name][2], f"{name} has no hint"


def test_the_profiles_of_the_page_can_be_read() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^centernet-trt build .*--profile.*$", text, re.MULTILINE)
    words = shlex.split(command)
    profiles = [words[index + 1] for index, word in enumerate(words) if word == "--profile"]
    assert len([ProfileRequest.parse(profile) for profile in profiles]) == 3


@pytest.mark.parametrize("left", ["OVERHEAD", "MEMORY"])
def test_no_figure_is_left_open(left: str) -> None:
    assert left not in PAGE.read_text(encoding="utf-8")
