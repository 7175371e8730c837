"""The image input: layouts, channels, further inputs, and a normalisation inside the graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.head_graphs import SIDE, HeadGraph, f32

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.guess.spec import guess_spec
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.presets import preset, spec_from_mapping

FIXED = {
    "preset": "official",
    "class_names": ["a", "b", "c"],
    "category_ids": [],
    "input": {"name": "image", "size": {"rule": "fixed", "width": SIDE, "height": SIDE}, "resize": {"policy": "fix_res"}},
}  # fmt: skip


def network(channels: int = 3, before: Callable[[HeadGraph], str] | None = None) -> HeadGraph:
    graph = HeadGraph()
    if before is not None:
        graph.input = before(graph)
    graph.conv(graph.input, "features", (channels, 8), 4)
    graph.features = graph.add("Relu", ["features"], "features_relu")
    graph.head("hm", 3)
    return graph.sizes()


def turned(graph: HeadGraph) -> str:
    return graph.add("Transpose", ["image"], "turned", perm=[0, 3, 1, 2])


def refusals(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What the guess and a build with a spec raise."""
    onnx.save(model, folder / "model.onnx")
    messages = []
    for act in (
        lambda: guess_spec(model),
        *(
            lambda spec=spec: build(
                folder / "model.onnx",
                spec_from_mapping(spec),
                folder / "b",
                BuildOptions(flavour="none", precision="fp32"),
            )
            for spec in (FIXED, {**FIXED, "input": {**FIXED["input"], "name": None}})
        ),
    ):
        with pytest.raises(CenterNetError) as error:
            act()
        messages.append(f"{error.value.message} {error.value.hint}")
    return messages


@pytest.mark.parametrize("shape", [(1, SIDE, SIDE, 3), ("n", "h", "w", 3), ("n", "h", "w", "c"), ("n", None, None, None)])  # fmt: skip
def test_channels_last_is_named(shape: tuple[object, ...], tmp_path: Path) -> None:
    for message in refusals(network(before=turned).model(shape), tmp_path):
        assert "channels last (NHWC)" in message
        assert "--inputs-as-nchw" in message


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_are_named(channels: int, tmp_path: Path) -> None:
    for message in refusals(network(channels).model(("n", channels, SIDE, SIDE)), tmp_path):
        assert f"expected 3 channels, (N, 3, H, W), got {channels}" in message


def test_a_narrow_image_is_no_channels_last() -> None:
    graph = network()
    assert guess_spec(graph.model(("n", 3, "h", "w"))).require_spec().input.name == "image"


@pytest.mark.parametrize("others", [{"pre_img": 3}, {"pre_img": 3, "pre_hm": 1}])
def test_networks_with_further_inputs_are_refused(others: dict[str, int], tmp_path: Path) -> None:
    graph = HeadGraph()
    last = graph.conv("image", "stem", (3, 8), 4)
    for name, channels in others.items():
        graph.conv(name, f"{name}_stem", (channels, 8), 4)
        last = graph.add("Add", [last, f"{name}_stem"], f"{name}_sum")
    graph.features = last
    graph.head("hm", 3)
    inputs = {name: ("n", channels, SIDE, SIDE) for name, channels in others.items()}
    for message in refusals(graph.sizes().model(**inputs), tmp_path):
        assert ", ".join(others) in message
        assert "not supported" in message
        assert "name it in the spec" not in message


def test_inputs_that_only_the_decode_reads_are_no_matter() -> None:
    graph = network()
    graph.add("Mul", ["wh", "scale_factor"], "scaled")
    graph.output("scaled")
    spec = guess_spec(graph.model(scale_factor=("n", 1, 1, 1))).require_spec()
    assert spec.heads.tensors == ("hm", "wh", "reg")
    assert spec.input.name == "image"


OFFICIAL = preset("official").input
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalised(
    mean: object, std: object, scale: float = 1.0, flip: bool = False
) -> Callable[[HeadGraph], str]:
    def add(graph: HeadGraph) -> str:
        last = "image"
        if flip:
            last = graph.add("Gather", [last, np.array([2, 1, 0])], "flipped", axis=1)
        if scale != 1:
            last = graph.add("Mul", [last, f32(scale)], "unit")
        last = graph.add("Sub", [last, f32(mean).reshape(1, 3, 1, 1)], "centred")
        return graph.add("Div", [last, f32(std).reshape(1, 3, 1, 1)], "normalised")

    return add


@pytest.mark.parametrize(
    ("inner", "order", "scale"),
    [
        (normalised(OFFICIAL.mean, OFFICIAL.std), "bgr", 1 / 255),
        (normalised(OFFICIAL.mean, OFFICIAL.std, 1 / 255), "bgr", 1),
        (normalised(OFFICIAL.mean[::-1], OFFICIAL.std[::-1]), "rgb", 1 / 255),
        (normalised(*IMAGENET, 1 / 255), "rgb", 1),
        (normalised(*IMAGENET, 1 / 255, flip=True), "bgr", 1),
        (normalised(*(255 * f32(part) for part in IMAGENET)), "rgb", 1),
    ],
)
def test_public_statistics_inside_the_graph_are_not_applied_twice(
    inner: Callable[[HeadGraph], str], order: str, scale: float
) -> None:
    guess = guess_spec(network(before=inner).model())
    image = guess.require_spec().input
    assert (image.channel_order, image.mean, image.std) == (order, (0, 0, 0), (1, 1, 1))
    assert image.scale == pytest.approx(scale)
    assert "inside the graph" in guess.preprocessing


@pytest.mark.parametrize(
    "inner",
    [
        normalised((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        normalised((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        lambda graph: graph.add("Div", ["image", f32(255)], "unit"),
        lambda graph: graph.add("Gather", ["image", np.array([2, 1, 0])], "flipped", axis=1),
    ],
)
def test_other_statistics_inside_the_graph_are_asked_about(inner: Callable[[HeadGraph], str]) -> None:
    guess = guess_spec(network(before=inner).model())
    assert any(doubt.startswith("which pixels does the graph expect?") for doubt in guess.doubts)


def test_the_origin_of_the_pre_processing_is_stated() -> None:
    guess = guess_spec(network().model())
    assert guess.preprocessing == (
        "of preset official, assumed by the names of the heads: a graph does not state it"
    )
