"""Ids of COCO files, numbers or text: `IdTable`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["CocoId", "IdTable", "clean_id", "is_same_id", "spelled", "spells_number", "whole_number"]

CocoId = int | str
"""Id of an image or category as the file has it."""

_NUMBER = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*", re.ASCII)


class IdTable:
    """The ids of one list of a file; a number and its text are the same id where that is unambiguous."""

    def __init__(self, ids: Iterable[CocoId], names: Mapping[CocoId, str] | None = None) -> None:
        """Index ids, which must differ, and optionally names that may stand for them."""
        self.by_name: dict[CocoId, list[CocoId]] = {}
        """Ids by name, of names that are no numbers."""
        for one, name in (names or {}).items():
            if not spells_number(name):
                self.by_name.setdefault(name, []).append(one)
        # Ties of equal scores are broken by the order of the ids: this is the order of pycocotools.
        ordered = sorted(ids, key=lambda one: (isinstance(one, str), one))
        self.keys: dict[CocoId, int] = {one: number for number, one in enumerate(ordered, 1)}
        """Positive integers by id, in the order of the ids; pycocotools works with these."""
        self._spelled: dict[CocoId, list[CocoId]] = {}
        for one in ordered:
            self._spelled.setdefault(spelled(one), []).append(one)

    def find(self, value: Any) -> CocoId | None:
        """The id that a reference means, as its own list has it; None if there is none, or if it is ambiguous."""
        clean = clean_id(value)
        if clean is None or clean in self.keys:
            return clean
        possible = self._spelled.get(spelled(clean)) or self.by_name.get(clean, [])
        return possible[0] if len(possible) == 1 else None


def whole_number(text: str) -> int | None:
    """The whole number that a text spells, such as 7 for "007" or "7.0"; None if it spells none."""
    match = _NUMBER.fullmatch(text)
    return int(match[1]) if match else None


def spells_number(value: CocoId) -> bool:
    """Whether an id is a number, or the text of one."""
    return isinstance(spelled(value), int)


def clean_id(value: Any) -> CocoId | None:
    """An id as the file has it; None if it is no id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        return None
    return value


def spelled(value: CocoId) -> CocoId:
    """The number that an id spells, or the id itself."""
    if isinstance(value, str):
        number = whole_number(value)
        return value.strip() if number is None else number
    return value


def is_same_id(one: CocoId, other: CocoId) -> bool:
    """Whether two ids that spell the same are one id: `"07"` and `"7"` are two, `7` and `"7"` are one."""
    return one == other or type(one) is not type(other)
