import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.fake_timings import builder_with_timings
from helpers.input_profiles import input_profile
from helpers.onnx_graphs import Node, model, small_centernet

from centernet_trt.builder.graph.io import make_dynamic
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.trt.plan import Plan, build_plan
from centernet_trt.errors import BackendError, InputError, ModelError
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.trt import flavours
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, load_flavour

ONE = input_profile("1:1:4", "16")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx")
    return load_flavour("rtx")


def build(flavour: Flavour, **options: Any) -> Plan:
    source = fold_batch_norm(small_centernet())
    return build_plan(source, "x", [options.pop("profile", ONE)], flavour=flavour, **options)


def test_ranges() -> None:
    assert ShapeRange.parse("1:4:8") == ShapeRange.of(1, 4, 8)
    assert ShapeRange.parse("4") == ShapeRange.of(4, 4, 4)
    assert str(ShapeRange.of(1, 4, 8)) == "1:4:8"
    for text in ("", "1:2", "a:b:c", "1:2:3:4", "1.5", "-1:1:1"):
        with pytest.raises(InputError, match="is not a range"):
            ShapeRange.parse(text)
    for text in ("0", "4:2:8", "1:9:8"):
        with pytest.raises(InputError, match="not ordered"):
            ShapeRange.parse(text)


def test_a_plan_is_built_without_a_gpu(rtx: Flavour) -> None:
    plan = build(rtx)
    assert len(plan.data) > 10_000
    assert plan.flavour == "rtx"
    assert plan.version == rtx.version
    assert plan.target == "portable"
    assert plan.seconds > 0
    assert plan.profiles == (ONE,)
    assert not plan.tf32
    assert plan.log == []
    assert "data" not in repr(plan)


