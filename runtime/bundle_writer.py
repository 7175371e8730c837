"""Writing a bundle so that whatever dies on the way, the bundle that was there before stays whole."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from centernet_trt.errors import BundleError
from centernet_trt.runtime.bundle import MANIFEST


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write into; it takes the target's place when the block ends without an error.

    The exchange is one system call where the file system has it (Linux renameat2). On an error or an interrupt
    the new folder is removed and the target is as it was.

    Raises:
        BundleError: the target is no bundle (it would be lost), or its parent cannot be written to.
    """
    _refuse_to_lose(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise BundleError(
            f"cannot write into {target.parent}: {error.strerror}",
            "choose another output folder with --output",
        ) from None
    try:
        work.chmod(0o755)  # mkdtemp's 0700 would hide the bundle from the service that runs it
        yield work
        for path in work.iterdir():
            _flush(path)
        _take_place(work, target)
    except OSError as error:
        raise BundleError(
            f"writing the bundle {target} failed: {error}", "the earlier bundle, if any, is whole"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_to_lose(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(
            f"{target} is not a folder, it will not be replaced", "choose another output folder"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise BundleError(
            f"{target} holds files but no {MANIFEST}: it is not a bundle, and will not be replaced",
            "choose another output folder, or empty it yourself",
        )


def _flush(path: Path) -> None:
    """Have the file on disk before the rename makes it visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(work: Path, target: Path) -> None:
    """Put `work` at `target`; afterwards `work` holds what was at the target, if anything."""
    if not target.exists():
        work.rename(target)
    elif not _exchange(work, target):
        old = work.with_name(work.name.replace(".partial-", ".old-"))
        target.rename(old)
        try:
            work.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step (renameat2 with RENAME_EXCHANGE); False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)
