"""The folder for what can be made or fetched again: downloaded models, compiled kernels."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`CENTERNET_TRT_CACHE`, else `centernet-trt` in the user's cache folder (XDG). It may not exist yet."""
    own = os.environ.get("CENTERNET_TRT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "centernet-trt"