class Spy:
    """Keeps the configurations and network flags that a build used."""

    def __init__(self, flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configs: list[Any] = []
        self.network_flags: list[int] = []
        spy, builder = self, flavour.trt.Builder

        class Builder(builder):  # type: ignore[misc, valid-type]
            def create_builder_config(self) -> Any:
                spy.configs.append(super().create_builder_config())
                return spy.configs[-1]

            def create_network(self, flags: int) -> Any:
                spy.network_flags.append(flags)
                return super().create_network(flags)

        monkeypatch.setattr(flavour.module, "Builder", Builder)


@pytest.mark.parametrize(("target", "count"), [(None, 0), ("portable", 0), ("sm_75", 1), ("sm_120", 1)])
@pytest.mark.parametrize("tf32", [False, True])
def test_options_reach_tensorrt(
    rtx: Flavour, monkeypatch: pytest.MonkeyPatch, target: str | None, count: int, tf32: bool
) -> None:
    spy = Spy(rtx, monkeypatch)
    plan = build(rtx, target=target, tf32=tf32)
    trt = rtx.trt
    (config,) = spy.configs
    assert spy.network_flags == [1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]
    assert config.get_flag(trt.BuilderFlag.TF32) is tf32
    assert config.num_compute_capabilities == count
    if target is not None and count:
        assert config.get_compute_capability(0).name == target.upper().replace("_", "")
    assert config.num_optimization_profiles == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert plan.tf32 is tf32
    assert plan.target == (target or "portable")


def test_targets_and_types_make_other_plans(rtx: Flavour) -> None:
    source = fold_batch_norm(small_centernet())
    # Two builds of one graph have the same length; a few of their bytes (internal names) differ.
    fp32 = build(rtx)
    assert len(build(rtx).data) == len(fp32.data)
    assert len(build(rtx, target="sm_120").data) != len(fp32.data)
    half = build_plan(to_fp16(source).model, "x", [ONE], flavour=rtx)
    assert len(half.data) != len(fp32.data)


def test_fixed_sizes_must_agree_with_the_profile(rtx: Flavour) -> None:
    dynamic = make_dynamic(fold_batch_norm(small_centernet()), "x", size=True)
    wide = input_profile("1:2:4", "16:32:64")
    assert build_plan(dynamic, "x", [wide], flavour=rtx).profiles == (wide,)
    with pytest.raises(ModelError, match="fixes the height of 'x' to 16, the profile has 16:32:64"):
        build(rtx, profile=wide)
    with pytest.raises(InputError, match="expected at least one profile, got none"):
        build_plan(dynamic, "x", [], flavour=rtx)
    with pytest.raises(ModelError, match="no input 'y'"):
        build_plan(dynamic, "y", [ONE], flavour=rtx)
    both = model([Node("Add", ["x", "z"], ["y"])], ["y"], inputs={"x": [1, 3, 4, 4], "z": [1, 3, 4, 4]})
    with pytest.raises(ModelError, match="inputs besides 'x': z"):
        build_plan(both, "x", [ONE], flavour=rtx)


def test_parser_errors_name_every_node(rtx: Flavour) -> None:
    nodes = [
        Node("Odd", ["x"], ["a"], name="first", domain="mine"),
        Node("Strange", ["a"], ["y"], name="second", domain="mine"),
    ]
    with pytest.raises(BackendError) as caught:
        build_plan(model(nodes, ["y"], domains=["mine"]), "x", [ONE], flavour=rtx)
    # The parser stops at the first node that it cannot import, or lists them all: what it has, we show.
    assert "node first (Odd)" in caught.value.message
    assert "Plugin not found" in caught.value.message


def test_a_refused_build_carries_the_log(rtx: Flavour) -> None:
    # A dynamic batch into a fixed reshape: it parses, but no batch above 1 can be built.
    nodes = [Node("Reshape", ["x", "s"], ["y"], name="baked")]
    source = model(nodes, ["y"], {"s": np.array([1, 3, 16, 16])})
    with pytest.raises(BackendError) as caught:
        build_plan(source, "x", [input_profile("2:2:4", "16")], flavour=rtx)
    assert "cannot build the plan" in caught.value.message
    assert "[ERROR]" in caught.value.message
    assert "Thread context" not in caught.value.message


def test_large_models_are_parsed_from_a_file(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(rtx).data
    monkeypatch.setattr("centernet_trt.builder.graph.shapes.PROTOBUF_LIMIT", 1000)
    assert len(build(rtx).data) == len(expected)


def test_progress_is_reported(rtx: Flavour) -> None:
    seen: list[tuple[str, int, int]] = []
    build(rtx, progress=lambda *step: seen.append(step))
    totals = {phase: total for phase, done, total in seen}
    assert "Building engine" in totals
    assert all(0 <= done <= total for _, done, total in seen)
    assert ("Building engine", 0, totals["Building engine"]) in seen


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_in_progress_cancels_the_build(rtx: Flavour, error: BaseException) -> None:
    calls = 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error

    with trt_log.capture() as lines, pytest.raises(type(error)) as caught:
        build(rtx, progress=progress)
    assert caught.value is error
    assert calls == 5
    assert any("BuildCanceled" in text for _, text in lines)


def test_ctrl_c_cancels_the_build(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(rtx, progress=progress)

    # The same where it arrives while TensorRT logs, with no progress asked for.
    original, armed = trt_log._deliver, [True]

    def deliver(severity: str, text: str) -> None:
        original(severity, text)
        if armed and "Graph construction" in text:
            armed.clear()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trt_log, "_deliver", deliver)
    with pytest.raises(KeyboardInterrupt):
        build(rtx)
    assert not armed
    monkeypatch.undo()
    assert len(build(rtx).data) > 10_000


def test_captures_nest_and_belong_to_their_thread(rtx: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    logger = trt_log.logger_for(rtx.module)
    assert trt_log.logger_for(rtx.module) is logger
    severity = rtx.trt.ILogger.Severity
    inside = threading.Event()
    done = threading.Event()
    other: list[trt_log.LogLine] = []

    def work() -> None:
        with trt_log.capture() as lines:
            inside.set()
            done.wait(10)
            logger.log(severity.ERROR, "theirs")
        other.extend(lines)

    thread = threading.Thread(target=work)
    with caplog.at_level(logging.DEBUG, "centernet_trt.tensorrt"), trt_log.capture() as outer:
        thread.start()
        assert inside.wait(10)
        with trt_log.capture() as inner:
            logger.log(severity.WARNING, "mine")
        logger.log(severity.INFO, "after")
        done.set()
        thread.join()
        # Only one capture is open now: a thread of TensorRT's own has no other place to go.
        worker = threading.Thread(target=logger.log, args=(severity.VERBOSE, "worker"))
        worker.start()
        worker.join()
    logger.log(severity.ERROR, "nobody listens")
    assert inner == [("WARNING", "mine")]
    assert outer == [("WARNING", "mine"), ("INFO", "after"), ("VERBOSE", "worker")]
    assert other == [("ERROR", "theirs")]
    assert trt_log.important(outer) == ["[WARNING] mine"]
    levels = {record.message: record.levelno for record in caplog.records}
    assert levels["mine"] == logging.WARNING
    assert levels["theirs"] == logging.ERROR


def test_a_failing_log_handler_does_not_reach_tensorrt(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(severity: str, text: str) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(trt_log, "_deliver", broken)
    assert len(build(rtx).data) > 10_000


def test_another_librarys_logger_is_told(rtx: Flavour) -> None:
    code = """
import numpy as np
import tensorrt_rtx as trt
from centernet_trt.errors import BackendError
first = trt.Logger(trt.Logger.INTERNAL_ERROR)
keep = trt.Builder(first)
from helpers.input_profiles import input_profile
from helpers.onnx_graphs import Node, model
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.runtime.trt.flavours import load_flavour
source = model([Node("Reshape", ["x", "s"], ["y"])], ["y"], {"s": np.array([1, 3, 16, 16])})
try:
    build_plan(source, "x", [input_profile("2:2:4", "16")], flavour=load_flavour("rtx"))
except BackendError as error:
    print(error)
source = model([Node("Relu", ["x"], ["y"])], ["y"])
print(build_plan(source, "x", [input_profile("2:2:4", "16")], flavour=load_flavour("rtx")).log)
"""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=True)
    error, log = done.stdout.split("hint:")
    assert "cannot build the plan" in error
    assert "differs from one already registered" in error
    assert "differs from one already registered" in log


class FullTensorRT(ModuleType):
    """RTX under the name of full TensorRT, without what only RTX has and what TensorRT 11 removed."""

    __version__ = "11.0.0"

    def __init__(self, real: Any) -> None:
        super().__init__("tensorrt")
        self.real = real
        self.plugins = 0
        self.Builder = builder_with_timings(real)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> None:
        self.plugins += 1

    def __getattr__(self, name: str) -> Any:
        if name in ("ComputeCapability", "IInt8EntropyCalibrator2"):
            raise AttributeError(name)
        return getattr(self.real, name)


def test_the_same_code_serves_full_tensorrt(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FullTensorRT(rtx.module)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    # Both names are one library here, and it has one logger.
    monkeypatch.setitem(trt_log._loggers, "tensorrt", trt_log.logger_for(rtx.module))
    flavour = load_flavour("tensorrt")
    monkeypatch.setattr(flavours, "gpu_count", lambda: 0)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        build(flavour)
    monkeypatch.setattr(flavours, "gpu_count", lambda: 1)
    plan = build(flavour)
    assert (plan.flavour, plan.version, plan.target) == ("tensorrt", "11.0.0", "current")
    assert module.plugins == 1
    # Apart from RTX's own flags it is the same build.
    assert len(plan.data) == len(build(replace(rtx, build_flags=())).data)


def test_a_builder_that_does_not_start(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(logger: Any) -> None:
        logger.log(rtx.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = FullTensorRT(rtx.module)
    monkeypatch.setattr(module, "Builder", dead)
    flavour = replace(rtx, module=module)
    monkeypatch.setitem(trt_log._loggers, "tensorrt", trt_log.logger_for(rtx.module))
    with pytest.raises(BackendError, match=r"(?s)does not start.*CUDA initialization failure"):
        build(flavour)


def test_unknown_targets_are_refused_before_anything_runs(rtx: Flavour) -> None:
    with pytest.raises(BackendError, match="unknown target"):
        build(rtx, target="sm_1")
