"""Broken graphs and files: each gets an error that says what was found and what to do, and leaves nothing behind."""

import re
from pathlib import Path

import pytest
from helpers.broken_cases import BROKEN, error_of


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_are_refused_with_words(name: str, tmp_path: Path) -> None:
    make, words = BROKEN[name]
    (tmp_path / "twin").mkdir()
    make(tmp_path / "twin")
    before = {p.name for p in (tmp_path / "twin").iterdir()}
    (tmp_path / "case").mkdir()
    error = error_of(name, tmp_path / "case")
    assert error is not None
    assert re.search(words, error.message), str(error)
    assert len(error.message) < 4000
    assert {p.name for p in (tmp_path / "case").iterdir()} == before


def test_every_case_is_in_the_table_of_messages() -> None:
    table = (Path(__file__).parents[2] / "docs" / "builder.md").read_text()
    assert [name for name in BROKEN if f"\n| {name} | " not in table] == []
