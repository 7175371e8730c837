"""Text files that commands write on request."""

from pathlib import Path

from centernet_trt.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file, making its folder; InputError when that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
