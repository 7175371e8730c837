"""Fences, and other promises that show only in the compiled code."""

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


@pytest.mark.parametrize("which", [0, 1])
def test_a_dropped_fence_is_noticed(nvrtc: Nvrtc, which: int) -> None:
    parts = sources("decode")["decode.cu"].split("__threadfence();")
    assert len(parts) == 3
    dropped = (
        "__threadfence();".join(parts[:2]) + parts[2]
        if which
        else parts[0] + "__threadfence();".join(parts[1:])
    )
    ptx = decode_ptx(nvrtc, "sm_90", {"decode.cu": dropped})
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
