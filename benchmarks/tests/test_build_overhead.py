import json
from pathlib import Path

import pytest
from build_overhead import Overhead, main, report
from helpers.tiny_centernet import save_tiny_model, tiny_spec


def test_what_is_compared_with_what() -> None:
    turns = [
        Overhead(3.3, {"a": 1.0, "b": 0.5}, 1.5),
        Overhead(2.0, {"a": 0.5, "b": 0.5}, 1.0),
        Overhead(6.0, {"a": 1.0, "b": 1.0, "c": 1.0}, 1.0),
    ]
    assert [turn.ratio for turn in turns] == pytest.approx([1.1, 1.0, 1.5])
    lines = report(turns).splitlines()
    assert [line.split()[-2] for line in lines[:-1]] == ["1.000", "0.500", "0.000", "1.500", "1.000", "3.300"]
    assert lines[-1].endswith("median 1.100, 1.000 to 1.500 of 3 turns")


def test_a_turn_of_the_real_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = save_tiny_model(tmp_path)
    (tmp_path / "spec.json").write_text(tiny_spec().model_dump_json())
    words = [str(model), "--spec", str(tmp_path / "spec.json"), "--turns", "1", "--precision", "fp32"]
    main([*words, "--json", str(tmp_path / "o.json")])
    (turn,) = json.loads((tmp_path / "o.json").read_text())["turns"]
    assert set(turn) == {"whole", "passes", "bare"}
    assert 0 < turn["bare"] < turn["whole"]
    assert sum(turn["passes"].values()) < turn["whole"]
    assert "TensorRT alone" in capsys.readouterr().out
