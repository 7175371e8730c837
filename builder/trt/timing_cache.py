"""How fast full TensorRT's kernels are on a GPU, kept in the user's cache folder so that the next build need not measure.

One file for each version of TensorRT and kind of GPU. It begins with the SHA-256 of the rest: a file that was cut short
or damaged is known before TensorRT reads it.
"""

import re
from pathlib import Path
from typing import Any

from centernet_trt.cache import cache_dir, read_checked, write_checked
from centernet_trt.runtime.cuda.device import first_gpu
from centernet_trt.runtime.trt.flavours import Flavour

__all__ = ["TimingCache"]


class TimingCache:
    """The timing cache of one build. Whatever is wrong with it costs time, not the build; `notes` say what.

    Attributes:
        path: where it is kept; None where no GPU can be named, and then it is not.
        notes: what the user should know.
    """

    def __init__(self, config: Any, flavour: Flavour) -> None:
        """Fill a cache from its file where there is one, and give it to a builder configuration.

        Args:
            config: TensorRT's IBuilderConfig; keep this object until the plan is built, TensorRT uses the cache.
            flavour: one that has a timing cache.
        """
        self.notes: list[str] = []
        self.path = _path(flavour)
        self._config = config
        self._kept = self._read()
        self._cache: Any = self._attached(self._kept) if self._kept else None
        if self._kept and self._cache is None:
            self.notes.append(f"TensorRT does not take the timings kept in {self.path}; it measured anew")
            self._kept = b""
        if self._cache is None:
            self._cache = self._attached(b"")
        if self._cache is None:
            self.notes.append("TensorRT takes no timing cache; the next build measures its kernels again")

    def save(self) -> None:
        """Keep what was measured, if anything was; call it when the plan is built."""
        if self._cache is None or self.path is None:
            return
        cache = self._config.get_timing_cache()
        content = b"" if cache is None else bytes(memoryview(cache.serialize()))
        if not content or content == self._kept:
            return
        try:
            write_checked(self.path, content)
        except OSError as error:
            self.notes.append(f"the timings of TensorRT's kernels could not be kept in {self.path}: {error}")

    def _attached(self, content: bytes) -> Any:
        """TensorRT's cache of this content, given to the configuration; None when TensorRT does not take it."""
        try:
            cache = self._config.create_timing_cache(content)
        except (TypeError, RuntimeError):  # a null pointer, by way of its binding
            return None
        # Not of another kind of GPU: its timings would choose wrong kernels.
        if cache is None or not self._config.set_timing_cache(cache, False):
            return None
        return cache

    def _read(self) -> bytes:
        if self.path is None:
            return b""
        try:
            return read_checked(self.path) or b""
        except ValueError:
            self.notes.append(f"the timings kept in {self.path} are damaged; TensorRT measured anew")
            return b""


def _path(flavour: Flavour) -> Path | None:
    gpu = first_gpu()
    if gpu is None:
        return None
    name, (major, minor) = gpu
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return cache_dir() / "timing" / f"{flavour.name}-{flavour.version}-sm_{major}{minor}-{words}.cache"
