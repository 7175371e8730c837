import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from centernet_trt.builder.export.export import architecture_names, export_model, random_weights
from centernet_trt.builder.export.registry import ALIASES, ARCHITECTURES, architecture
from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv
from centernet_trt.errors import ModelError
from centernet_trt.runtime.presets import preset

Array = NDArray[Any]

REFERENCES = (
    "res_18",
    "res_50",
    "resdcn_18",
    "resdcn_101",
    "dla_34",
    "mmdet_r18",
    "mmdet_r18_dcnv2",
    pytest.param("hourglass", marks=pytest.mark.slow),
)
# Trained parameters in millions; those of the two seed ResNets are published (15.820 and 14.22).
PARAMETERS = {
    "res_18": 15.820,
    "res_50": 34.443,
    "resdcn_18": 14.437,
    "resdcn_101": 49.673,
    "dla_34": 19.676,
    "hourglass": 191.284,
    "mmdet_r18": 14.219,
    "mmdet_r18_dcnv2": 14.437,
}


def run(model: ModelProto, image: Array, names: list[str] | None = None) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = names or [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(x) for x in session.run(names, {"input": image})), strict=True))


def error(found: Array, wanted: Array) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@cache
def _seeded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def seeded(shared: Path) -> ModuleType:
    return _seeded(shared / "reference" / "seeded.py")


Weights = Callable[..., dict[str, Array]]


@pytest.fixture(scope="session")
def weights(seeded: ModuleType) -> Weights:
    def make(name: str, **options: Any) -> dict[str, Array]:
        shapes = architecture(name).network(**options).parameters
        return {key: seeded.tensor(key, shape, 1) for key, shape in shapes.items()}

    return make


def small(name: str, **options: Any) -> ModelProto:
    return export_model(name, None, classes=4, **options)


@pytest.mark.shared
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_tensors_are_those_of_the_public_checkpoints(shared: Path, name: str) -> None:
    listed = json.loads((shared / "reference" / f"{name}.params.json").read_text())
    assert ARCHITECTURES[name].network().parameters == {key: tuple(shape) for key, shape in listed.items()}


@pytest.mark.shared
@pytest.mark.parametrize("name", REFERENCES)
def test_the_outputs_are_pytorchs(shared: Path, seeded: ModuleType, weights: Weights, name: str) -> None:
    wanted = np.load(shared / "reference" / f"{name}.seed1.npz")
    model = export_model(name, weights(name))
    image = seeded.image(1, 128)
    found = run(model, image)
    assert list(found) == list(wanted)
    for head, value in wanted.items():
        assert error(found[head], value) < 1e-5, head
    lowered = lower_deform_conv(export_model(name, weights(name), fold_bn=True))
    assert not {"BatchNormalization", "DeformConv"} & {node.op_type for node in lowered.graph.node}
    for head, value in run(lowered, image).items():
        assert error(value, wanted[head]) < 1e-5, f"{head}, lowered and folded"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    shapes = ARCHITECTURES[name].network().parameters
    learnt = sum(int(np.prod(s)) for key, s in shapes.items() if "running_" not in key)
    assert round(learnt / 1e6, 3) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in architecture_names() if name != "hourglass"])
def test_outputs_have_the_names_and_channels_of_the_preset(name: str) -> None:
    arch = ARCHITECTURES[name]
    heads = preset(arch.preset).heads
    network = arch.network()
    assert {head.name for head in network.outputs} == set(heads.tensors)
    wanted = heads.channels() | {heads.heatmap.tensor: 80}
    assert {head.name: head.channels for head in network.outputs} == wanted
    size = preset(arch.preset).input.size
    assert size.rule == "pad"
    assert size.multiple == arch.multiple


