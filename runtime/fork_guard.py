"""Refuse the use of a Detector in a forked child process."""

import ctypes
import os
import weakref

from centernet_trt.errors import BackendError

_holders: "weakref.WeakSet[object]" = weakref.WeakSet()
_hooked = False


def check_owner(owner: int, what: str) -> None:
    """Raise an error if this process is not the one that made an object.

    Args:
        owner: `os.getpid()` when the object was made.
        what: name of the object, for the message.

    Raises:
        BackendError: this is another process, forked from the owner.
    """
    here = os.getpid()
    if here != owner:
        raise BackendError(
            f"{what} was made in process {owner} and cannot be used in its fork {here}",
            "load it after the fork, in each process, or start the processes with the method 'spawn'",
        )


def guard_forks(holder: object) -> None:
    """Let children forked from now on exit cleanly although this process holds native resources.

    ONNX Runtime 1.31 (seen on Linux) crashes or hangs when a forked child destroys a session, and again in the
    library's static destructors: both join threads that the child does not have. So in a child the holder is never
    freed, and the exit handlers that native libraries registered before the fork are skipped, as `multiprocessing`
    does with `os._exit`. Python's own clean-up still runs.

    Args:
        holder: the object whose destruction frees the resources; must allow weak references.
    """
    global _hooked
    _holders.add(holder)
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for holder in list(_holders):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
    libc = ctypes.CDLL(None)
    if _holders and hasattr(libc, "on_exit"):  # glibc only
        # Handlers run last in, first out: these two before all inherited ones. First the C streams are flushed, then
        # `_exit` gets the exit status, which on_exit passes as the first argument.
        libc.on_exit(libc._exit, None)
        libc.__cxa_atexit(libc.fflush, None, None)
