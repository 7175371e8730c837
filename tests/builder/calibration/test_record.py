"""The calibration record and TensorRT's text cache: written, read, and refused when of something else."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from helpers.tiny_centernet import tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.builder.calibration.histogram import Histogram
from centernet_trt.builder.calibration.images import CalibrationImages, images_from
from centernet_trt.builder.calibration.record import (
    CalibrationRecord,
    Identity,
    format_cache,
    make_record,
    parse_cache,
    read_cache,
    read_record,
)
from centernet_trt.builder.calibration.thresholds import METHODS
from centernet_trt.errors import CalibrationError


def pictures(seed: int = 0) -> CalibrationImages:
    rng = np.random.default_rng(seed)
    return images_from([rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(5)])


def identity(seed: int = 0, images: CalibrationImages | None = None, scale: float = 1.0) -> Identity:
    spec = tiny_spec().input.model_copy(update={"scale": scale})
    return Identity.of(graphs.small_centernet(seed), spec, images or pictures())


def record() -> CalibrationRecord:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    histogram = Histogram(float(np.abs(values).max()))
    histogram.add(values)
    zeros = Histogram(0.0)
    zeros.add(np.zeros(10, np.float32))
    found = {"a/b:0": histogram, "dead": zeros}
    return make_record(identity(), found, {"a/b:0": np.array([0.5, -1.0])}, {"a/b:0": (0, 3)})


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    made = record()
    path = tmp_path / "calibration.json"
    path.write_text(made.to_json())
    assert read_record(path) == made
    assert json.loads(path.read_text())["schema"] == 1
    assert made.always_zero == ("dead",)
    tensor = made.tensors["a/b:0"]
    assert set(tensor.thresholds) == set(METHODS)
    assert sum(tensor.histogram) == 10_000
    assert (tensor.means, tensor.exponents) == ((0.5, -1.0), (0, 3))
    made.require(identity(), "it")


def test_a_record_of_an_earlier_build_is_read_without_its_retired_method(tmp_path: Path) -> None:
    made = record()
    data = json.loads(made.to_json())
    for tensor in data["tensors"].values():
        tensor["thresholds"]["entropy-as-published"] = 1.0
        tensor["signal_to_noise"]["entropy-as-published"] = None
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(data))
    assert read_record(path) == made
    data["tensors"]["dead"]["thresholds"]["guess"] = 1.0
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match=r"thresholds\.guess"):
        read_record(path)


def test_each_difference_is_named() -> None:
    images = pictures()
    base = identity(images=images)
    other = images.subset([0, 1, 2, 3])
    assert base.differences(identity(images=images)) == []
    assert "model" in "".join(base.differences(identity(seed=1, images=images)))
    assert "pre-processing" in "".join(base.differences(identity(images=images, scale=2.0)))
    (found,) = base.differences(identity(images=other))
    assert "5 then, 4 now" in found
    assert "image 4" in found
    everything = base.differences(identity(1, pictures(1), 2.0))
    assert len(everything) == 3
    with pytest.raises(CalibrationError, match=r"it was made from something else: the model .*; the images"):
        record().require(identity(1, pictures(1)), "it")


def test_the_order_of_images_is_no_difference() -> None:
    images = pictures()
    shuffled = images.subset([3, 1, 4, 0, 2])
    assert identity(images=images) == identity(images=shuffled)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "tensors": {}, "extra": 1}'])
def test_a_broken_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="not a calibration record"):
        read_record(path)


def test_a_missing_or_binary_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        read_record(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="not a calibration record"):
        read_record(tmp_path / "x.json")


# As TensorRT writes it: 0x3c010a14 is 0.00787593..., the scale of a tensor that reaches 1.0002.
TENSORRT = (
    "TRT-8601-EntropyCalibration2\nimages: 3c010a14\n(Unnamed Layer* 3) [Conv]_output: 3f800000\nin:0: 0\n"
)


def test_tensorrts_own_cache_is_read() -> None:
    cache = parse_cache(TENSORRT)
    assert cache.head == "TRT-8601-EntropyCalibration2"
    assert cache.scales["images"] == struct.unpack(">f", bytes.fromhex("3c010a14"))[0]
    assert cache.scales["images"] == pytest.approx(1.0002 / 127, rel=1e-4)
    assert cache.scales["(Unnamed Layer* 3) [Conv]_output"] == 1.0
    assert cache.scales["in:0"] == 0.0


@given(
    st.dictionaries(
        st.text("ab:/ _0", min_size=1).map(str.strip).filter(bool), st.floats(0, 2.0**100, width=32)
    )
)
def test_a_cache_survives_writing(scales: dict[str, float]) -> None:
    assert parse_cache(format_cache(scales)).scales == scales


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''"),
        ("images: 3c010a14\n", "TRT-<version>"),
        ("TRT-8601-EntropyCalibration2\nimages 3c010a14\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\n\nimages: 3c010a14ff\n", "line 3"),
        ("TRT-8601-EntropyCalibration2\nimages: bf800000\n", "scale of 'images' is -1.0"),
        ("TRT-8601-EntropyCalibration2\nimages: 7fc00000\n", "nan"),
    ],
)
def test_a_damaged_cache_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        parse_cache(text)


def test_a_missing_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        read_cache(tmp_path / "none")
