"""Full TensorRT's timing cache, kept between builds in the user's cache folder.

There is one file per TensorRT version and GPU model. It begins with the SHA-256 of the rest, so a truncated or damaged
file is detected before TensorRT reads it.
"""

import re
from pathlib import Path

from centernet_trt.builder.trt.api import IBuilderConfig, ITimingCache
from centernet_trt.cache import cache_dir, read_checked, write_checked
from centernet_trt.runtime.cuda.device import first_gpu
from centernet_trt.runtime.trt.flavours import Flavour

__all__ = ["TimingCache"]


class TimingCache:
    """The timing cache of one build. A problem with it costs time but does not fail the build; see `notes`.

    Attributes:
        path: the file; None where the GPU cannot be identified, and then nothing is kept.
        notes: messages for the user.
    """

    def __init__(self, config: IBuilderConfig, flavour: Flavour) -> None:
        """Read the cache from its file if there is one, and attach it to a builder configuration.

        Args:
            config: of the build. Keep this object until the plan is built: TensorRT uses the cache.
            flavour: one that has a timing cache.
        """
        self.notes: list[str] = []
        self.path = _path(flavour)
        self._config = config
        self._kept = self._read()
        self._cache = self._attached(self._kept) if self._kept else None
        if self._kept and self._cache is None:
            self.notes.append(
                f"TensorRT refuses the timings kept in {self.path}; it measured its kernels again"
            )
            self._kept = b""
        if self._cache is None:
            self._cache = self._attached(b"")
        if self._cache is None:
            self.notes.append(
                "TensorRT refuses an empty timing cache; the next build measures its kernels again"
            )

    def save(self) -> None:
        """Write the file if new kernels were measured; call it once the plan is built."""
        if self._cache is None or self.path is None:
            return
        cache = self._config.get_timing_cache()
        content = b"" if cache is None else bytes(memoryview(cache.serialize()))
        if not content or content == self._kept:
            return
        try:
            write_checked(self.path, content)
        except OSError as error:
            self.notes.append(f"cannot keep the timings of TensorRT's kernels in {self.path}: {error}")

    def _attached(self, content: bytes) -> ITimingCache | None:
        """A cache with this content, attached to the configuration; None if TensorRT refuses it."""
        try:
            cache = self._config.create_timing_cache(content)
        except (TypeError, RuntimeError):  # the binding's translation of a null pointer
            return None
        # ignore_mismatch=False: timings of another GPU model would choose wrong kernels.
        if cache is None or not self._config.set_timing_cache(cache, False):
            return None
        return cache

    def _read(self) -> bytes:
        if self.path is None:
            return b""
        try:
            return read_checked(self.path) or b""
        except ValueError:
            self.notes.append(
                f"the timings kept in {self.path} are damaged; TensorRT measured its kernels again"
            )
            return b""


def _path(flavour: Flavour) -> Path | None:
    gpu = first_gpu()
    if gpu is None:
        return None
    name, (major, minor) = gpu
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return cache_dir() / "timing" / f"{flavour.name}-{flavour.version}-sm_{major}{minor}-{words}.cache"
