"""TensorRT's logger, one per process and flavour, and its progress monitor."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from centernet_trt.progress import Progress

__all__ = ["LogLine", "Progress", "capture", "important", "logger_for", "monitor_for", "take_interrupt"]

LogLine = tuple[str, str]
"""(severity, text); the severity is INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""

_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
# TensorRT for RTX 1.7 logs these on every build, without a problem behind them.
_NOISE = ("Thread context has not been set!", "getHardwareCompatibilityLevel() is unsupported")

_python_log = logging.getLogger("centernet_trt.tensorrt")
# Without any handler Python would print warnings to stderr.
_python_log.addHandler(logging.NullHandler())

_lock = threading.Lock()
_loggers: dict[str, Any] = {}
# Open captures by thread, newest last.
_captures: dict[int, list[list[LogLine]]] = {}
_interrupts: set[int] = set()


@contextmanager
def capture() -> Iterator[list[LogLine]]:
    """Collect the lines that TensorRT logs in this thread within the block.

    Lines of TensorRT's worker threads are collected if this thread is the only one with a capture.
    Captures nest: a line goes to all open captures of its thread.
    """
    lines: list[LogLine] = []
    thread = threading.get_ident()
    with _lock:
        _captures.setdefault(thread, []).append(lines)
    try:
        yield lines
    finally:
        with _lock:
            own = _captures[thread]
            # By identity: two empty lists are equal.
            del own[next(index for index, other in enumerate(own) if other is lines)]
            if not own:
                del _captures[thread]


def logger_for(module: ModuleType) -> Any:
    """Return the logger object for `module` (tensorrt or tensorrt_rtx), always the same one.

    Every line also goes to Python's logger `centernet_trt.tensorrt`.
    """
    with _lock:
        logger = _loggers.get(module.__name__)
        if logger is None:
            logger = _loggers[module.__name__] = _make_logger(module)
    return logger


def important(lines: list[LogLine]) -> list[str]:
    """Return errors and warnings as text, without the known noise."""
    wanted = ("INTERNAL_ERROR", "ERROR", "WARNING")
    return [f"[{severity}] {text}" for severity, text in lines if severity in wanted and not _is_noise(text)]


def take_interrupt() -> bool:
    """Return whether Ctrl-C arrived in this thread while TensorRT was logging, and forget it."""
    with _lock:
        thread = threading.get_ident()
        found = thread in _interrupts
        _interrupts.discard(thread)
    return found


def _is_noise(text: str) -> bool:
    return any(noise in text for noise in _NOISE)


def _make_logger(module: ModuleType) -> Any:
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        """Called from C++, where an exception would terminate the process: `log` must not raise."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            try:
                _deliver(severity.name, message)
            except KeyboardInterrupt:
                _interrupts.add(threading.get_ident())
            except BaseException:  # noqa: BLE001, S110
                pass  # a handler of the application failed; the build continues without this line

    return Logger()


def _deliver(severity: str, text: str) -> None:
    with _lock:
        targets = _captures.get(threading.get_ident())
        if targets is None and len(_captures) == 1:
            (targets,) = _captures.values()
        for lines in targets or ():
            lines.append((severity, text))
    level = logging.DEBUG if _is_noise(text) else _LEVELS.get(severity, logging.INFO)
    _python_log.log(level, "%s", text)


def monitor_for(module: ModuleType, progress: Progress | None) -> Any:
    """Return an IProgressMonitor that calls `progress`; raise its `error`, if any, after the build."""
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """Called from C++, so it must not raise: the first exception is kept and the build cancelled."""

        def __init__(self) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self.totals: dict[str, int] = {}

        def report(self, phase: str, done: int) -> bool:
            try:
                if self.error is None and take_interrupt():
                    self.error = KeyboardInterrupt()
                if self.error is None and progress is not None:
                    progress(phase, done, self.totals.get(phase, 0))
            except BaseException as error:  # noqa: BLE001 - raised after the build
                self.error = error
            return self.error is None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self.report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self.report(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()
