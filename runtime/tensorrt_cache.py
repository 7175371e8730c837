"""The kernels that TensorRT for RTX compiles on the user's GPU, kept in the user's cache folder from run to run."""

import hashlib
import logging
from typing import Any

from centernet_trt.cache import atomic_write, cache_dir
from centernet_trt.runtime.driver_binding import DeviceInfo
from centernet_trt.runtime.manifest import PlanRecord

_log = logging.getLogger(__name__)


class KernelCache:
    """One plan's runtime cache on one GPU. A folder that cannot be used costs time, not the run."""

    def __init__(self, config: Any, plan: PlanRecord, device: DeviceInfo) -> None:
        """Make the cache, fill it from its file where there is one, and give it to a runtime configuration.

        Args:
            config: TensorRT's IRuntimeConfig.
            plan: named by its hash, and by the version of TensorRT.
            device: named by its kind; TensorRT itself refuses a cache of another GPU or driver.
        """
        key = f"{plan.sha256} {plan.version} {device.name} {device.capability} {device.driver_version}"
        self.path = cache_dir() / "rtx" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cache"
        self._cache: Any = config.create_runtime_cache()
        content = self._read()
        if content and not self._cache.deserialize(content):
            _log.info("TensorRT does not take the kernels cached in %s, and compiles them again", self.path)
            content = b""
        self._kept = hashlib.sha256(content).digest()
        if not config.set_runtime_cache(self._cache):
            _log.warning("TensorRT takes no cache for compiled kernels: every start compiles them again")

    def save(self) -> None:
        """Write what has been compiled since, whole or not at all."""
        content = bytes(memoryview(self._cache.serialize()))
        digest = hashlib.sha256(content).digest()
        if digest == self._kept:
            return
        try:
            atomic_write(self.path, content, parents=True)
            self._kept = digest
        except OSError as error:
            _log.warning("the kernels that TensorRT compiled could not be kept in %s: %s", self.path, error)

    def close(self) -> None:
        """Save, and drop TensorRT's object."""
        if self._cache is not None:
            try:
                self.save()
            finally:
                self._cache = None

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""
