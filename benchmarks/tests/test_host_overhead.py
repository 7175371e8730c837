"""The benchmark of the host's part of a call: what it calls is the real pipeline, and its sums are right. No figure is judged."""

import json
import subprocess
import sys
from pathlib import Path

import host_overhead
import pytest
from host_overhead import FOUND, bundle, calls_of, detector, measure
from null_device import Watch

from centernet_trt.runtime.detections import Detections


def test_exclusive_times() -> None:
    """What a watched function spends in another is the other's; the sum is the whole."""
    clock = [0]
    watch = Watch(now=lambda: clock[0])

    def inner() -> None:
        clock[0] += 20

    within = watch.wrap("inner", inner)

    def outer() -> str:
        clock[0] += 3
        within(), within()
        clock[0] += 7
        return "done"

    assert watch.wrap("outer", outer)() == "done"
    assert dict(watch.calls) == {"inner": 2, "outer": 1}
    assert dict(watch.spent) == {"inner": 40, "outer": 10}

    def fails() -> None:
        clock[0] += 5
        raise KeyError

    with pytest.raises(KeyError):
        watch.wrap("fails", fails)()
    watch.wrap("outer", outer)()  # nothing is left open
    assert dict(watch.spent) == {"inner": 80, "outer": 20, "fails": 5}


def test_the_calls_are_those_of_the_pipeline() -> None:
    """One graph launch and one wait a batch, a copy for the descriptors and one for each pinned image, detections found."""
    with detector(None, 128, 4) as (loaded, pipeline):
        for kind, call in calls_of(loaded, pipeline, 4).items():
            result = call()
            found = result if isinstance(result, list) else [result]
            assert all(isinstance(one, Detections) and len(one) == FOUND for one in found), kind
    costs = {cost.call: cost for cost in measure(None, 128, 4, 40)}
    copies = {kind: cost.driver_calls["copy_to_device"] for kind, cost in costs.items()}
    assert copies == {
        "detect, pinned": 2,
        "detect, on the GPU": 1,
        "detect, pageable": 1,
        "detect_batch of 4, pinned": 5,
        "submit and wait, pinned": 2,
    }
    for cost in costs.values():
        calls = cost.driver_calls
        assert (calls["launch_graph"], calls["record"], calls["push"]) == (1, 1, calls["pop"])
        assert set(calls) <= {
            "copy_to_device",
            "launch_graph",
            "record",
            "push",
            "pop",
            "is_pinned",
        }
        assert cost.host > 0
        assert cost.python == pytest.approx(cost.host - sum(cost.driver.values()))
    # The context is made current once for a call of one image.
    assert costs["detect, pinned"].driver_calls["push"] == 1


def test_the_bundle_is_the_official_one() -> None:
    manifest = bundle(256, 3).manifest
    assert manifest.profile.height.max == 256
    assert manifest.profile.batch.max == 3
    assert {head.name: head.channels for head in manifest.heads} == {"hm": 80, "wh": 2, "reg": 2}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    command = [sys.executable, str(host_overhead.__file__), "--side", "128", "--batch", "2", "--calls", "20"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "o.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "detect_batch of 2" in done.stdout
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["driver"], told["calls"], len(told["costs"])) == ("none", 20, 5)
    done = subprocess.run([*command, "--profile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gpu/buffers.py" in done.stdout
