"""ModelSpec and presets: what is accepted, and what the errors of everything else say."""

import json
from pathlib import Path
from typing import Any

import pytest

from centernet_trt.errors import SpecError
from centernet_trt.runtime.presets import PRESET_NAMES, preset, read_spec, spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_survive_json(name: str) -> None:
    spec = preset(name)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_coco_has_eighty_classes_and_ninety_ids() -> None:
    spec = preset("official")
    assert len(spec.class_names) == 80
    assert (spec.category_ids[0], spec.category_ids[-1]) == (1, 90)
    assert dict(zip(spec.class_names, spec.category_ids, strict=True))["stop sign"] == 13


def test_a_table_of_another_kind_replaces_the_presets() -> None:
    spec = spec_from_mapping(
        {
            "preset": "official",
            "top_k": 50,
            "input": {
                "size": {"rule": "fixed", "width": 512, "height": 512},
                "resize": {"policy": "fix_res"},
            },
        }
    )
    assert spec.top_k == 50
    assert spec.input.size.rule == "fixed"
    assert spec.input.mean == preset("official").input.mean


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"topk": 5}, "topk: Extra inputs"),
        ({"top_k": 5000}, "top_k: .*1024"),
        ({"input": {"std": [1, 0, 1]}}, "expected a positive std, got"),
        (
            {"input": {"resize": {"policy": "letterbox"}}},
            "expected size rule fixed with resize policy 'letterbox', got 'pad'",
        ),
        ({"input": {"size": {"rule": "pad", "multiple": 48}}}, "power of two"),
        ({"input": {"size": {"rule": "nonsense"}}}, "nonsense"),
        ({"heads": {"box": {"tensor": "hm"}}}, "expected a different tensor for every head"),
        ({"heads": {"box": {"encoding": "xywh"}}}, "heads.box.encoding: .*found 'xywh'"),
        ({"category_ids": [1, 2]}, "expected as many category_ids as class_names, got 2 and 80"),
        ({"stride": 5}, "multiple of the stride 5"),
        ({"threshold": float("nan")}, "threshold"),
        ({"preset": "yolo"}, "preset 'yolo'"),
    ],
)
def test_mistakes_are_named(over: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec_from_mapping({"preset": "official", **over})


def test_read_spec(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text('preset = "official"\ntop_k = 7\n')
    assert read_spec(str(toml)).top_k == 7
    as_json = tmp_path / "mine.json"
    as_json.write_text(json.dumps({"preset": "mmdet", "threshold": 0.1}))
    assert read_spec(str(as_json)).threshold == 0.1
    toml.write_text("top_k = = 7")
    with pytest.raises(SpecError, match="not valid TOML"):
        read_spec(str(toml))
    with pytest.raises(SpecError, match="cannot read"):
        read_spec(str(tmp_path / "absent.json"))
    with pytest.raises(SpecError, match="neither a preset nor") as error:
        read_spec("ofical")
    assert "official" in error.value.hint
