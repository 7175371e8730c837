"""The folder for what can be made or fetched again: downloaded models, compiled kernels, kernel timings."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`CENTERNET_TRT_CACHE`, else `centernet-trt` in the user's cache folder (XDG). It may not exist yet."""
    own = os.environ.get("CENTERNET_TRT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "centernet-trt"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none, so that a reader finds the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
