"""Guess the ModelSpec of a graph from the names and shapes of its heads: guess_spec."""

from dataclasses import dataclass, field
from typing import Any, Literal

from onnx import ModelProto

from centernet_trt.builder.graph.io import find_image_input, set_input_size
from centernet_trt.builder.guess.heads import HeadCandidate, find_candidates
from centernet_trt.errors import CenterNetError, SpecError
from centernet_trt.runtime.presets import spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec

Role = Literal["heatmap", "box", "offset", "extra"]

# Words in the names of tensors, nodes and weights. `reg` is the offset in the official code and the size in CenterFace,
# so it counts as an offset only if nothing else is called one.
_WORDS: dict[str, frozenset[str]] = {
    "heatmap": frozenset({"hm", "heatmap", "heat", "cls", "pos"}),
    "box": frozenset({"wh", "size", "ltrb"}),
    "offset": frozenset({"off", "offset"}),
    "points": frozenset({"lm", "landmark", "landmarks", "hps", "kps", "keypoint", "keypoints"}),
}
_PROBE_SIDE = 512  # pixels; a graph of dynamic size is examined at this size


@dataclass
class Guess:
    """What was found in a graph, and what remains in doubt.

    Attributes:
        candidates: every tensor that could be a head.
        roles: which tensor is which head, as far as known.
        extras: heads besides heatmap, box and offset.
        family: the preset that the spec starts from; None if unknown.
        stride: input pixels per cell.
        reasons: one sentence for each conclusion.
        doubts: one sentence for each open question, with the line of a spec that answers it.
        spec: the spec; None if there is a doubt.
    """

    candidates: list[HeadCandidate]
    roles: dict[Role, HeadCandidate] = field(default_factory=dict)
    extras: list[HeadCandidate] = field(default_factory=list)
    family: str | None = None
    stride: int = 4
    reasons: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    spec: ModelSpec | None = None

    def require_spec(self) -> ModelSpec:
        """The spec.

        Raises:
            SpecError: there is a doubt; the message has the candidates and the lines of a spec that decide.
        """
        if self.spec is not None:
            return self.spec
        listed = "\n".join(f"  {describe(c)}" for c in self.candidates) or "  none"
        doubts = "\n".join(f"  - {doubt}" for doubt in self.doubts)
        raise SpecError(
            f"the graph does not say for certain what its heads mean:\n{doubts}\ntensors that could be heads:\n{listed}",
            "write what is known into a spec file, a preset and what differs, and give it with --spec",
        )


def describe(candidate: HeadCandidate) -> str:
    """One line about a candidate: name, shape, activation."""
    height, width = candidate.grid
    activation = ", sigmoid" if candidate.logits else ", exp" if candidate.exponential else ""
    kind = "output" if candidate.output else "inside the graph"
    return f"{candidate.tensor}: {candidate.channels} channels on {height}x{width} cells{activation} ({kind})"


def guess_spec(model: ModelProto) -> Guess:
    """Guess the spec of a graph.

    Args:
        model: the graph, as `builder.source.read_source` loads it.

    Returns:
        The heads found, the reasons, and the spec or the doubts that prevent it.

    Raises:
        ModelError: the graph's only input cannot be an image.
        SpecError: not exactly one input could be the image, or no tensor could be a head.
    """
    name, (height, width), fixed = _image_input(model)
    sized = model if fixed else set_input_size(model, name, height, width)
    guess = Guess(find_candidates(sized))
    _choose_grid(guess, height, width)
    if not guess.candidates:
        raise SpecError(
            "no tensor of the graph could be a CenterNet head: none has a grid of input size / stride cells",
            "give the spec with --spec, and check that the graph is a CenterNet",
        )
    _find_heatmap(guess)
    _find_box_and_offset(guess)
    _find_family(guess)
    if not guess.doubts:
        guess.spec = _make_spec(guess, name, (height, width) if fixed else None)
    return guess


