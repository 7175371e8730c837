"""Files written whole or not at all, and the folder for what can be made or fetched again.

That folder holds downloaded models, compiled kernels and kernel timings; any number of processes may share it.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_dir() -> Path:
    """`CENTERNET_TRT_CACHE`, else `centernet-trt` in the user's cache folder (XDG). It may not exist yet."""
    own = os.environ.get("CENTERNET_TRT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "centernet-trt"


def atomic_write(path: Path, content: bytes | Callable[[Path], object], *, parents: bool = False) -> None:
    """Write a file so that a reader, also after a crash, finds the old content or the new, never a part.

    Args:
        path: the file.
        content: the bytes, or a function that writes them to the path that it is given.
        parents: make the folder where there is none.

    Raises:
        OSError: it cannot be written; the old file is as it was, and nothing is left beside it.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A folder, not a file of tempfile's: the file gets the permissions that the user's umask gives, not 0600.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        os.replace(part, path)


def write_checked(path: Path, content: bytes) -> None:
    """Write content for `read_checked`, after its SHA-256; the folder is made where there is none.

    Raises:
        OSError: as for `atomic_write`.
    """
    atomic_write(path, hashlib.sha256(content).digest() + content, parents=True)


def read_checked(path: Path) -> bytes | None:
    """What `write_checked` wrote; None where there is no file that can be read.

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
