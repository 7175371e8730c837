"""`centernet-trt export`: which weights were taken."""

from pathlib import Path
from typing import Any

from helpers.pth_writer import tensor, write_pth

from centernet_trt.builder.export.export import random_weights
from centernet_trt.builder.export.registry import ARCHITECTURES


def test_the_summary_says_what_was_loaded(run: Any, tmp_path: Path) -> None:
    parts = {
        name: tensor(value)
        for name, value in random_weights(ARCHITECTURES["res_18"].network().parameters).items()
    }
    state = {**{f"model.{name}": part for name, part in parts.items()}, "loss.w": parts["bn1.bias"]}
    path = write_pth(tmp_path / "a.ckpt", {"state_dict": state, "ema": parts})

    words = ("export", "--arch", "res_18", "-o", tmp_path / "m.onnx")
    done = run(*words, "--weights", path)
    assert done.code == 0
    assert "under 'state_dict.model.' of a.ckpt" in done.out
    assert "state_dict.loss (1)" in done.out
    assert "pass --ema to take them" in done.out
    done = run(*words, "--weights", path, "--ema")
    assert done.code == 0
    assert "under 'ema.' of a.ckpt, EMA weights" in done.out
    done = run(*words, "--weights", path, "--prefix", "absent")
    assert done.code == 1
    assert "'absent'" in done.err
    assert "one of these: 'ema.', 'state_dict.model.'" in done.err
    done = run(*words, "--random", "--ema")
    assert done.code == 1
    assert "need a checkpoint" in done.err
