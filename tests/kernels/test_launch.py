"""Launch plans, and the structs against the C++ that reads them."""

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.cpu_build import HARNESS, KERNELS, compiler
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.errors import InputError, SpecError
from centernet_trt.kernels import structs
from centernet_trt.kernels.launch import (
    DECODE_BLOCKS_PER_SM,
    DECODE_THREADS,
    DecodeLayout,
    decode_units,
    plan_decode,
    plan_preprocess,
)
from centernet_trt.runtime.gpu import backend, ops
from centernet_trt.runtime.gpu.kernels import absent_image, decode_params, extra_columns
from centernet_trt.runtime.host import preprocess
from centernet_trt.runtime.host.preprocess import level_table, normalise
from centernet_trt.runtime.presets import PRESET_NAMES, preset
from centernet_trt.runtime.spec import ModelSpec, RawExtra

STRUCTS = (structs.Image, structs.PreprocessParams, structs.ExtraHead, structs.DecodeParams)


def test_structs_and_constants_are_those_of_the_sources(tmp_path: Path) -> None:
    gxx = compiler()
    if gxx is None:
        pytest.skip("g++ is not installed: the structs cannot be compared with the C++ ones")
    lines = ['#include "kernels.h"', "#include <cstddef>"]
    for struct in STRUCTS:
        name = struct.__name__
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        for field, *_ in struct._fields_:
            where = getattr(struct, field)
            lines.append(f'static_assert(offsetof({name}, {field}) == {where.offset}, "{name}.{field}");')
            lines.append(f'static_assert(sizeof({name}::{field}) == {where.size}, "{name}.{field}");')
    for prefix, enum in (
        ("BOX", structs.BoxEncoding),
        ("EXTRA", structs.ExtraKind),
        ("UNITS", structs.ExtraUnits),
        ("ORIGIN", structs.ExtraOrigin),
    ):
        lines += [f'static_assert({prefix}_{value.name} == {value.value}, "{value.name}");' for value in enum]
    plan = plan_decode(1, 1, 64, 64, 10, True, 1)
    spare = plan.shape.shared_bytes - plan.buffer_keys * 8
    tile = plan_preprocess(1, 1, 1, True).shape
    lines += [
        f"static_assert(MAX_EXTRA_HEADS == {structs.MAX_EXTRA_HEADS});",
        f"static_assert(sizeof(decode_source::Selection) == {spare});",
        f"static_assert(decode_source::MAX_THREADS == {DECODE_THREADS});",
        f"static_assert(sizeof(preprocess_source::Tile) == {tile.shared_bytes});",
        f"static_assert(preprocess_source::THREADS == {tile.block[0]});",
        # 4 rows of 8 halves or 4 floats are one unit.
        "static_assert(decode_source::UNIT_ROWS == 4 && decode_source::Row<__half>::CELLS == 8);",
        "static_assert(decode_source::Row<float>::CELLS == 4);",
    ]
    source = tmp_path / "check.cpp"
    source.write_text("\n".join(lines))
    command = [
        gxx,
        "-std=c++17",
        "-fsyntax-only",
        "-Wno-unknown-pragmas",
        "-I",
        str(HARNESS),
        "-I",
        str(KERNELS),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(
    batch=st.integers(1, 300),
    classes=st.integers(1, 400),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    rows=st.integers(1, 1024),
    half=st.booleans(),
    multiprocessors=st.integers(1, 200),
)
def test_any_plan_is_one_the_kernel_takes(
    batch: int, classes: int, height: int, width: int, rows: int, half: bool, multiprocessors: int
) -> None:
    plan = plan_decode(batch, classes, height, width, rows, half, multiprocessors)
    blocks = plan.shape.grid[0]
    assert plan.shape.shared_bytes <= 48 * 1024  # no opt-in needed on any architecture
    assert plan.rows <= plan.list_keys < plan.buffer_keys
    assert plan.buffer_keys >= 1 << (plan.list_keys - 1).bit_length()  # sorted in place
    assert plan.key_bytes == batch * blocks * plan.list_keys * 8
    work = -(-decode_units(classes, height, width, half) // DECODE_THREADS)
    assert 1 <= blocks <= work
    # Bounded whatever the map: one wave of blocks, or one block an image.
    slots = multiprocessors * DECODE_BLOCKS_PER_SM
    assert blocks * batch <= max(slots, batch)
    # And as few rounds as a full device would need.
    assert -(-work // blocks) == -(-work // max(1, min(work, slots // batch)))


def test_one_class_fills_the_device_as_eighty_do() -> None:
    """The grid follows cells: one class of 1280 x 1024 cells gets the blocks of 80 classes of 128 x 128."""
    one, eighty = plan_decode(1, 1, 1280, 1024, 100, True, 132), plan_decode(1, 80, 128, 128, 100, True, 132)
    assert one.shape == eighty.shape
    assert eighty.shape.grid == (107, 1, 1)
    assert plan_decode(32, 80, 128, 128, 100, True, 132).shape.grid == (8, 32, 1)


def test_preprocess_covers_every_pixel() -> None:
    plan = plan_preprocess(3, 513, 640, half=False)
    assert plan.kernel == "preprocess_float"
    assert plan.shape.grid == (10, 33, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "top_k of 1 to 1024, got 0"),
        ({"rows": 1025}, "top_k of 1 to 1024, got 1025"),
        ({"batch": 0}, "expected batch of at least 1, got 0"),
        ({"batch": 70000}, "expected batch of at most 65535, got 70000"),
        ({"classes": 40000, "height": 300, "width": 300}, "at most 2147483647 cells, got 40000 x 300 x 300"),
        ({"threads": 48}, "a multiple of 32 up to 384 threads, got 48"),
        ({"threads": 512}, "a multiple of 32 up to 384 threads, got 512"),
    ],
)
def test_what_a_plan_refuses(changes: dict[str, int], message: str) -> None:
    sizes = {"batch": 1, "classes": 1, "height": 9, "width": 9, "rows": 5, "half": True, "multiprocessors": 4}
    with pytest.raises(InputError, match=message):
        plan_decode(**(sizes | changes))  # type: ignore[arg-type]


def test_preprocess_refuses_a_batch_beyond_the_grid() -> None:
    with pytest.raises(InputError, match="expected batch of at most 65535, got 70000"):
        plan_preprocess(70000, 32, 32, half=True)


@given(batch=st.integers(1, 40), rows=st.integers(1, 300), columns=st.integers(0, 20))
def test_outputs_do_not_overlap(batch: int, rows: int, columns: int) -> None:
    layout = DecodeLayout(batch, rows, columns)
    buffer = np.zeros(layout.nbytes, dtype=np.uint8)
    view = layout.view(buffer)
    parts = [view.count, view.xyxy, view.score, view.label, view.extra]
    for number, part in enumerate(parts, 1):
        part[...] = number
    assert [np.unique(part).tolist() for part in parts if part.size] == [
        [n] for n in range(1, 6) if parts[n - 1].size
    ]
    assert view.xyxy.shape == (batch, rows, 4)
    assert view.extra.shape == (batch, rows, columns)
    assert buffer.any()  # views, not copies


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_level_table_is_the_hosts(name: str) -> None:
    spec = preset(name).input
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    out = np.empty((1, 3, 1, 256), dtype=np.float32)
    normalise([image], spec, out)
    np.testing.assert_array_equal(level_table(spec), out[0, :, 0])


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_host_and_gpu_share_one_level_table(name: str) -> None:
    """One read-only array of one function, so that the two cannot drift apart."""
    spec = preset(name).input
    assert backend.level_table is ops.level_table is preprocess.level_table  # type: ignore[attr-defined]
    assert level_table(spec) is level_table(spec)
    with pytest.raises(ValueError, match="read-only"):
        level_table(spec)[0, 0] = 1.0
    levels = [
        [np.float32((level * spec.scale - mean) / std) for level in range(256)]
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    np.testing.assert_array_equal(level_table(spec), np.array(levels))


def test_more_extra_heads_than_the_kernel_supports() -> None:
    base = preset("official")
    extra = tuple(RawExtra(name=f"n{i}", tensor=f"t{i}", channels=1) for i in range(17))
    spec: ModelSpec = base.model_copy(update={"heads": base.heads.model_copy(update={"extra": extra})})
    plan = plan_decode(1, 1, 8, 8, 5, True, 1)
    heads = dict.fromkeys(spec.heads.tensors, (256, True))
    layout = DecodeLayout(1, 5, extra_columns(spec.heads))
    with pytest.raises(SpecError, match="up to 16 extra heads, the spec has 17"):
        decode_params(spec, plan, (1, 8, 8), heads, 1, 2, 3, 4, layout)


def test_an_absent_image_has_no_detections() -> None:
    image = absent_image()
    assert (image.pixels, image.top_k) == (0, 0)
    assert replace(plan_preprocess(1, 8, 8, half=True), kernel="x").kernel == "x"
