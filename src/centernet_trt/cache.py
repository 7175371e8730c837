"""Atomic file writes, checked files, and the cache folder.

The cache holds downloaded models, compiled kernels and kernel timings; any number of processes may share it.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_dir() -> Path:
    """Return the cache folder: `CENTERNET_TRT_CACHE`, or `centernet-trt` in the user's XDG cache folder.

    It may not exist yet.
    """
    own = os.environ.get("CENTERNET_TRT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "centernet-trt"


def atomic_write(path: Path, content: bytes | Callable[[Path], object], *, parents: bool = False) -> None:
    """Write a file so that a reader finds the old content or the new, never a part, even after a crash.

    Args:
        path: the file.
        content: the bytes, or a function that writes them to the path that it gets.
        parents: create the folder if it is missing.

    Raises:
        OSError: it cannot be written; the old file is unchanged, and no temporary file is left.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A temporary folder, not a temporary file: the file gets permissions by the user's umask, not 0600.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        os.replace(part, path)


def write_checked(path: Path, content: bytes) -> None:
    """Write content, preceded by its SHA-256, for `read_checked`; the folder is created if it is missing.

    Args:
        path: the file.
        content: the bytes.

    Raises:
        OSError: as for `atomic_write`.
    """
    atomic_write(path, hashlib.sha256(content).digest() + content, parents=True)


def read_checked(path: Path) -> bytes | None:
    """Read what `write_checked` wrote.

    Args:
        path: the file.

    Returns:
        The content; None if there is no readable file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its content does not have the recorded hash")
    return content
