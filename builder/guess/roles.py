"""Decide which candidate is which head: find_roles."""

from centernet_trt.builder.guess.heads import HeadCandidate
from centernet_trt.builder.guess.names import WORDS
from centernet_trt.builder.guess.result import Guess

_EXTREME_POINTS = frozenset({"hm_t", "hm_l", "hm_b", "hm_r"})


def choose_grid(guess: Guess, height: int, width: int) -> None:
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
    others = [c for stride, found in strides.items() if stride != guess.stride for c in found]
    complete = [stride for stride in sorted(strides) if _could_be_a_detector(strides[stride])]
    guess.candidates = strides[guess.stride]
    guess.reasons.append(f"stride {guess.stride}: {len(guess.candidates)} head tensors share that grid")
    if len(complete) > 1:
        guess.candidates = [c for stride in complete for c in strides[stride]]
        listed = " and ".join(f"stride {s} ({', '.join(c.tensor for c in strides[s])})" for s in complete)
        guess.doubts.append(
            f"which grid is it? The graph has heads on several, {listed}; one bundle decodes one: "
            "stride = ..., [heads.heatmap] tensor = ..., [heads.box] tensor = ..."
        )
    elif spread := [c for c in others if c.role in ("heatmap", "box", "offset")]:
        guess.candidates += spread
        guess.doubts.append(
            f"why are the heads on different grids? {', '.join(c.tensor for c in spread)} is not on that of stride "
            f"{guess.stride}; all heads of a spec share one grid"
        )
    elif others:
        guess.reasons.append(f"left out, on another grid: {', '.join(c.tensor for c in others)}")


def _could_be_a_detector(found: list[HeadCandidate]) -> bool:
    roles = {c.role for c in found}
    return {"heatmap", "box"} <= roles or (len(found) > 1 and any(c.channels in (2, 4) for c in found))


def find_roles(guess: Guess) -> None:
    """Find heatmap, box, offset and the further heads, or note the doubts."""
    heats = [c for c in guess.candidates if c.role == "heatmap"]
    boxes = [c for c in guess.candidates if c.role == "box"]
    if {c.tensor for c in guess.candidates} >= _EXTREME_POINTS:
        guess.doubts.append(
            "are these the extreme points of ExtremeNet (exdet)? It groups four heatmaps; CenterNet's decode does not"
        )
        return
    if len(heats) > 1 and len(heats) == len(boxes) and len({c.channels for c in heats}) == 1:
        last = (
            f'[heads.heatmap] tensor = "{heats[-1].tensor}", [heads.box] tensor = "{boxes[-1].tensor}", ...'
        )
        guess.doubts.append(
            f"which of {len(heats)} sets of heads is it, {' or '.join(c.tensor for c in heats)}? "
            f"Of several stacks the last is usually meant: {last}"
        )
        return
    _find_heatmap(guess)
    _find_box_and_offset(guess)
    for role in ("box", "offset"):
        if (head := guess.roles.get(role)) is not None:
            _check_place(guess, role, head)


def _find_heatmap(guess: Guess) -> None:
    """Find the heatmap: by name, else by its sigmoid, its 80 channels, or the negative bias that training gives it."""
    free = [c for c in guess.candidates if c.role not in ("points", "extra")]
    tests = (
        ("its name", lambda c: c.role == "heatmap"),
        ("its name", lambda c: c.role is None and bool(c.words & WORDS["heatmap"])),
        ("its sigmoid", lambda c: c.role is None and c.activation in ("sigmoid", "probability")),
        ("80 channels", lambda c: c.role is None and c.channels == 80),
        ("a negative bias", lambda c: c.role is None and c.bias is not None and c.bias < -1.5),
    )
    found: list[HeadCandidate] = []
    for why, test in tests:
        found = [c for c in free if test(c)]
        # Pose networks have a second heatmap, of joints: the one called `hm` is that of the objects.
        found = [c for c in found if c.tensor == "hm"] or found
        if len(found) == 1:
            guess.roles["heatmap"] = found[0]
            guess.reasons.append(f"heatmap is {found[0].tensor}, {found[0].channels} classes: by {why}")
            _check_activation(guess, found[0])
            return
        if found:
            break
    names = [c.tensor for c in (found or free or guess.candidates)]
    guess.doubts.append(f"which tensor is the heatmap, {' or '.join(names)}? [heads.heatmap] tensor = ...")


