"""From a checkpoint file to boxes through the public commands, held to ONNX Runtime and the official arithmetic.

The checkpoint is written by torch.save where PyTorch is installed, and everywhere by our own writer of its format.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.official_pipeline import official_detections, official_input
from helpers.pth_writer import tensor, write_legacy, write_pth
from numpy.typing import NDArray

from centernet_trt.builder.export.export import random_weights
from centernet_trt.builder.export.registry import ARCHITECTURES
from centernet_trt.calib_data import FOLDER

Array = NDArray[Any]

# The official score is compared in float64; the bundle's graph is the same network with its batch norms folded.
SCORE = 1e-6
PIXELS = 1e-3
FLAVOUR = "rtx" if importlib.util.find_spec("tensorrt_rtx") else "none"


def command(*words: object) -> str:
    line = [sys.executable, "-m", "centernet_trt.cli", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def picture(folder: Path) -> Path:
    """150 x 201 pixels, so that both sides are padded, one of them unevenly."""
    image = cv2.imread(str(FOLDER / "coffee.jpg"))
    path = folder / "coffee.png"
    assert cv2.imwrite(str(path), cv2.resize(image, (201, 150), interpolation=cv2.INTER_AREA))
    return path


def run(model: Path, image: Array) -> dict[str, Array]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(x) for x in session.run(names, {"input": image})), strict=True))


def detect(arch: str, checkpoint: Path, folder: Path) -> tuple[Array, Array]:
    """(N, 6) rows of the commands and of the oracle, from one checkpoint and one picture."""
    model, bundle, boxes, source = folder / "m.onnx", folder / "bundle", folder / "b.json", picture(folder)
    command("export", "--arch", arch, "--weights", checkpoint, "-o", model)
    ranges = ["--batch", "1", "--height", "128:160:192", "--width", "128:224:256"]
    build = ["build", arch, "--model", model, "-o", bundle, "--precision", "fp32", "--flavour", FLAVOUR]
    command(*build, *ranges)
    assert len(json.loads((bundle / "manifest.json").read_text())["plans"]) == (FLAVOUR == "rtx")
    command("detect", bundle, source, "--threshold", "0", "--backend", "onnxruntime", "--json", boxes)
    (row,) = json.loads(boxes.read_text())
    found = [[*one["box"], one["score"], one["label"]] for one in row["detections"]]
    image = cv2.imread(str(source))
    wanted = official_detections(run(model, official_input(image)), image)
    return np.array(found), wanted


def assert_same(found: Array, wanted: Array) -> None:
    """Equal rows in any order of near-equal scores; the last ones may differ where their scores meet."""
    assert found.shape == wanted.shape == (100, 6)
    # Sizes vary widely with random weights: a wrong row would not be near by chance.
    assert np.unique(wanted[:, :4].round(1), axis=0).shape[0] > 90
    np.testing.assert_allclose(found[:, 4], wanted[:, 4], rtol=0, atol=SCORE)
    for rows, others in ((found, wanted), (wanted, found)):
        for row in rows[rows[:, 4] > rows[-1, 4] + 2 * SCORE]:
            limit = PIXELS + 1e-5 * np.abs(row[:4]).max()
            near = (np.abs(others[:, :4] - row[:4]).max(axis=1) < limit) & (others[:, 5] == row[5])
            assert (np.abs(others[near, 4] - row[4]) < SCORE).any(), row


@pytest.mark.parametrize(
    ("arch", "write"),
    [
        ("res_18", write_pth),
        pytest.param("res_18", write_legacy, marks=pytest.mark.slow),
        pytest.param("dla_34", write_pth, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_becomes_boxes(tmp_path: Path, arch: str, write: Any) -> None:
    values = random_weights(ARCHITECTURES[arch].network().parameters)
    state = {f"module.{name}": tensor(value) for name, value in values.items()}
    checkpoint = write(tmp_path / "model_best.pth", {"epoch": 140, "state_dict": state})
    assert_same(*detect(arch, checkpoint, tmp_path))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("arch", ["res_18", "dla_34"])
def test_a_checkpoint_saved_by_torch_becomes_boxes(
    tmp_path: Path, shared: Path, arch: str, zipped: bool
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is no dependency")
    spec = importlib.util.spec_from_file_location("seeded", shared / "reference" / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    shapes = ARCHITECTURES[arch].network().parameters
    state = {f"module.{n}": torch.from_numpy(seeded.tensor(n, s, 1)) for n, s in shapes.items()}
    checkpoint = tmp_path / "model_best.pth"
    torch.save({"epoch": 140, "state_dict": state}, checkpoint, _use_new_zipfile_serialization=zipped)
    assert_same(*detect(arch, checkpoint, tmp_path))
    # The exported graph is the network of the stored PyTorch outputs too.
    reference = np.load(shared / "reference" / f"{arch}.seed1.npz")
    for name, value in run(tmp_path / "m.onnx", seeded.image(1, 128)).items():
        assert np.abs(value - reference[name]).max() < 1e-4 * np.abs(reference[name]).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["res_18", "mmdet_r18_dcnv2", "dla_34"])
def test_int8_of_every_layer(tmp_path: Path, arch: str) -> None:
    """Layers that stand for deformable convolutions are calibrated too: their tensors exist only after lowering."""
    images, bundle, model = tmp_path / "images", tmp_path / "int8", tmp_path / "m.onnx"
    images.mkdir()
    whole = cv2.imread(str(picture(tmp_path)))
    for shift in range(4):  # the fewest that calibration takes
        assert cv2.imwrite(str(images / f"{shift}.png"), np.roll(whole, 40 * shift, axis=1))
    command("export", "--arch", arch, "--random", "-o", model)
    build = ["build", arch, "--model", model, "-o", bundle, "--precision", "int8", "--flavour", FLAVOUR]
    sizes = ["--batch", "1", "--height", "128:160:192", "--width", "128:224:256"]
    command(*build, *sizes, "--calibration", images, "--every-layer")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert len(manifest["plans"]) == (FLAVOUR == "rtx")
    assert manifest["calibration"]["int8_share"] > 0.9
    # The plan's parser met deformable convolutions in standard operators; without a plan they stay as they are.
    kinds = {node.op_type for node in onnx.load(bundle / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert ("GridSample" in kinds) == (FLAVOUR == "rtx" and arch != "res_18")
