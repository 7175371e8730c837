"""The kernels' machine: their sources compiled by g++ under AddressSanitizer and UndefinedBehaviorSanitizer."""

from collections.abc import Iterator

import pytest
from helpers.cpu_build import SANITIZED, compiler
from helpers.cpu_kernels import CpuMachine


def _machine(sanitize: bool) -> Iterator[CpuMachine]:
    if compiler() is None:
        pytest.skip("g++ is not installed: the kernels' sources cannot be run on the CPU")
    machine = CpuMachine(sanitize)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def sanitized() -> Iterator[CpuMachine]:
    """The harness under sanitizers."""
    yield from _machine(SANITIZED)


@pytest.fixture(scope="session")
def plain() -> Iterator[CpuMachine]:
    """The harness without sanitizers, for large maps."""
    yield from _machine(False)
