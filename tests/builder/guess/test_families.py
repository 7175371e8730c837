"""Families of networks: roles by official names, units by family, and questions where a shape has two meanings."""

import numpy as np
import pytest
from helpers.head_graphs import SIDE, HeadGraph

from centernet_trt.builder.guess.spec import Guess, guess_spec
from centernet_trt.errors import SpecError
from centernet_trt.runtime.presets import preset


def guess_of(heads: dict[str, int]) -> Guess:
    graph = HeadGraph()
    for name, channels in heads.items():
        graph.head(name, channels)
    return guess_spec(graph.model())


POSE = {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2}


@pytest.mark.parametrize("shift", range(6))
def test_pose_heads_in_any_order(shift: int) -> None:
    names = [*POSE][shift:] + [*POSE][:shift]
    guess = guess_of({name: POSE[name] for name in names})
    spec = guess.require_spec()
    assert guess.family == "multi_pose"
    assert spec.heads.tensors[:3] == ("hm", "wh", "reg")
    extra = {one.name: one for one in spec.heads.extra}
    assert set(extra) == {"hps", "hm_hp", "hp_offset"}
    joints = extra["hps"]
    assert joints.kind == "points"
    assert (joints.points, joints.units, joints.origin) == (17, "cells", "cell")
    assert spec.class_names == ("person",)


def test_pose_of_five_joints_is_not_centerface() -> None:
    guess = guess_of({"hm": 1, "wh": 2, "hps": 10, "reg": 2, "hm_hp": 5, "hp_offset": 2})
    spec = guess.require_spec()
    assert guess.family == "multi_pose"
    assert spec.heads.box.encoding == "wh"
    assert {one.name: one.channels for one in spec.heads.extra} == {"hps": 10, "hm_hp": 5, "hp_offset": 2}


@pytest.mark.parametrize(
    "further",
    [
        {"tracking": 2},
        {"tracking": 2, "ltrb": 4, "ltrb_amodal": 4},
        {"dep": 1, "rot": 8, "dim": 3, "amodel_offset": 2},
        {"dep": 1, "rot": 8, "dim": 3, "amodel_offset": 2, "nuscenes_att": 8, "velocity": 3},
    ],
)
def test_further_official_heads_are_kept_raw(further: dict[str, int]) -> None:
    guess = guess_of({"hm": 3, **further, "reg": 2, "wh": 2})
    spec = guess.require_spec()
    assert guess.family == "official"
    assert spec.heads.tensors[:3] == ("hm", "wh", "reg")
    assert (spec.heads.box.encoding, spec.heads.box.units) == ("wh", "cells")
    assert {one.name: one.channels for one in spec.heads.extra} == further


@pytest.mark.parametrize(("channels", "encoding"), [(4, "ltrb"), (2, "wh")])
def test_fairmot_is_in_cells_and_not_normalised(channels: int, encoding: str) -> None:
    guess = guess_of({"hm": 1, "wh": channels, "id": 64, "reg": 2})
    spec = guess.require_spec()
    assert guess.family == "fairmot"
    assert (spec.heads.box.encoding, spec.heads.box.units) == (encoding, "cells")
    assert (spec.input.channel_order, spec.input.mean, spec.input.std) == ("rgb", (0, 0, 0), (1, 1, 1))
    assert spec.input.scale == pytest.approx(1 / 255)
    assert spec.input.size.model_dump() == {"rule": "fixed", "width": SIDE, "height": SIDE}
    assert spec.input.resize.model_dump() == preset("fairmot").input.resize.model_dump()
    assert [one.name for one in spec.heads.extra] == ["id"]


@pytest.mark.parametrize(
    "heads",
    [
        {"hm": 1, "wh": 4, "reg": 2},
        {"hm": 80, "wh": 4},
        {"hm": 2, "wh": 4, "reg": 2},
        {"hm": 3, "ltrb": 4, "reg": 2},
        {"cls": 80, "box": 4},
    ],
)
def test_four_channels_of_unknown_unit_are_asked_about(heads: dict[str, int]) -> None:
    guess = guess_of(heads)
    (doubt,) = guess.doubts
    assert doubt.startswith("what are the 4 channels of ")
    for words in ('preset = "fairmot"', 'preset = "ttf-ltrb"', 'units = "input"'):
        assert words in doubt


