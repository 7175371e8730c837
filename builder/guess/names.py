"""Read the roles of heads from the names around them: role_of."""

import re
from collections.abc import Iterable

# Words in the names of tensors, nodes and weights. `reg` is the offset in the official code and the size in CenterFace,
# so it counts as an offset only if nothing else is called one.
WORDS: dict[str, frozenset[str]] = {
    "heatmap": frozenset({"hm", "heatmap", "heat", "cls", "pos"}),
    "box": frozenset({"wh", "size", "ltrb"}),
    "offset": frozenset({"off", "offset"}),
    "points": frozenset({"lm", "landmark", "landmarks", "hps", "kps", "keypoint", "keypoints"}),
}
# Names of whole heads in public code: they decide, whatever words they consist of.
_HEADS: dict[str, str] = {
    **dict.fromkeys(("hm", "heatmap", "center_heatmap"), "heatmap"),
    **dict.fromkeys(("wh", "wh_ltrb", "ltrb"), "box"),
    **dict.fromkeys(("reg", "offset"), "offset"),
    **dict.fromkeys(("hps", "lm", "landmarks", "kps", "keypoints"), "points"),
    **dict.fromkeys(
        ("hm_hp", "hp_offset", "dep", "depth", "rot", "dim", "id", "id_feature", "reid"), "extra"
    ),
    **dict.fromkeys(("tracking", "amodel_offset", "amodal_offset", "ltrb_amodal", "nuscenes_att"), "extra"),
    **dict.fromkeys(("velocity", "embedding"), "extra"),
}
_FURTHER = frozenset({"hp", "tracking", "amodel", "amodal", "dep", "rot", "velocity", "reid", "embedding"})


def words_of(names: Iterable[str]) -> frozenset[str]:
    """Lower-case words of names."""
    return frozenset(word for name in names for word in re.findall(r"[a-z]+", name.lower()))


def head_names(names: Iterable[str]) -> frozenset[str]:
    """Names of heads in public code among the parts of names, such as `hm` in `/hm/hm.2/Conv` or `hm_1`."""
    parts = (re.sub(r"_\d+$", "", part) for name in names for part in re.split(r"[/.:]+", name.lower()))
    return frozenset(part for part in parts if part in _HEADS)


def role_of(names: Iterable[str]) -> str | None:
    """The role that names state: heatmap, box, offset, points or extra; None if none or several."""
    names = list(names)
    found = {_HEADS[name] for name in head_names(names)}
    if len(found) == 1:
        return found.pop()
    words = words_of(names)
    if words & _FURTHER:
        return "extra"
    if words & WORDS["points"]:
        return "points"
    roles = [role for role in ("heatmap", "box", "offset") if words & WORDS[role]]
    return roles[0] if len(roles) == 1 else None