def _image_input(model: ModelProto) -> tuple[str, tuple[int, int], bool]:
    """Name of the image input, its (height, width), and whether the graph fixes them."""
    names = []
    if len(model.graph.input) == 1:
        find_image_input(model, model.graph.input[0].name)  # its error says what is wrong with the only input
    for value in model.graph.input:
        try:
            found = find_image_input(model, value.name)
        except CenterNetError:
            continue
        names.append(found)
    if len(names) != 1:
        listed = ", ".join(value.name for value in model.graph.input)
        raise SpecError(
            f"expected one input that could be the image, got {len(names)} of the graph's inputs ({listed})",
            "name it in the spec: [input] name = ...",
        )
    dims = names[0].type.tensor_type.shape.dim
    fixed = all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims[2:])
    size = (dims[2].dim_value, dims[3].dim_value) if fixed else (_PROBE_SIDE, _PROBE_SIDE)
    return names[0].name, size, fixed


def _choose_grid(guess: Guess, height: int, width: int) -> None:
    """Keep the candidates of the finest common grid; the stride is what divides the input down to it."""
    strides: dict[int, list[HeadCandidate]] = {}
    for candidate in guess.candidates:
        rows, columns = candidate.grid
        if height % rows == 0 and width % columns == 0 and height // rows == width // columns:
            strides.setdefault(height // rows, []).append(candidate)
    if not strides:
        guess.candidates = []
        return
    guess.stride = max(strides, key=lambda stride: (len(strides[stride]), -stride))
    guess.candidates = strides[guess.stride]
    guess.reasons.append(f"stride {guess.stride}: {len(guess.candidates)} last convolutions share that grid")


def _has(candidate: HeadCandidate, kind: str) -> bool:
    return bool(candidate.words & _WORDS[kind])


def _find_heatmap(guess: Guess) -> None:
    """Find the heatmap: by name, else by its sigmoid, its 80 channels, or the negative bias that training gives it."""
    tests = (
        ("its name", lambda c: _has(c, "heatmap") and not _has(c, "points")),
        ("its sigmoid", lambda c: c.logits is not None),
        ("80 channels", lambda c: c.channels == 80),
        ("a negative bias", lambda c: c.bias is not None and c.bias < -1.5),
    )
    found: list[HeadCandidate] = []
    for why, test in tests:
        found = [c for c in guess.candidates if test(c)]
        # Pose networks have a second heatmap, of joints: the one called `hm` is that of the objects.
        found = [c for c in found if c.tensor == "hm"] or found
        if len(found) == 1:
            guess.roles["heatmap"] = found[0]
            guess.reasons.append(f"heatmap is {found[0].tensor}, {found[0].channels} classes: by {why}")
            return
        if found:
            break
    names = [c.tensor for c in (found or guess.candidates)]
    guess.doubts.append(f"which tensor is the heatmap, {' or '.join(names)}? [heads.heatmap] tensor = ...")


def _find_box_and_offset(guess: Guess) -> None:
    rest = [c for c in guess.candidates if c is not guess.roles.get("heatmap")]
    points = [c for c in rest if _has(c, "points")]
    four = [c for c in rest if c.channels == 4 and c not in points]
    two = [c for c in rest if c.channels == 2 and c not in points]
    named = [c for c in two if _has(c, "box")]
    if len(four) == 1 and not named:
        guess.roles["box"] = four[0]
        guess.reasons.append(f"box is {four[0].tensor}: 4 channels are left, top, right, bottom")
        if two:
            _choose_offset(guess, two)
    elif len(two) == 1:
        guess.roles["box"] = two[0]
        guess.reasons.append(f"box is {two[0].tensor}: the only head of 2 channels; no offset head")
    elif len(two) == 2:
        _split_pair(guess, two)
    else:
        names = " or ".join(c.tensor for c in two or rest) or "none"
        guess.doubts.append(f"which tensor is the box, {names}? [heads.box] tensor = ..., encoding = ...")
    taken = list(guess.roles.values())
    guess.extras = [c for c in rest if all(c is not t for t in taken)]


def _choose_offset(guess: Guess, two: list[HeadCandidate]) -> None:
    named = [c for c in two if _has(c, "offset") or "reg" in c.words]
    if len(named) == 1:
        guess.roles["offset"] = named[0]
        guess.reasons.append(f"offset is {named[0].tensor}: by its name")
    else:
        names = " or ".join(c.tensor for c in two)
        guess.doubts.append(f"is {names} the offset? [heads.offset] tensor = ...")


def _split_pair(guess: Guess, two: list[HeadCandidate]) -> None:
    """Tell size and offset apart, two heads of two channels each, by their names."""
    boxes = [c for c in two if _has(c, "box") or c.exponential]
    offsets = [c for c in two if _has(c, "offset")] or [c for c in two if "reg" in c.words]
    box = boxes[0] if len(boxes) == 1 else None
    offset = offsets[0] if len(offsets) == 1 else None
    if box is None and offset is not None:
        box = two[0] if two[1] is offset else two[1]
    elif offset is None and box is not None:
        offset = two[0] if two[1] is box else two[1]
    if box is None or offset is None or box is offset:
        names = " or ".join(c.tensor for c in two)
        guess.doubts.append(
            f"which is the size and which the offset, {names}? [heads.box] tensor = ..., [heads.offset] tensor = ..."
        )
        return
    guess.roles["box"], guess.roles["offset"] = box, offset
    guess.reasons.append(f"box is {box.tensor}, offset is {offset.tensor}: by their names")


def _find_family(guess: Guess) -> None:
    """Find the preset whose pre-processing and units belong to such heads."""
    heat, box, offset = (guess.roles.get(role) for role in ("heatmap", "box", "offset"))
    if heat is None or box is None:
        return
    words = frozenset().union(*(c.words for c in guess.candidates))
    ten = [c for c in guess.extras if c.channels == 10]
    if heat.channels == 1 and len(ten) == 1 and offset is not None:
        guess.family = "centerface"
        guess.reasons.append("one class and 10 landmark channels: CenterFace; its sizes are logarithms")
    elif box.channels == 4:
        guess.family = "ttf-ltrb"
        guess.reasons.append("a 4-channel box head: as in ttf-ltrb, distances in input pixels")
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


def _make_spec(guess: Guess, input_name: str, fixed: tuple[int, int] | None) -> ModelSpec:
    heat, box, offset = guess.roles["heatmap"], guess.roles["box"], guess.roles.get("offset")
    data: dict[str, Any] = {"preset": guess.family, "stride": guess.stride, "input": {"name": input_name}}
    # Logits rank like their scores and resolve more of them, above all in fp16: the sigmoid is left out.
    activation = {"tensor": heat.logits or heat.tensor, "activation": "logits"}
    if heat.logits is not None:
        guess.reasons.append(
            f"the sigmoid behind {heat.logits} is left out: the decode computes it for the survivors"
        )
    heads: dict[str, Any] = {"heatmap": activation, "box": {"tensor": box.tensor}}
    if offset is not None:
        heads["offset"] = {"tensor": offset.tensor}
    elif guess.family != "ttf-ltrb":
        heads["offset"] = None
        data["cell_offset"] = 0.5
        guess.reasons.append("no offset head: centres lie half a cell on, as the official decode has it")
    if guess.family == "centerface":
        heads["extra"] = [_landmarks(guess)]
    else:
        heads["extra"] = [
            {"kind": "raw", "name": c.tensor, "tensor": c.tensor, "channels": c.channels}
            for c in guess.extras
        ]
    data["heads"] = heads
    if heat.channels != (1 if guess.family == "centerface" else 80):
        data |= {"class_names": [str(n) for n in range(heat.channels)], "category_ids": []}
        guess.reasons.append(f"{heat.channels} classes, unnamed: add class_names to a spec to name them")
    if fixed is not None and guess.family in ("official", "ttf-ltrb"):
        data["input"]["size"] = {"rule": "fixed", "height": fixed[0], "width": fixed[1]}
        if guess.family == "official":
            data["input"]["resize"] = {"policy": "fix_res"}
        guess.reasons.append(f"the graph's input is {fixed[1]}x{fixed[0]} pixels: taken as its fixed size")
    return spec_from_mapping(data, "the guessed spec")


def _landmarks(guess: Guess) -> dict[str, Any]:
    (points,) = (c for c in guess.extras if c.channels == 10)
    return {
        "kind": "points", "name": "landmarks", "tensor": points.tensor, "points": 5,
        "units": "box", "origin": "top_left", "order": "yx",
    }  # fmt: skip
