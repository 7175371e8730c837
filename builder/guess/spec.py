"""Guess the ModelSpec of a graph from the names, sizes and values of its heads: guess_spec."""

from typing import Any

from onnx import ModelProto

from centernet_trt.builder.guess.heads import find_candidates
from centernet_trt.builder.guess.image import (
    ImageInput,
    InnerNormalisation,
    image_input,
    inner_normalisation,
    sized_model,
)
from centernet_trt.builder.guess.result import Guess, describe
from centernet_trt.builder.guess.roles import choose_grid, find_roles
from centernet_trt.builder.guess.sizes import Sizes
from centernet_trt.errors import SpecError
from centernet_trt.runtime.presets import preset, spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["Guess", "describe", "guess_spec"]


def guess_spec(model: ModelProto) -> Guess:
    """Guess the spec of a graph.

    Args:
        model: the graph, as `builder.source.read_source` loads it.

    Returns:
        The heads found, the reasons, and the spec or the doubts that prevent it.

    Raises:
        ModelError: the graph's only input cannot be an image.
        SpecError: not exactly one input could be the image, the network reads further inputs, or no tensor could be a
            head.
    """
    image = image_input(model)
    sizes = Sizes(sized_model(model, image))
    guess = Guess(find_candidates(sizes))
    choose_grid(guess, *image.size)
    if not guess.candidates:
        raise SpecError(
            "no tensor of the graph could be a CenterNet head: none has a grid of input size / stride cells",
            "give the spec with --spec, and check that the graph is a CenterNet",
        )
    if not guess.doubts:
        find_roles(guess)
        _find_family(guess)
        _find_preprocessing(guess, inner_normalisation(sizes, image.name))
    if not guess.doubts:
        guess.spec = _make_spec(guess, image, inner_normalisation(sizes, image.name))
    return guess


def _find_family(guess: Guess) -> None:
    """Find the preset whose pre-processing and units belong to such heads."""
    heat, box, offset = (guess.roles.get(role) for role in ("heatmap", "box", "offset"))
    if heat is None or box is None:
        return
    words = frozenset().union(*(c.words for c in guess.candidates))
    names = frozenset().union(*(c.heads for c in guess.candidates))
    ten = [c for c in guess.extras if c.channels == 10]
    if names & {"id", "id_feature", "reid"} and offset is not None:
        guess.family = "fairmot"
        guess.reasons.append("heads called hm, wh, reg, id: FairMOT (RGB / 255; four distances are in cells)")
    elif "hps" in names:
        guess.family = "multi_pose"
        guess.reasons.append(
            "heads called hm, wh, hps, reg: the official code's multi_pose (BGR, its mean and std)"
        )
    elif heat.channels == 1 and len(ten) == 1 and offset is not None and box.channels == 2:
        guess.family = "centerface"
        sizes = "exponentials of their head" if box.exponential else "logarithms"
        guess.reasons.append(f"one class and 10 landmark channels: CenterFace; its sizes are {sizes}")
    elif box.channels == 4:
        _find_ltrb_family(guess)
    elif "heatmap" in words and "offset" in words:
        guess.family = "mmdet"
        guess.reasons.append("heads called heatmap, wh and offset: mmdetection (RGB, its mean and std)")
    elif words & {"hm", "wh", "reg"}:
        guess.family = "official"
        guess.reasons.append("heads called hm, wh, reg: the official code (BGR, its mean and std)")
    else:
        guess.doubts.append(
            "how is the image normalised, and in which units are the boxes? preset = official, mmdet, ..."
        )


def _find_ltrb_family(guess: Guess) -> None:
    """Four channels are distances in input pixels in one family and in cells in another."""
    box = guess.roles["box"]
    if "ltrb" in box.words and "offset" not in guess.roles:
        guess.family = "ttf-ltrb"
        guess.reasons.append("a 4-channel box head called ltrb: as in ttf-ltrb, distances in input pixels")
        return
    guess.doubts.append(
        f"what are the 4 channels of {box.tensor}? Distances to left, top, right, bottom in cells, as in FairMOT: "
        'preset = "fairmot", or [heads.box] encoding = "ltrb", units = "cells"; or in input pixels: '
        'preset = "ttf-ltrb", or units = "input". The width and height of each of 2 classes are not supported. '
        "Check the pre-processing of the preset, too"
    )


