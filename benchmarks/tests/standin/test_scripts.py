"""The scripts on the stand-in driver: what is timed is right, and nothing looks like a GPU's figure.

Times themselves are never looked at.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak
from common import RESULTS, result
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import tiny, world
from helpers.standin_session import ON_STANDIN
from kernel_steps import DecodeStep, PreprocessStep
from render import check_real, performance
from rtx_try import Progress, attempt, profile_layers

import kernels  # noqa: TID251 - the script of this name
from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.bench.timing import TimingRules
from centernet_trt.evaluation.environment import device_record
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.gpu.kernels import Kernels
from centernet_trt.runtime.trt.context import TensorRTEngine

pytestmark = ON_STANDIN

SHORT = TimingRules(0.0, 0.02, 3, 3, allow_short=True)


@pytest.fixture
def device() -> Iterator[Device]:
    with Device.open(0, "cuda-bindings") as opened:
        yield opened


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    with world(tmp_path) as found:
        yield found


@pytest.mark.parametrize("copies", [1, 3])
def test_the_kernels_are_held_to_the_host(device: Device, copies: int) -> None:
    loaded = Kernels(device)
    with device.stream() as stream:
        decoding = DecodeStep(device, loaded, stream, (2, 3, 16, 24), 10, copies)
        sure = DecodeStep(device, loaded, stream, (2, 3, 16, 24), 100, copies, threshold=0.3)
        sure.check()
        assert 0 < len(sure.wanted()[0]) < 100
        assert min(sure.detections()[0].score) >= 0.3
        sure.close()
        preparing = PreprocessStep(device, loaded, stream, 2, (40, 30), (32, 48), copies)
        decoding.check()
        preparing.check()
        assert len({heads["hm"].address for heads in decoding.inputs}) == copies
        # A kernel that found something else, or left the output as it was, must not be timed.
        launch, decoding.launch = decoding.launch, lambda copy=0: None  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="decode, copy 0"):
            decoding.check()
        decoding.launch = launch  # type: ignore[method-assign]
        last = decoding.inputs[-1]["hm"]
        last.write(np.flip(decoding.heads["hm"], axis=-1).copy())
        with pytest.raises(BackendError, match=f"decode, copy {copies - 1}"):
            decoding.check()
        preparing.inputs[-1].write(255 - preparing.images)
        with pytest.raises(BackendError, match="grey levels from the host"):
            preparing.check()
        preparing.launch = lambda copy=0: None  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="nan grey levels"):
            preparing.check()
        decoding.close()
        preparing.close()
    loaded.close()


def test_the_kernels_result(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, text = tmp_path / "gpu-kernels.json", tmp_path / "k.md"
    words = ["--small", "--json", str(target), "--markdown", str(text)]
    assert kernels.main(words) == 0
    data = json.loads(target.read_text())
    keys = {(row["step"], row["batch"], row["form"], row["cache"]) for row in data["rows"]}
    assert keys >= {
        (s, b, f, "warm") for s in ("decode", "preprocess") for b in (1, 2) for f in ("alone", "graph")
    }
    assert all(row["p50"] > 0 and row["count"] >= 3 for row in data["rows"])
    assert data["device"]["real"] is False
    assert text.read_text() in capsys.readouterr().out
    assert "STAND-IN DRIVER, no GPU" in performance(tmp_path)
    assert {row["verdict"] for row in data["targets"]} == {
        "not judged: STAND-IN DRIVER, no GPU: these times mean nothing"
    }
    with pytest.raises(InputError, match="no GPU"):
        kernels.main([*words, "--json", str(RESULTS / "gpu-kernels.json")])
    with pytest.raises(InputError, match="stand-in driver"):
        check_real(tmp_path)


def test_a_wrong_answer_is_told_and_the_other_cases_go_on(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(step: DecodeStep) -> None:
        raise BackendError("decode is wrong")

    monkeypatch.setattr(DecodeStep, "check", wrong)
    target = tmp_path / "gpu-kernels.json"
    assert kernels.main(["--small", "--batches", "1", "--json", str(target)]) == 3
    data = json.loads(target.read_text())
    assert [(row["step"], row["shape"], row["problem"]) for row in data["failed"]] == [
        ("decode", "2x16x24", "decode is wrong"),
        ("decode", "2x16x24, score >= 0.3", "decode is wrong"),
    ]
    assert {row["step"] for row in data["rows"]} == {"preprocess"}
    assert "Failed:\n\n- decode 2x16x24, batch 1: decode is wrong" in capsys.readouterr().out


def test_a_soak_that_is_flat(tmp_path: Path, faults: Faults, device: Device) -> None:
    rows = [soak.soak_detector(tiny(tmp_path), device, 40), soak.soak_kernels(device, 20, 32, 2)]
    for row in rows:
        assert row["device_growth"] == 0
        assert len(row["free"]) == len(row["resident"]) == row["calls"]
    assert rows[0]["name"] == "bundle"


def test_a_soak_notices_what_is_kept_and_what_changes(device: Device) -> None:
    kept = []
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), {})
    other = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), {})

    def leaking(call: int) -> list[Detections]:
        kept.append(device.allocate(1 << 20))
        return [nothing]

    row = soak.soak("leak", leaking, 1, device, 30)
    assert not row["flat"]
    assert row["device_growth"] >= 20 << 20
    with pytest.raises(BackendError, match="call 3 found 1 objects, the first such call 0"):
        soak.soak("moody", lambda call: [other if call == 3 else nothing], 1, device, 5)


def test_the_soak_s_command(tmp_path: Path, faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, target = tiny(tmp_path), tmp_path / "gpu-soak.json"
    words = ["--small", "--json", str(target)]
    assert soak.main([str(bundle.path), *words]) == 0
    assert "| bundle | 12 |" in performance(tmp_path)
    # A bundle that cannot be loaded is told, and the other one is still run.
    assert soak.main([str(tmp_path / "absent"), str(bundle.path), *words]) == 3
    rows = {row["name"]: row for row in json.loads(target.read_text())["rows"]}
    assert "problem" in rows["absent"]
    assert rows["bundle"]["flat"]
    assert "did not run: " in capsys.readouterr().out


def tried(bundle: EngineBundle, tmp_path: Path) -> dict[str, Any]:
    progress = Progress(tmp_path / "try.json")
    try:
        attempt(bundle, bundle.manifest.plans[0].file, 1, progress, SHORT)
    except BackendError as error:
        progress.data["problem"] = error.message
    return progress.data


def test_a_plan_that_runs(tmp_path: Path, faults: Faults) -> None:
    found = tried(tiny(tmp_path), tmp_path)
    assert found["reached"] == "done"
    assert all(head["max_abs"] < 1e-5 for head in found["compare"].values())
    assert found["time"]["p50"] > 0 < found["graph"]["p50"]
    assert found["layers"]["ms"].keys() == {"hm", "wh", "reg"}


def test_how_far_a_plan_came(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path)
    faults.refuse_plan = True
    assert (found := tried(bundle, tmp_path))["reached"] == "deserialise"
    assert "Magic tag does not match" in found["problem"]
    assert json.loads((tmp_path / "try.json").read_text())["reached"] == "deserialise"
    faults.refuse_plan, faults.refuse_enqueue = False, 1
    assert tried(bundle, tmp_path)["reached"] == "run"
    faults.uncapturable = True
    found = tried(bundle, tmp_path)
    assert found["reached"] == "done"
    assert "cannot be recorded" in found["graph"]["refused"]


def test_a_plan_for_another_gpu_is_tried_all_the_same(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path)
    plans = (bundle.manifest.plans[0].model_copy(update={"target": "sm_80"}),)
    other = EngineBundle(bundle.path, bundle.manifest.model_copy(update={"plans": plans}))
    found = tried(other, tmp_path)
    assert found["reached"] == "done"
    assert found["device"]["compute_capability"] == [9, 0]


def test_results_have_one_form(device: Device) -> None:
    record = device_record(device)
    data = result("gpu-x", record, "python -m x", rows=[])
    assert (data["kind"], data["device"]["name"], data["device"]["l2_bytes"]) == (
        "gpu-x",
        "stand-in",
        1 << 20,
    )


def test_times_of_the_layers(tmp_path: Path, faults: Faults, device: Device) -> None:
    executor = TensorRTEngine(tiny(tmp_path), device)
    before = device.open_resources
    assert profile_layers(executor, 2, 64, 96, runs=3) == {"hm": 0.25, "wh": 0.25, "reg": 0.25}
    assert device.open_resources == before
    assert faults.enqueues == 4
    faults.refuse_enqueue = 1
    with pytest.raises(BackendError, match="refuses to run an input of 2x3x64x96"):
        profile_layers(executor, 2, 64, 96)
    assert device.open_resources == before
    executor.close()
