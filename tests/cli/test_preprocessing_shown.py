"""`inspect` and `build` print the pre-processing that will be used, and where it comes from."""

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_centernet import save_tiny_model

from centernet_trt.cli.spec_lines import preprocessing_line
from centernet_trt.runtime.presets import preset

OFFICIAL = (
    "image: keep_res, pad size, multiple 32, BGR, (pixel * 0.00392157 - [0.40789654, 0.44719302, 0.47026115])"
)
ORIGIN = "of preset official, assumed by the names of the heads"


def flat(text: str) -> str:
    return " ".join(text.split())


def test_inspect(run: Any, tmp_path: Path) -> None:
    done = run("inspect", save_tiny_model(tmp_path))
    assert OFFICIAL in flat(done.out)
    assert ORIGIN in flat(done.out)


@pytest.mark.parametrize(("option", "origin"), [([], ORIGIN), (["--spec", "official"], "of --spec official")])
def test_build(run: Any, tmp_path: Path, option: list[str], origin: str) -> None:
    sizes = ["--height", "32:64:64", "--width", "32:64:64"]
    done = run("build", save_tiny_model(tmp_path), "-o", tmp_path / "b", "--flavour", "none", *sizes, *option)
    assert OFFICIAL in flat(done.err)
    assert f"pre-processing {origin}" in flat(done.err)


def test_every_part_is_shown() -> None:
    line = preprocessing_line(preset("fairmot"))
    for part in ("letterbox with border 128", "1088x608", "RGB", "0.00392157"):
        assert part in line