def _check_activation(guess: Guess, heat: HeadCandidate) -> None:
    if heat.changed_behind and heat.changed_behind != ("Sigmoid",):
        guess.doubts.append(
            f"what is {heat.tensor}? {', '.join(heat.changed_behind)} behind its transposition changes it: "
            "export the heads with channels first (N, C, H, W)"
        )
    if heat.activation != "unknown":
        return
    values = "unknown values" if heat.values is None else "values of {:.3g} to {:.3g}".format(*heat.values)
    guess.doubts.append(
        f"is {heat.tensor} a probability? It has {values}, but is the sigmoid of no tensor before it: "
        f'[heads.heatmap] tensor = "{heat.tensor}", activation = "probability"; or the tensor of its logits, '
        'activation = "logits"'
    )


def _find_box_and_offset(guess: Guess) -> None:
    rest = [c for c in guess.candidates if c is not guess.roles.get("heatmap")]
    free = [c for c in rest if c.role not in ("points", "extra")]
    named = [c for c in free if c.role == "box" and c.channels in (2, 4)]
    sized = [c for c in free if c.role is None and c.words & WORDS["box"] and c.channels in (2, 4)]
    four = [c for c in free if c.channels == 4]
    two = [c for c in free if c.channels == 2]
    # CenterTrack has both, `wh` and `ltrb`: two channels hold all that a box needs.
    boxes = [c for c in named if c.channels == 2] or named or sized
    if len(boxes) == 1 and (boxes[0].channels == 4 or len(two) != 2):
        _take_box(guess, boxes[0], "by its name")
        _choose_offset(guess, [c for c in two if c is not boxes[0]])
    elif len(four) == 1 and not boxes:
        _take_box(guess, four[0], "4 channels are left, top, right, bottom")
        _choose_offset(guess, two)
    elif len(two) == 1 and two[0].role == "offset" and "reg_conv" not in two[0].tensor:
        guess.doubts.append(
            f"which tensor is the box? {two[0].tensor} is called as an offset is, and no other head has 2 or 4 channels "
            "of a box: [heads.box] tensor = ..., encoding = ..."
        )
    elif len(two) == 1:
        _take_box(guess, two[0], "the only head of 2 channels; no offset head")
    elif len(two) == 2:
        _split_pair(guess, two)
    else:
        names = " or ".join(c.tensor for c in two or rest) or "none"
        guess.doubts.append(f"which tensor is the box, {names}? [heads.box] tensor = ..., encoding = ...")
    taken = list(guess.roles.values())
    guess.extras = [c for c in rest if all(c is not t for t in taken)]


def _take_box(guess: Guess, box: HeadCandidate, why: str) -> None:
    guess.roles["box"] = box
    guess.reasons.append(f"box is {box.tensor}: {why}")


def _choose_offset(guess: Guess, two: list[HeadCandidate]) -> None:
    named = _offsets(two)
    if len(named) == 1:
        guess.roles["offset"] = named[0]
        guess.reasons.append(f"offset is {named[0].tensor}: by its name")
    elif two:
        names = " or ".join(c.tensor for c in two)
        guess.doubts.append(f"is {names} the offset? [heads.offset] tensor = ...")


def _offsets(two: list[HeadCandidate]) -> list[HeadCandidate]:
    stated = [c for c in two if c.role == "offset"]
    called = [c for c in two if c.words & WORDS["offset"]] or [c for c in two if "reg" in c.words]
    return stated if len(stated) == 1 else called


def _split_pair(guess: Guess, two: list[HeadCandidate]) -> None:
    """Distinguish size and offset, two heads of two channels each, by their names."""
    boxes = [c for c in two if c.role == "box"] or [c for c in two if c.words & WORDS["box"] or c.exponential]
    offsets = _offsets(two)
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


def _check_place(guess: Guess, role: str, head: HeadCandidate) -> None:
    """Ask where arithmetic stands between the convolution and what follows inside the graph."""
    if head.scaled:
        guess.doubts.append(
            f"where does the {role} end? {head.tensor} is not an output, and arithmetic in front of it may belong to the "
            f"head or to a decode behind it: [heads.{role}] tensor = ..."
        )
    if head.changed_behind:
        guess.doubts.append(
            f"what is {head.tensor}? {', '.join(head.changed_behind)} behind its transposition changes it: "
            "export the heads with channels first (N, C, H, W)"
        )
