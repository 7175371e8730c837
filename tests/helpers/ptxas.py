"""The resources of kernels, from the log of `ptxas -v`."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel: registers of a thread; shared memory of a block, stack and spills of a thread in bytes."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def parse_resources(log: str) -> dict[str, Resources]:
    """Parse the resources of every kernel, by entry point."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.split("'", 1)[0]

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        found[name] = Resources(
            registers=number(r"Used (\d+) registers"),
            shared=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
        )
    return found