@pytest.mark.parametrize("name", ["res_18", "resdcn_18", "dla_34", "mmdet_r18_dcnv2"])
def test_any_batch_and_size(name: str) -> None:
    model = lower_deform_conv(small(name))
    rng = np.random.default_rng(0)
    heads = [head.name for head in ARCHITECTURES[name].network(4).outputs]
    for height, width in ((32, 96), (160, 64)):
        images = rng.normal(size=(2, 3, height, width)).astype(np.float32)
        both = run(model, images)
        assert list(both) == heads
        for index in range(2):
            for head, value in run(model, images[index : index + 1]).items():
                assert value.shape[2:] == (height // 4, width // 4)
                assert error(both[head][index : index + 1], value) < 1e-5


def test_a_constant_image_gives_constant_heads_far_from_the_border() -> None:
    # The same network at twice the size: what it says in the middle must not depend on the size.
    model = small("res_18")
    middles = []
    for size in (1024, 1152):
        found = run(model, np.full((1, 3, size, size), 0.5, np.float32), ["hm"])["hm"]
        middle = size // 8
        middles.append(found[:, :, middle - 8 : middle + 8, middle - 8 : middle + 8])
    assert error(middles[0], middles[1]) < 1e-3


@pytest.mark.slow
def test_hourglass_at_another_size_and_batch() -> None:
    model = small("hourglass")
    images = np.random.default_rng(0).normal(size=(2, 3, 128, 256)).astype(np.float32)
    both = run(model, images)
    assert both["hm"].shape == (2, 4, 32, 64)
    alone = run(model, images[1:])
    assert all(error(both[head][1:], alone[head]) < 1e-4 for head in alone)


def test_heads_can_be_changed_and_added() -> None:
    heads = {"wh": 4, "hps": 34}
    network = ARCHITECTURES["res_18"].network(20, heads, 32)
    assert {head.name: head.channels for head in network.outputs} == {"hm": 20, "wh": 4, "reg": 2, "hps": 34}
    assert network.parameters["hps.0.weight"] == (32, 256, 3, 3)
    assert network.parameters["hm.2.weight"] == (20, 32, 1, 1)
    model = export_model("res_18", None, classes=20, heads=heads, head_conv=32)
    found = run(model, np.zeros((1, 3, 64, 64), np.float32))
    assert {name: value.shape[1] for name, value in found.items()} == {"hm": 20, "wh": 4, "reg": 2, "hps": 34}


def test_a_head_of_no_channels_is_left_out() -> None:
    network = ARCHITECTURES["hourglass"].network(heads={"reg": 0, "hps": 34})
    assert {head.name: head.channels for head in network.outputs} == {"hm": 80, "wh": 2, "hps": 34}
    assert not any(name.startswith("reg.") for name in network.parameters)
    with pytest.raises(ModelError, match="at least one channel per head"):
        ARCHITECTURES["res_18"].network(classes=0)


def test_heads_without_a_middle_layer() -> None:
    network = ARCHITECTURES["resdcn_18"].network(head_conv=0)
    assert network.parameters["hm.weight"] == (80, 64, 1, 1)
    model = export_model("resdcn_18", None, head_conv=0)
    assert run(model, np.zeros((1, 3, 32, 32), np.float32))["hm"].shape == (1, 80, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 0}, "at least one channel per head"),
        ({"heads": {"wh": 0}}, "at least one channel per head"),
        ({"heads": {"wh": -1}}, "at least one channel per head"),
        ({"heads": {"hps": 34}}, "cannot have the head hps"),
        ({"head_conv": 0}, "expected a positive head_conv, got 0"),
    ],
)
def test_heads_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        export_model("mmdet_r18", None, **options)


def test_aliases_and_unknown_names() -> None:
    for alias, name in ALIASES.items():
        assert architecture(alias) is ARCHITECTURES[name]
    assert architecture("RES_18").name == "res_18"
    with pytest.raises(ModelError, match="did you mean resdcn_18") as caught:
        architecture("resdcn18")
    assert "hourglass" in caught.value.hint
    with pytest.raises(ModelError, match="unknown architecture 'yolo'"):
        export_model("yolo", None)


@pytest.mark.parametrize("name", ["res_101", "dla_34", "resdcn_101"])
def test_random_weights_keep_every_head_finite_and_alive(name: str) -> None:
    found = run(small(name), np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    for value in found.values():
        assert np.isfinite(value).all()
        assert 1e-3 < value.std() < 1e3


def test_random_weights_are_the_same_every_time() -> None:
    shapes = ARCHITECTURES["res_18"].network().parameters
    first, second, other = random_weights(shapes), random_weights(shapes), random_weights(shapes, seed=1)
    assert all((first[key] == second[key]).all() for key in shapes)
    assert not (first["conv1.weight"] == other["conv1.weight"]).any()


# Multiply-adds: the seed's table says 13.14 G for mmdet_r18 and 90.016 G for res_18, at 512 x 512.


def test_multiply_adds() -> None:
    counted = count_complexity(export_model("mmdet_r18", None), 512, 512)
    assert round(counted.parameters / 1e6, 3) == 14.219
    assert round(counted.multiply_adds / 1e9, 3) == 13.086
    # The counter of mmcv adds biases, pooling inputs, ReLU, and batch norm twice (scale and shift).
    assert round(counted.mmcv_flops / 1e9, 2) == 13.14
    official = count_complexity(export_model("res_18", None), 512, 512)
    assert round(official.parameters / 1e6, 3) == 15.820
    assert round(official.multiply_adds / 1e9, 3) == 22.716
    assert round(official.output_convention / 1e9, 3) == 40.433


def test_multiply_adds_of_one_layer_of_each_kind() -> None:
    model = export_model("resdcn_18", None)
    whole = count_complexity(model, 64, 64).multiply_adds
    assert count_complexity(model, 64, 128).multiply_adds == 2 * whole
    assert count_complexity(lower_deform_conv(model), 64, 64).multiply_adds == whole
    folded = export_model("resdcn_18", None, fold_bn=True)
    assert count_complexity(folded, 64, 64).multiply_adds == whole
