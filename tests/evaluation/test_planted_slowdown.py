"""The planted slowdown lengthens every stage by its fraction, and is compared with the same bundle in turn."""

import json
import sys
from pathlib import Path

import cv2
import pytest
from tiny_bundle import write_tiny_bundle
from tiny_centernet import scene

from centernet_trt.evaluation import bench, planted_slowdown
from centernet_trt.evaluation.clock import WallClock
from centernet_trt.evaluation.floor import MachineRates
from centernet_trt.evaluation.planted_slowdown import SlowedClock, measure_planted
from centernet_trt.evaluation.timing import TimingRules


class Ticking:
    """A clock that goes on by a millisecond whenever it is read, and by what it is told."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 0.001
        return self.time


def test_every_stage_lasts_longer_by_the_fraction() -> None:
    now = Ticking()
    clock = SlowedClock(WallClock(now), 0.10, now)
    clock.start()
    now.time += 10
    clock.mark("a")
    now.time += 20
    clock.mark("b")
    found = clock.finish()
    assert found["a"] == pytest.approx(11, abs=0.02)
    assert found["b"] == pytest.approx(22, abs=0.02)
    assert found["whole"] == pytest.approx(33, abs=0.04)


def test_the_same_bundle_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure_rates", lambda cores: MachineRates(1e10, 1e11, "made up"))
    image = tmp_path / "a.png"
    image.write_bytes(cv2.imencode(".png", scene())[1].tobytes())
    bundle = write_tiny_bundle(tmp_path / "b")
    rules = TimingRules(warmup=0, duration=0.02, iterations=6, windows=3, allow_short=True)
    report = measure_planted(bundle, [image], rules, "")
    assert [entry.name for entry in report.entries] == ["b", "b again", "b slowed"]
    # The command: its rules replaced by short ones.
    monkeypatch.setattr(planted_slowdown, "replace", lambda *_, **__: rules)
    words = ["x", str(bundle.path), "--images", str(tmp_path), "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", words)
    planted_slowdown.main()
    assert "b slowed" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["command"].startswith("python -m centernet_trt")
