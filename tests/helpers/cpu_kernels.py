"""CpuMachine: run the kernels without a GPU, compiled by g++, in a process of the harness."""

import contextlib
import ctypes
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.kernels.launch import LaunchShape
from helpers.cpu_build import KERNELS, SANITIZERS, build

_TAG = 0x7ABC << 48
NEVER = 0xFFFFFFFF


class HarnessError(AssertionError):
    """The harness or a sanitizer stopped the launch; the message is its report."""


class CpuMachine:
    """Memory and launches, as a driver binding offers them. Addresses are tags that the harness translates.

    `seed` shuffles the order of blocks and threads, and changes with every launch; `resident` blocks are in flight
    together. `abort_after`: a launch ends when so many blocks have finished. `sleep_at`: one thread is held back after
    this barrier of the launch until nothing else can run.
    """

    multiprocessors = 5

    def __init__(self, sanitize: bool = True, kernels: Path = KERNELS) -> None:
        self._server = build("server.cpp", SANITIZERS if sanitize else (), kernels, "server")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffers: list[npt.NDArray[np.uint8]] = []
        self._pointers: list[bool] = []
        self.seed = 1
        self.resident = 1
        self.abort_after = NEVER
        self.sleep_at = NEVER

    def reset(self) -> None:
        """Forget all memory."""
        self._buffers.clear()
        self._pointers.clear()

    def allocate(self, nbytes: int, zero: bool = False) -> int:
        """Address of new memory, filled with garbage unless `zero`."""
        garbage = np.random.default_rng(self.seed + len(self._buffers)).integers(
            0, 256, nbytes, dtype=np.uint8
        )
        self._buffers.append(np.zeros(nbytes, dtype=np.uint8) if zero else garbage)
        self._pointers.append(False)
        return _TAG | (len(self._buffers) - 1) << 32

    def upload(self, data: npt.NDArray[Any] | bytes, pointers: bool = False) -> int:
        """Address of a copy of these bytes; `pointers`: some of its 8-byte words are addresses."""
        raw = data if isinstance(data, bytes) else data.tobytes()
        self._buffers.append(np.frombuffer(raw, dtype=np.uint8).copy())
        self._pointers.append(pointers)
        return _TAG | (len(self._buffers) - 1) << 32

    def write(self, address: int, data: bytes) -> None:
        """Overwrite memory."""
        buffer, offset = self._at(address)
        buffer[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def download(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Copy of memory."""
        buffer, offset = self._at(address)
        assert offset + nbytes <= buffer.size
        return buffer[offset : offset + nbytes].copy()

    def launch(self, kernel: str, shape: LaunchShape, params: ctypes.Structure) -> None:
        """Run a kernel to its end.

        Raises:
            HarnessError: the harness or a sanitizer found a fault.
        """
        self.seed += 1
        raw = bytes(params)
        numbers = (*shape.grid, *shape.block, shape.shared_bytes, self.resident)
        numbers = (*numbers, self.abort_after, self.sleep_at, self.seed)
        request = [
            struct.pack("<32s10IQ", kernel.encode(), *numbers),
            struct.pack("<I", len(raw)),
            raw,
            struct.pack("<I", len(self._buffers)),
        ]
        for buffer, pointers in zip(self._buffers, self._pointers, strict=True):
            request += [struct.pack("<QI", buffer.size, pointers), buffer.tobytes()]
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"".join(request))
            process.stdin.flush()
        except BrokenPipeError:
            self._failed()
        for index, buffer in enumerate(self._buffers):
            answer = process.stdout.read(buffer.size)
            if len(answer) != buffer.size:
                self._failed()
            self._buffers[index] = np.frombuffer(answer, dtype=np.uint8).copy()

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._process = None

    def _at(self, address: int) -> tuple[npt.NDArray[np.uint8], int]:
        assert address >> 48 == _TAG >> 48
        return self._buffers[address >> 32 & 0xFFFF], address & 0xFFFFFFFF

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            # Without leak checks: they need ptrace, which containers forbid. Fake stacks and fibers do not go together.
            options = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [str(self._server)], stdin=pipe, stdout=pipe, stderr=pipe, env=options
            )
        return self._process

    def _failed(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stderr is not None
        report = process.stderr.read().decode(errors="replace")
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        raise HarnessError(report[:6000] or "the harness ended without a report")