def _find_preprocessing(guess: Guess, inner: InnerNormalisation | None) -> None:
    """State where the pre-processing comes from; ask where the preset's would be applied twice."""
    if guess.family is None:
        return
    stated = preset(guess.family).input
    plain = stated.scale == 1 and set(stated.mean) == {0} and set(stated.std) == {1}
    guess.preprocessing = (
        f"of preset {guess.family}, assumed by the names of the heads: a graph does not state it"
    )
    if inner is None or plain:
        return
    if inner.order is not None:
        guess.preprocessing = (
            "order and scale by the mean and std inside the graph, which are not applied again"
        )
        return
    shown = ""
    if inner.gain is not None:
        gain, shift = ([round(value, 6) for value in values] for values in (inner.gain, inner.shift))
        shown = f", pixel * {gain} + {shift}"
    guess.doubts.append(
        f"which pixels does the graph expect? It normalises its input itself{shown}, so that of preset {guess.family} "
        'would come on top: [input] channel_order = "bgr" or "rgb", scale = 1.0 (0..255) or 0.00392156862745098 (0..1), '
        "mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0]"
    )


def _make_spec(guess: Guess, image: ImageInput, inner: InnerNormalisation | None) -> ModelSpec:
    heat, box, offset = guess.roles["heatmap"], guess.roles["box"], guess.roles.get("offset")
    data: dict[str, Any] = {"preset": guess.family, "stride": guess.stride, "input": {"name": image.name}}
    stated = preset(guess.family or "")
    if inner is not None and inner.order is not None and inner.scale is not None:
        zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        data["input"] |= {"channel_order": inner.order, "scale": inner.scale, "mean": zero, "std": one}
    # Logits rank like their scores and resolve more of them, above all in fp16: the sigmoid is left out.
    kind = "probability" if heat.activation == "probability" else "logits"
    if heat.logits is not None:
        guess.reasons.append(
            f"the sigmoid behind {heat.logits} is left out: the decode computes it for the survivors"
        )
    heads: dict[str, Any] = {
        "heatmap": {"tensor": heat.logits or heat.tensor, "activation": kind},
        "box": {"tensor": box.tensor},
    }
    if guess.family == "fairmot" and box.channels == 2:
        heads["box"]["encoding"] = "wh"
    if guess.family == "centerface" and box.exponential:
        heads["box"]["encoding"] = "wh"
    if offset is not None:
        heads["offset"] = {"tensor": offset.tensor}
    elif guess.family != "ttf-ltrb":
        heads["offset"] = None
        data["cell_offset"] = 0.5
        guess.reasons.append("no offset head: centres lie half a cell on, as the official decode has it")
    heads["extra"] = _extras(guess)
    data["heads"] = heads
    if heat.channels != len(stated.class_names):
        data |= {"class_names": [str(n) for n in range(heat.channels)], "category_ids": []}
        guess.reasons.append(f"{heat.channels} classes, unnamed: add class_names to a spec to name them")
    if image.fixed and guess.family not in ("mmdet", "centerface"):
        data["input"]["size"] = {"rule": "fixed", "height": image.size[0], "width": image.size[1]}
        if stated.input.resize.policy == "keep_res":
            data["input"]["resize"] = {"policy": "fix_res"}
        guess.reasons.append(
            f"the graph's input is {image.size[1]}x{image.size[0]} pixels: taken as its fixed size"
        )
    return spec_from_mapping(data, "the guessed spec")


def _extras(guess: Guess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for head in guess.extras:
        (called,) = head.heads if len(head.heads) == 1 else (head.tensor,)
        name = head.tensor if "/" not in head.tensor or any(e["name"] == called for e in found) else called
        if guess.family == "centerface" and head.channels == 10:
            shape = {"points": 5, "units": "box", "origin": "top_left", "order": "yx"}
            found.append({"kind": "points", "name": "landmarks", "tensor": head.tensor, **shape})
        elif guess.family == "multi_pose" and "hps" in head.heads and head.channels % 2 == 0:
            shape = {"points": head.channels // 2, "units": "cells", "origin": "cell"}
            found.append({"kind": "points", "name": name, "tensor": head.tensor, **shape})
        else:
            found.append({"kind": "raw", "name": name, "tensor": head.tensor, "channels": head.channels})
    return found
