"""Find the fences of the hand-over in the PTX of decode, which a one-thread harness cannot check."""

import re

from centernet_trt.kernels.compile import Toolchain, sources

ENTRIES = ("decode_half", "decode_float")
_EVENTS = {
    "keys written": r"st\.global\.cg\.u64",
    "keys read": r"ld\.global\.cg\.u64",
    "total read": r"ld\.global\.cg\.u32",
    "fence": r"membar\.gl|fence\.(acq_rel|sc)\.gpu",
    "atomic": r"atom\.(?:\w+\.)*global\.(?:\w+\.)*add",
    "barrier": r"bar(?:rier)?\.(?:\w+\.)*(?:sync|red)",
}


def decode_ptx(toolchain: Toolchain, architecture: str, changed: dict[str, str] | None = None) -> str:
    """PTX of decode.cu, with some source files replaced."""
    files = sources("decode") | (changed or {})
    return toolchain.compile("decode.cu", files, architecture, "ptx").code.decode()


def events(ptx: str, entry: str) -> list[str]:
    """The memory events of the entry point that matter to the hand-over, in program order."""
    body = re.search(rf"\.entry {entry}\b.*?\n\}}\n", ptx, re.DOTALL)
    assert body is not None, f"no entry {entry}"
    found = []
    for line in body[0].splitlines():
        found += [name for name, pattern in _EVENTS.items() if re.search(pattern, line)]
    return found


def check_fences(ptx: str, entry: str) -> None:
    """Keys written, fence, barrier, ticket; then barrier, fence, and only then anything read of the other blocks'."""
    order = events(ptx, entry)
    assert order.count("atomic") == 2, order  # room in the list, and the ticket
    ticket = len(order) - 1 - order[::-1].index("atomic")
    before, after = order[:ticket], order[ticket + 1 :]
    assert "keys written" in before, order
    assert "keys written" not in after, order
    last_write = len(before) - 1 - before[::-1].index("keys written")
    assert before[last_write + 1 :] == ["fence", "barrier"], f"between the last key and the ticket: {before}"
    assert after[:3] == ["barrier", "fence", "total read"], f"after the ticket: {after}"
    assert not {"keys read", "total read"} & set(before), order
    assert "keys read" in after, order
