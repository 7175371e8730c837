"""Commands in processes of their own with a time limit: a crash or a hang is an outcome, not the end of the run."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GRACE = 5.0
_TAIL = 4000


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; negative for the signal that ended it; None where the limit did.
        seconds: wall time.
        tail: the end of what it wrote, both streams together.
    """

    code: int | None
    seconds: float
    tail: str

    @property
    def word(self) -> str:
        """In a few words: `done`, `exit code 1`, `crashed: SIGSEGV`, `timed out`."""
        if self.code is None:
            return f"timed out after {self.seconds:.0f} s"
        if self.code < 0:
            names = {int(number): number.name for number in signal.Signals}
            return f"crashed: {names.get(-self.code, f'signal {-self.code}')}"
        return "done" if self.code == 0 else f"exit code {self.code}"


def run_limited(
    command: Sequence[str],
    limit: float,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    echo: bool = False,
) -> Outcome:
    """Run a command for at most `limit` seconds; with it end all processes that it started.

    Args:
        command: program and arguments.
        limit: in seconds.
        log: everything that it writes goes there; None keeps the end only.
        environment: added to that of this process.
        echo: show what it writes, too, once it has ended.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    # Into a file, so that it is there even when this process is ended, too.
    with tempfile.TemporaryFile("w+b") if log is None else log.open("w+b") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,  # so that the limit can end its children as well
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
            _end(process)
        except BaseException:
            _end(process)
            raise
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read().decode(errors="replace")
    if echo:
        print(text, end="", flush=True)
    return Outcome(code, seconds, text[-_TAIL:])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started: first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
