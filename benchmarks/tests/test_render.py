"""The pages made of results: damaged ones are refused, and every part finds its place."""

import json
from pathlib import Path

import pytest
from kernel_tables import judge
from render import filled, performance
from rtx_probe import speed_table
from rtx_try import inspect_engine

from centernet_trt.errors import InputError


def test_a_part_needs_its_two_comments() -> None:
    page = "a\n<!-- x: measured -->\nold\n<!-- x: end -->\nb\n"
    assert filled(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(InputError, match="once each"):
        filled("a\n", "x", "new\n")


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        performance(tmp_path / "absent")
    (tmp_path / "gpu-x.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(InputError, match="its kind is 'other'"):
        performance(tmp_path)
    (tmp_path / "gpu-x.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a result"):
        performance(tmp_path)


def test_targets_are_judged_on_an_h100_alone() -> None:
    about = {"step": "decode", "shape": "80x128x128", "batch": 1, "cache": "warm", "who": "kernel"}
    rows = [about | {"form": "graph", "p50": 8e-6}, about | {"form": "alone", "p50": 12e-6}]
    rows += [about | {"form": "alone", "who": "PyTorch eager", "p50": 60e-6}]
    hopper = {"name": "NVIDIA H100", "compute_capability": [9, 0]}
    found = {row["target"]: row for row in judge(hopper, {"copy": 2e12}, rows)}
    assert found["decode, batch 1, in a graph, seconds"]["verdict"] == "met"
    assert found["decode, batch 1, in a graph, seconds (stretch)"]["verdict"] == "not met"
    eager = found["decode, batch 1: PyTorch eager / kernel"]
    assert (eager["found"], eager["verdict"]) == ("5", "not met")
    assert found["decode, batch 1: torch.compile / kernel"]["verdict"] == "not judged: not measured"
    other = judge({"name": "GeForce", "compute_capability": [8, 9]}, {"copy": 2e12}, rows)
    assert {row["verdict"] for row in other} == {"not judged: the targets are for an H100, this is GeForce"}
    standin = judge({"name": "stand-in", "compute_capability": [9, 0]}, {"copy": 2e12}, rows)
    assert all("STAND-IN" in row["verdict"] for row in standin)


def test_speeds_are_over_fp16_of_the_same_model_target_and_batch() -> None:
    base = {"bundle": "b", "target": "current", "source": "s", "reached": "done", "graph": {"refused": ""}}
    rows = [
        base | {"precision": "fp16", "batch": 1, "time": {"p50": 2e-3}},
        base | {"precision": "int8", "batch": 1, "time": {"p50": 1e-3}},
        base | {"precision": "int8", "batch": 8, "time": {"p50": 1e-3}},
    ]
    shown = [line.split(" | ")[-1].strip(" |") for line in speed_table(rows).markdown().splitlines()[2:]]
    assert shown == ["1.00", "2.00", "-"]


class Engine:
    """An engine whose inspector returns a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def create_engine_inspector(self) -> "Engine":
        return self

    def get_engine_information(self, form: object) -> str:
        return self.text


class Module:
    """TensorRT's, as far as the inspector needs it."""

    class LayerInformationFormat:
        JSON = 0


def test_int8_convolutions_are_those_that_read_int8() -> None:
    half = {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Half NHWC8"}]}
    int8 = {"Name": "x", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}
    other = {"Name": "relu", "LayerType": "PointWise", "Inputs": [{"Format/Datatype": "Int8 NCHW"}]}
    found = inspect_engine(Module, Engine(json.dumps({"Layers": [half, int8, other, "conv3"]})))
    assert (found["layers"], found["convolutions"], found["int8_convolutions"]) == (4, 3, 1)
    assert "problem" in inspect_engine(Module, Engine("no JSON"))