def test_an_offset_alone_is_no_box() -> None:
    guess = guess_of({"hm": 3, "dep": 1, "rot": 8, "dim": 3, "reg": 2})
    assert any("which tensor is the box? reg is called as an offset is" in doubt for doubt in guess.doubts)


def test_extreme_points_are_refused() -> None:
    heads = {f"hm_{side}": 80 for side in "tlbr"} | {"hm_c": 80} | {f"reg_{side}": 2 for side in "tlbr"}
    assert any("ExtremeNet" in doubt for doubt in guess_of(heads).doubts)


@pytest.mark.parametrize("form", ["stack{}_{}", "{1}_{0}", "/heads.{}/{}/Conv_output_0"])
def test_several_stacks_are_asked_about_once(form: str) -> None:
    heads = {
        form.format(stack, name): channels
        for stack in range(2)
        for name, channels in {"hm": 80, "wh": 2, "reg": 2}.items()
    }
    (doubt,) = guess_of(heads).doubts
    assert f'[heads.heatmap] tensor = "{form.format(1, "hm")}"' in doubt
    assert f'[heads.box] tensor = "{form.format(1, "wh")}"' in doubt


def test_several_grids_are_asked_about_once() -> None:
    graph = HeadGraph()
    for level, stride in enumerate((4, 2, 1)):
        source = "image"
        for name, channels in (("hm", 3), ("wh", 2), ("reg", 2)):
            graph.conv(source, f"{name}_{level}", (3, channels), 4 if stride == 4 else stride)
            graph.output(f"{name}_{level}")
    guess = guess_spec(graph.model())
    (doubt,) = guess.doubts
    assert doubt.startswith("which grid is it?")
    assert "stride 1 (hm_2, wh_2, reg_2)" in doubt


def test_heads_on_different_grids_are_asked_about() -> None:
    graph = HeadGraph()
    graph.conv("image", "hm", (3, 3), 2)
    graph.output("hm")
    guess = guess_spec(graph.sizes().model())
    assert any("hm is not on that of stride 4" in doubt for doubt in guess.doubts)


def test_a_map_on_another_grid_is_left_out_and_named() -> None:
    graph = HeadGraph().sizes()
    graph.head("hm", 3)
    graph.conv("image", "edges", (3, 1), 2)
    graph.output("edges")
    guess = guess_spec(graph.model())
    assert guess.require_spec().heads.tensors == ("hm", "wh", "reg")
    assert "left out, on another grid: edges" in guess.reasons


def test_heads_mixed_in_an_unknown_way_are_asked_about() -> None:
    """The output called hm is made of two heads of different names: neither of them is the heatmap."""
    graph = HeadGraph().sizes()
    graph.head("offset_a", 3, output=False)
    graph.head("keypoints", 3, output=False)
    graph.add("Add", ["offset_a", "keypoints"], "both")
    graph.add("Sigmoid", ["both"], "hm")
    graph.output("hm")
    guess = guess_spec(graph.model())
    assert guess.spec is None or guess.require_spec().heads.heatmap.tensor in ("hm", "both")


@pytest.mark.parametrize("name", ["multi_pose", "fairmot"])
def test_presets_of_these_families(name: str) -> None:
    spec = preset(name)
    assert spec.heads.tensors[:3] == ("hm", "wh", "reg")
    assert spec.class_names == ("person",)
    assert spec.category_ids == (1,)


def test_fairmots_border_in_a_byte_image() -> None:
    cv2 = pytest.importorskip("cv2")
    grey = (127.5, 127.5, 127.5)
    framed = cv2.copyMakeBorder(np.zeros((2, 2, 3), np.uint8), 1, 0, 0, 0, cv2.BORDER_CONSTANT, value=grey)
    assert preset("fairmot").input.resize.model_dump()["pad_value"] == framed[0, 0, 0]


def test_doubts_reach_the_user() -> None:
    with pytest.raises(SpecError, match="what are the 4 channels of wh"):
        guess_of({"hm": 1, "wh": 4, "reg": 2}).require_spec()
