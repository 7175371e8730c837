"""Errors of COCO files, collected so that one message has all of them: `Problems`."""

from pathlib import Path

from centernet_trt.errors import InputError

__all__ = ["Problems", "Verbatim", "kind_of", "short"]


class Problems:
    """What is wrong with a file: one line for each kind, with its first example."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, expected: str, got: object, place: str) -> None:
        """Add a problem; those with the same expectation are one kind."""
        first, count = self._found.get(expected, (f"got {short(got)} in {place}", 0))
        self._found[expected] = (first, count + 1)

    def check(self, path: Path) -> None:
        """Raise InputError if there are any."""
        if not self._found:
            return
        lines = [
            f"expected {kind}, {first}" + (f" and in {count - 1} more" if count > 1 else "")
            for kind, (first, count) in self._found.items()
        ]
        text = lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)
        raise InputError(f"{path}: {text}", "correct or remove these rows, or export the file again")


class Verbatim(str):
    """Text that a message shows as it is."""


def short(value: object) -> str:
    """A value as a message shows it."""
    text = "nothing" if value is None else str(value) if isinstance(value, Verbatim) else repr(value)
    return text if len(text) <= 90 else text[:87] + "..."


def kind_of(value: object) -> str:
    """The JSON type of a value, as a message calls it."""
    return {list: "a list", dict: "an object", type(None): "null"}.get(type(value), short(value))
