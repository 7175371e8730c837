"""Registers, shared memory and spills on every architecture, compared with the committed table."""

import json
from pathlib import Path

import pytest
from helpers.ptxas import parse_resources

from centernet_trt.kernels.compile import PROGRAMS, TESTED_ARCHITECTURES, Nvrtc, Program, sources
from centernet_trt.kernels.launch import DECODE_BLOCKS_PER_SM, DECODE_THREADS

TABLE = json.loads(Path(__file__).with_name("resources.json").read_text())


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA wheels are not installed (extra gpu)")
    return Nvrtc()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("architecture", TESTED_ARCHITECTURES)
def test_no_spills_and_the_table_holds(nvrtc: Nvrtc, program: Program, architecture: str) -> None:
    found = parse_resources(nvrtc.compile(f"{program}.cu", sources(program), architecture, "cubin").log)
    assert set(found) == {f"{program}_half", f"{program}_float"}
    for entry, resources in found.items():
        assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0), entry
        assert resources.shared == 0, "all shared memory is dynamic"
        if program == "decode":
            assert resources.registers * DECODE_THREADS * DECODE_BLOCKS_PER_SM <= 65536
        if nvrtc.version == TABLE["compiler"]:  # another compiler may use other registers
            assert resources.registers == TABLE["registers"][entry][architecture]
