"""Fences and other properties of the compiled code."""

import re

import pytest
from helpers.ptx_fences import ENTRIES, check_fences, decode_ptx

from centernet_trt.kernels.compile import TESTED_ARCHITECTURES, Nvrtc, sources


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA wheels are not installed (extra gpu)")
    return Nvrtc()


@pytest.mark.parametrize("architecture", [TESTED_ARCHITECTURES[0], "sm_90", TESTED_ARCHITECTURES[-1]])
def test_the_hand_over_is_fenced(nvrtc: Nvrtc, architecture: str) -> None:
    ptx = decode_ptx(nvrtc, architecture)
    for entry in ENTRIES:
        check_fences(ptx, entry)


@pytest.mark.parametrize("guarantee", ["keys before ticket", "ticket before keys"])
def test_a_dropped_fence_is_noticed(nvrtc: Nvrtc, guarantee: str) -> None:
    source, fence = sources("decode")["decode.cu"], f"__threadfence();  // fence: {guarantee}\n"
    assert source.count("__threadfence();") == 2
    assert source.count(fence) == 1
    ptx = decode_ptx(nvrtc, "sm_90", {"decode.cu": source.replace(fence, "\n")})
    with pytest.raises(AssertionError, match=r"ticket"):
        check_fences(ptx, "decode_half")


def test_heatmaps_are_read_16_bytes_at_a_time(nvrtc: Nvrtc) -> None:
    ptx = decode_ptx(nvrtc, "sm_80")
    assert len(re.findall(r"ld\.global\.nc\.v4\.u32", ptx)) >= 2 * 6  # six rows a unit, two entry points


def test_no_fast_math(nvrtc: Nvrtc) -> None:
    """Nothing approximate, nothing flushed to zero, no contraction that the sources do not ask for."""
    for name in ("decode.cu", "preprocess.cu"):
        files = sources("decode") | sources("preprocess")
        ptx = nvrtc.compile(name, files, "sm_80", "ptx").code.decode()
        assert not re.findall(r"\.approx(?!\.ftz\.f64)|\.ftz\.f32", ptx)
        if name == "preprocess.cu":
            # fmaf in the bilinear weights; float64 positions need fma only inside their division.
            assert "fma.rn.f32" in ptx
