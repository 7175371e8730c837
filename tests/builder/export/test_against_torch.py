"""Every seed network against a second one in PyTorch, at sizes, batches and class counts that the stored references lack.

PyTorch is no dependency: these tests are skipped where it is missing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from centernet_trt.builder.export.export import export_model, random_weights
from centernet_trt.builder.export.registry import ARCHITECTURES
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv

torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is no dependency")

Array = NDArray[Any]

# Deep stacks add up more rounding: the graph is float32, the oracle float64.
TOLERANCE = 1e-5
SMALL = ("res_18", "res_34", "res_50", "resdcn_18", "mmdet_r18", "mmdet_r18_dcnv2", "dla_34")
LARGE = ("res_101", "resdcn_101")
SIZES = ((2, 160, 96), (1, 32, 224))


def run(model: ModelProto, image: Array, names: list[str]) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(names, {"input": image})
    return dict(zip(names, (np.asarray(value) for value in found), strict=True))


def compare(name: str, batch: int, height: int, width: int) -> None:
    """The exported graph, and the one with folded batch norms and lowered deformable convolutions, 20 classes."""
    from helpers.torch_networks import relative_error, torch_heads

    weights = random_weights(ARCHITECTURES[name].network(20).parameters, seed=3)
    image = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
    wanted = torch_heads(name, weights, image)
    assert next(iter(wanted.values())).shape == (batch, 20, height // 4, width // 4)
    for fold in (False, True):
        model = export_model(name, weights, classes=20, fold_bn=fold)
        found = run(lower_deform_conv(model) if fold else model, image, list(wanted))
        for head, value in wanted.items():
            assert relative_error(found[head], value) < TOLERANCE, (head, fold)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_other_sizes_batches_and_classes(name: str, batch: int, height: int, width: int) -> None:
    compare(name, batch, height, width)


@pytest.mark.slow
def test_hourglass_at_another_size_and_batch() -> None:
    compare("hourglass", 2, 128, 256)


def test_a_checkpoint_saved_by_torch(tmp_path: Path) -> None:
    weights = random_weights(ARCHITECTURES["res_18"].network().parameters)
    path = tmp_path / "ctdet.pth"
    state = {f"module.{name}": torch.from_numpy(value) for name, value in weights.items()}
    for zipped in (True, False):
        torch.save({"epoch": 140, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
        assert export_model("res_18", path).graph == export_model("res_18", weights).graph
