"""The network's tensors among whatever else a checkpoint has: prefixes, other networks, optimisers, averaged weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import BOTH, Array, Write, equal, parts, save_safetensors, select, weights
from helpers.pth_writer import Raw, call, tensor, write_pth

from centernet_trt.errors import ModelError


def network(factor: float = 1) -> dict[str, Array]:
    """Weights of a small network; a factor makes other ones."""
    rng = np.random.default_rng(3)
    shapes = {"conv1.weight": (4, 3, 3, 3), "layer1.0.conv.weight": (4, 4, 1, 1), "hm.2.bias": (3,)}
    norm = {f"layer1.0.bn.{leaf}": (4,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {
        name: (factor * rng.normal(size=shape)).astype(np.float32)
        for name, shape in {**shapes, **norm}.items()
    }


def adam(values: dict[str, Array]) -> dict[str, Any]:
    moments = {
        str(index): {"exp_avg": tensor(value), "step": tensor(np.array(3.0))}
        for index, value in enumerate(values.values())
    }
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(range(len(values)))}]}


def fails(path: Path, *said: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        select(path, network(), **options)
    for words in said:
        assert words in f"{caught.value} {caught.value.hint}", caught.value
    return caught.value


@BOTH
@pytest.mark.parametrize("prefix", ["", "net.", "detector.model.", "a.b.c.d.", "module.student_net."])
@pytest.mark.parametrize("keys", [(), ("weights",), ("checkpoint", "best")])
def test_any_prefix_below_any_keys(tmp_path: Path, write: Write, prefix: str, keys: tuple[str, ...]) -> None:
    value: Any = parts(network(), prefix)
    for key in reversed(keys):
        value = {key: value, "epoch": 3}
    selected = select(write(tmp_path / "a.pth", value), network())
    equal(selected.tensors, network())
    assert selected.prefix == "".join(f"{key}." for key in keys) + prefix


@BOTH
def test_a_list_and_nested_children(tmp_path: Path, write: Write) -> None:
    equal(select(write(tmp_path / "a.pth", [3, parts(network())]), network()).tensors, network())
    children: dict[str, dict[str, Any]] = {}
    for name, value in network().items():
        child, _, rest = name.partition(".")
        children.setdefault(child, {})[rest] = tensor(value)
    equal(select(write(tmp_path / "b.pth", {"model": children}), network()).tensors, network())


@BOTH
def test_what_is_beside_the_network_is_left_out_and_listed(tmp_path: Path, write: Write) -> None:
    value = {
        "state_dict": {
            **parts(network(), "model."),
            "criterion.weight": tensor(np.ones(3, np.float32)),
            "metric.scores": tensor(np.zeros(1, np.float32)),
        },
        "optimizer_states": [adam(network())],
        "callbacks": {"best": {"score": tensor(np.array(0.3))}},
        "args": call("argparse", "Namespace"),
        "config": call("somewhere.settings", "Config"),
    }
    selected = select(write(tmp_path / "a.ckpt", value), network())
    equal(selected.tensors, network())
    assert "7 tensors under 'state_dict.model.' of a.ckpt" in selected.summary
    for left in (
        "state_dict.criterion (1)",
        "state_dict.metric (1)",
        "optimizer_states (14)",
        "callbacks (1)",
    ):
        assert left in selected.summary
    assert "args" not in selected.summary


def test_an_optimiser_in_the_same_dictionary_as_the_tensors(tmp_path: Path) -> None:
    value = {**parts(network()), "optimizer": adam(network()), "other": {"conv9.weight": tensor(np.ones(2))}}
    equal(select(write_pth(tmp_path / "a.pth", value), network()).tensors, network())


def test_a_layer_that_the_network_lacks_is_not_left_out_in_silence(tmp_path: Path) -> None:
    value = {"model": {**parts(network()), "extra.weight": tensor(np.ones(2, np.float32))}}
    assert "extra.weight" in select(write_pth(tmp_path / "a.pth", value), network()).tensors


# Several sets of tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("model.student.", "model.teacher."), ("state_dict.", "best."), ("", "teacher."), ("a.net.", "b.net.")],
)
def test_several_that_fit_are_listed_and_one_can_be_chosen(tmp_path: Path, first: str, second: str) -> None:
    path = save_safetensors(
        tmp_path / "a.safetensors",
        {
            prefix + name: ("F32", value)
            for prefix, factor in ((first, 1), (second, 2))
            for name, value in network(factor).items()
        },
    )
    fails(path, "2 sets of tensors fit tiny", f"--prefix {first or repr('')}", f"--prefix {second}")
    for prefix, factor in ((first, 1), (second, 2)):
        for spelling in {prefix, prefix.rstrip(".")}:
            selected = select(path, network(), prefix=spelling)
            equal(selected.tensors, network(factor))
            assert selected.prefix == prefix
    listed = second.partition(".")[0] if first != "model.student." else "model.teacher"
    assert f"{listed} (7)" in select(path, network(), prefix=first).summary


def test_the_last_parts_of_a_prefix_suffice_where_they_are_unambiguous(tmp_path: Path) -> None:
    value = {"a": parts(network(), "one.net."), "b": parts(network(2), "two.net.")}
    path = write_pth(tmp_path / "a.pth", value)
    equal(select(path, network(), prefix="two.net").tensors, network(2))
    fails(path, "2 sets of tensors fit", prefix="net")
    fails(path, "no tensor has a name that begins with 'three'", "'a.one.net.', 'b.two.net.'", prefix="three")


def test_equal_weights_under_two_keys_are_no_choice(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", {"model": parts(network()), "state_dict": parts(network())})
    selected = select(path, network())
    equal(selected.tensors, network())
    assert "the same weights are under 'state_dict.'" in selected.summary
    # The last of its tensors differs.
    changed = network()
    changed["layer1.0.bn.running_var"] = changed["layer1.0.bn.running_var"] + 1
    fails(write_pth(tmp_path / "b.pth", {"model": parts(network()), "x": parts(changed)}), "2 sets")


# Averaged weights --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("plain", "average", "prefix"),
    [
        ("model", "ema", ""),
        ("state_dict", "state_dict_ema", ""),
        ("net", "modelEma", "module."),
        ("state_dict", "swa_state_dict", "module."),
        ("params", "ema_model", "ema_model.module."),
        ("model", "averaged_model", ""),
    ],
)
def test_averages_are_offered_and_can_be_chosen(
    tmp_path: Path, write: Write, plain: str, average: str, prefix: str
) -> None:
    value = {
        average: {**parts(network(2), prefix), "n_averaged": tensor(np.array(5, np.int64))},
        plain: parts(network()),
    }
    path = write(tmp_path / "a.pth", value)
    selected = select(path, network())
    equal(selected.tensors, network())
    assert f"EMA weights are under '{average}.{prefix}': pass --ema to take them" in selected.summary
    selected = select(path, network(), averaged=True)
    equal({name: selected.tensors[name] for name in network()}, network(2))
    assert f"under '{average}.{prefix}' of a.pth, EMA weights" in selected.summary
    assert f"without --ema: the weights under '{plain}.'" in selected.summary


def test_an_average_alone_is_taken_and_said(tmp_path: Path) -> None:
    selected = select(write_pth(tmp_path / "a.pth", {"ema": parts(network()), "epoch": 3}), network())
    equal(selected.tensors, network())
    assert "EMA weights" in selected.summary


@pytest.mark.parametrize("key", ["schema", "cinema_net", "semantic", "shadow_detector"])
def test_words_that_only_look_like_an_average(tmp_path: Path, key: str) -> None:
    path = write_pth(tmp_path / "a.pth", {key: parts(network())})
    assert "EMA" not in select(path, network()).summary
    fails(path, "no EMA weights that fit tiny", f"under '{key}.' fit", averaged=True)


@pytest.mark.parametrize("joint", ["_", ""])
def test_averages_whose_names_have_lost_their_dots(tmp_path: Path, joint: str) -> None:
    prefix = "ema_" if joint else "model_ema."
    joined = {prefix + name.replace(".", joint): tensor(value) for name, value in network(2).items()}
    value = {"meta": {"mmcv_version": "1.7"}, "state_dict": {**parts(network()), **joined}}
    path = write_pth(tmp_path / "a.pth", value)
    selected = select(path, network())
    equal(selected.tensors, network())
    assert f"EMA weights are under 'state_dict.{prefix}'" in selected.summary
    assert "exchange the two on saving" in selected.summary
    equal(select(path, network(), averaged=True).tensors, network(2))
    equal(select(path, network(), prefix=prefix).tensors, network(2))


def test_an_average_without_statistics_takes_those_of_the_network(tmp_path: Path) -> None:
    average = {name: value for name, value in network(2).items() if "running" not in name}
    value = {"model": parts(network()), "ema": {"decay": 0.999, "shadow": parts(average)}}
    selected = select(write_pth(tmp_path / "a.pth", value), network(), averaged=True)
    statistics = {name: value for name, value in network().items() if "running" in name}
    equal(selected.tensors, {**average, **statistics})
    assert "its 2 batch-norm statistics from 'model.'" in selected.summary
    # Without the network there is nothing to take them from.
    found = select(write_pth(tmp_path / "b.pth", {"ema": parts(average)}), network(), averaged=True)
    assert found.tensors.keys() == average.keys()  # for the caller to refuse


def test_averages_that_are_objects_or_have_no_names(tmp_path: Path) -> None:
    module = call("models.networks", "Net")
    path = write_pth(tmp_path / "a.pth", {"model": parts(network()), "ema": module})
    equal(select(path, network()).tensors, network())
    fails(path, "['ema']: expected a state_dict, got a Python object of models.networks.Net", averaged=True)
    unnamed = {"shadow_params": [tensor(value) for value in network(2).values()]}
    path = write_pth(tmp_path / "b.pth", {"model": parts(network()), "ema": unnamed})
    fails(path, "the tensors under ema do not have its names", averaged=True)


# Types that cannot be read -----------------------------------------------------------------------------------------------


def test_sparse_quantised_and_numpy_tensors_are_named(tmp_path: Path) -> None:
    for module, function, said, advice in (
        ("torch._utils", "_rebuild_sparse_tensor", "'conv1.weight' (sparse)", "to_dense"),
        ("torch._utils", "_rebuild_qtensor", "'conv1.weight' (quantised)", "dequantize"),
        ("numpy.core.multiarray", "_reconstruct", "'conv1.weight' (a NumPy array)", "numpy.savez"),
        ("some.tool", "Packed", "'conv1.weight' (a Python object of some.tool.Packed)", "state_dict"),
    ):
        value = {"state_dict": {**parts(network()), "conv1.weight": call(module, function, 1)}}
        fails(write_pth(tmp_path / "a.pth", value), "1 tensor cannot be read", said, advice)


def float8(shape: tuple[int, ...]) -> Raw:
    """A float8 tensor: torch.save refers to its type by name, and to a storage of untyped bytes."""

    def number(value: int) -> bytes:
        return b"\x8a\x10" + value.to_bytes(16, "little")

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    key, place = b"X\x01\x00\x00\x00k", b"X\x03\x00\x00\x00cpu"
    size = number(int(np.prod(shape)))
    storage = b"(X\x07\x00\x00\x00storagectorch\nUntypedStorage\n" + key + place + size + b"tQ"
    rest = number(0) + numbers(shape) + numbers(strides) + b"\x89}ctorch\nfloat8_e4m3fn\n}"
    return Raw(b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + rest + b"tR")


def test_eight_bit_floats_are_named_with_advice(tmp_path: Path) -> None:
    value = {"state_dict": {**parts(network()), "hm.2.bias": float8((3,))}}
    path = write_pth(tmp_path / "a.pth", value)
    fails(path, "'hm.2.bias' (type float8_e4m3fn)", "8-bit floats need scales")
    stored = {
        name: ("F8_E5M2", np.zeros(value.shape, np.uint8)) if value.ndim == 4 else ("F32", value)
        for name, value in network().items()
    }
    path = save_safetensors(tmp_path / "a.safetensors", stored)
    fails(path, "2 tensors cannot be read: 'conv1.weight' (type F8_E5M2)", "8-bit floats need scales")
    # Beside the network they do not matter.
    value = {"net": parts(network()), "other": {"w": float8((3,))}}
    equal(select(write_pth(tmp_path / "b.pth", value), network()).tensors, network())


# Hostile files -----------------------------------------------------------------------------------------------------------


def test_containers_that_share_their_contents_to_any_number_are_refused(tmp_path: Path) -> None:
    # Each of eight levels is a list of 100 times the level below: 10**16 values in a few kilobytes.
    code = b"N"
    for level in range(8):
        code = b"](" + code + b"q" + bytes([level]) + (b"h" + bytes([level])) * 99 + b"e"
    fails(write_pth(tmp_path / "a.pth", {"x": Raw(code), **parts(network())}), "values: refused")


def test_a_dictionary_within_itself_ends(tmp_path: Path) -> None:
    looped = Raw(b"}q\x01(X\x04\x00\x00\x00selfh\x01u")
    value = {"loop": looped, "model": parts(weights())}
    equal(select(write_pth(tmp_path / "a.pth", value), weights()).tensors, weights())


def test_two_tensors_of_one_dotted_name_are_refused(tmp_path: Path) -> None:
    value = {"a": {"b": tensor(np.ones(1))}, "a.b": tensor(np.zeros(1))}
    fails(write_pth(tmp_path / "a.pth", value), "two tensors 'a.b'")


def test_names_and_keys_without_end(tmp_path: Path) -> None:
    names = {"." * 200_000: tensor(np.ones(1)), "ema" * 50_000: tensor(np.ones(1)), 10**30: 3}
    equal(
        select(write_pth(tmp_path / "a.pth", {"x": names, "y": parts(network())}), network()).tensors,
        network(),
    )
