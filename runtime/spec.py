"""ModelSpec: how an image becomes the network's input, and how the head tensors become boxes.

A spec is part of every bundle's manifest, and what a user has to get right for a model of their own.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_TABLE = """
1 person|2 bicycle|3 car|4 motorcycle|5 airplane|6 bus|7 train|8 truck|9 boat|10 traffic light|11 fire hydrant
13 stop sign|14 parking meter|15 bench|16 bird|17 cat|18 dog|19 horse|20 sheep|21 cow|22 elephant|23 bear|24 zebra
25 giraffe|27 backpack|28 umbrella|31 handbag|32 tie|33 suitcase|34 frisbee|35 skis|36 snowboard|37 sports ball
38 kite|39 baseball bat|40 baseball glove|41 skateboard|42 surfboard|43 tennis racket|44 bottle|46 wine glass|47 cup
48 fork|49 knife|50 spoon|51 bowl|52 banana|53 apple|54 sandwich|55 orange|56 broccoli|57 carrot|58 hot dog|59 pizza
60 donut|61 cake|62 chair|63 couch|64 potted plant|65 bed|67 dining table|70 toilet|72 tv|73 laptop|74 mouse
75 remote|76 keyboard|77 cell phone|78 microwave|79 oven|80 toaster|81 sink|82 refrigerator|84 book|85 clock|86 vase
87 scissors|88 teddy bear|89 hair drier|90 toothbrush
"""
_ENTRIES = [entry.split(" ", 1) for entry in _TABLE.strip().replace("\n", "|").split("|")]

COCO_CATEGORY_IDS: tuple[int, ...] = tuple(int(number) for number, _ in _ENTRIES)
COCO_CLASS_NAMES: tuple[str, ...] = tuple(name for _, name in _ENTRIES)

MAX_TOP_K = 1024  # limit of the decode kernel


class SpecModel(BaseModel):
    """Base of the spec's parts: unknown keys are errors, values cannot change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FixedSize(SpecModel):
    """The network input always has the same size.

    Attributes:
        rule: "fixed".
        width: in pixels.
        height: in pixels.
    """

    rule: Literal["fixed"] = "fixed"
    width: int = Field(gt=0)
    height: int = Field(gt=0)

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the network input for an image of this width and height, all in pixels."""
        return self.width, self.height


class PaddedSize(SpecModel):
    """Each side becomes (side | multiple-1) + 1: the next multiple that is larger, never equal.

    Source: `keep_res` of the official detector, multiple 32 (Hourglass: 128).

    Attributes:
        rule: "pad".
        multiple: in pixels, a power of two.
    """

    rule: Literal["pad"] = "pad"
    multiple: int = Field(default=32, gt=0)

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.multiple & (self.multiple - 1):
            raise ValueError(f"expected a power of two as multiple of rule 'pad', got {self.multiple}")
        return self

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the network input for an image of this width and height, all in pixels."""
        mask = self.multiple - 1
        return (width | mask) + 1, (height | mask) + 1


class MultipleSize(SpecModel):
    """Each side becomes the smallest multiple that is not smaller than the side.

    Attributes:
        rule: "multiple".
        multiple: in pixels.
    """

    rule: Literal["multiple"] = "multiple"
    multiple: int = Field(default=32, gt=0)

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the network input for an image of this width and height, all in pixels."""
        m = self.multiple
        return -(-width // m) * m, -(-height // m) * m


SizeRule = Annotated[FixedSize | PaddedSize | MultipleSize, Field(discriminator="rule")]


class FixRes(SpecModel):
    """Official `--fix_res`: one scale for both axes, network width / max(w, h), centre on centre, black outside.

    Sampling is cv2.warpAffine's: pixel centres at integers, black blended in at the image's edge.

    Attributes:
        policy: "fix_res".
    """

    policy: Literal["fix_res"] = "fix_res"


class KeepRes(SpecModel):
    """Official `keep_res`: no scaling, the image moved by whole pixels to the middle, black outside.

    Attributes:
        policy: "keep_res".
    """

    policy: Literal["keep_res"] = "keep_res"


class Letterbox(SpecModel):
    """Scaled to fit inside the network input, aspect kept, the rest filled with `pad_value`.

    One scale for both axes; the scaled side is round-half-even(side * scale). Sampling is that of
    cv2.resize(image, None, fx=scale, fy=scale): pixel centres at half-integers, the image's edge replicated.

    Attributes:
        policy: "letterbox".
        align: where the image goes in the input.
        upscale: whether images smaller than the input are enlarged.
        pad_value: grey level of the rest, 0..255.
    """

    policy: Literal["letterbox"] = "letterbox"
    align: Literal["centre", "top_left"] = "centre"
    upscale: bool = True
    pad_value: int = Field(default=0, ge=0, le=255)


class Stretch(SpecModel):
    """Both axes scaled to the network size, aspect not kept. Sampling is cv2.resize's, as for letterbox.

    Attributes:
        policy: "stretch".
    """

    policy: Literal["stretch"] = "stretch"


ResizePolicy = Annotated[FixRes | KeepRes | Letterbox | Stretch, Field(discriminator="policy")]

Triple = tuple[float, float, float]


class InputSpec(SpecModel):
    """How an image becomes the input tensor: value = (pixel * scale - mean) / std, for pixels 0..255.

    Attributes:
        name: tensor name of the input; None for the graph's only one.
        size: rule for the size of the network input.
        resize: policy that puts the image into it.
        channel_order: order of the tensor's channels.
        scale: factor for the pixels, such as 1/255.
        mean: by channel, in the tensor's order.
        std: by channel, in the tensor's order; positive.
    """

    name: str | None = None
    size: SizeRule
    resize: ResizePolicy
    channel_order: Literal["bgr", "rgb"] = "bgr"
    scale: float = Field(default=1.0, gt=0)
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(s <= 0 for s in self.std):
            raise ValueError(f"expected a positive std, got {self.std}")
        rule, policy = self.size.rule, self.resize.policy
        allowed = {
            "fix_res": ("fixed",),
            "keep_res": ("pad", "multiple"),
            "letterbox": ("fixed",),
            "stretch": ("fixed", "multiple", "pad"),
        }
        if rule not in allowed[policy]:
            raise ValueError(
                f"expected size rule {' or '.join(allowed[policy])} with resize policy '{policy}', got '{rule}'"
            )
        return self


class HeatmapHead(SpecModel):
    """The class heatmap, (N, classes, H, W).

    Attributes:
        tensor: name of the graph output.
        activation: `logits` still need a sigmoid, `probability` does not.
    """

    tensor: str
    activation: Literal["logits", "probability"] = "logits"


class BoxHead(SpecModel):
    """The box sizes.

    Attributes:
        tensor: name of the graph output.
        encoding: `wh`: width and height, (N, 2, H, W), of a box around the centre; `log_wh`: their natural logarithm;
            `ltrb`: distances from the centre to the left, top, right and bottom edges, (N, 4, H, W).
        units: `cells` of the output grid, or `input` pixels.
        order: `yx` swaps the axes: (h, w), (t, l, b, r).
    """

    tensor: str
    encoding: Literal["wh", "ltrb", "log_wh"] = "wh"
    units: Literal["cells", "input"] = "cells"
    order: Literal["xy", "yx"] = "xy"

    @property
    def channels(self) -> int:
        """Number of channels that the tensor must have."""
        return 4 if self.encoding == "ltrb" else 2


class OffsetHead(SpecModel):
    """The sub-cell offset of the centre, (N, 2, H, W), in cells.

    Attributes:
        tensor: name of the graph output.
        order: `yx` swaps the axes.
    """

    tensor: str
    order: Literal["xy", "yx"] = "xy"


class RawExtra(SpecModel):
    """A further head whose channels are returned as they are.

    Attributes:
        kind: "raw".
        name: key in `Detections.extra`.
        tensor: name of the graph output.
        channels: number of its channels.
    """

    kind: Literal["raw"] = "raw"
    name: str
    tensor: str
    channels: int = Field(gt=0)


class PointsExtra(SpecModel):
    """A further head of P points, 2P channels, decoded to source-image pixels as x0, y0, x1, y1, ...

    Attributes:
        kind: "points".
        name: key in `Detections.extra`.
        tensor: name of the graph output.
        points: P.
        units: `cells`, `input` pixels, or `box`: fractions of the box's sides.
        origin: where the vectors start: the integer `cell`, the `centre`, or the box's `top_left` corner.
        order: `yx` swaps the axes.
    """

    kind: Literal["points"] = "points"
    name: str
    tensor: str
    points: int = Field(gt=0)
    units: Literal["cells", "input", "box"] = "cells"
    origin: Literal["cell", "centre", "top_left"] = "centre"
    order: Literal["xy", "yx"] = "xy"

    @property
    def channels(self) -> int:
        """Number of channels that the tensor must have."""
        return 2 * self.points


ExtraHead = Annotated[RawExtra | PointsExtra, Field(discriminator="kind")]


class HeadsSpec(SpecModel):
    """Which tensor is which head. Tensors are matched by name, never by position.

    Attributes:
        heatmap: the class heatmap.
        box: the box sizes.
        offset: the sub-cell offset; None for a network without one.
        extra: further heads.
    """

    heatmap: HeatmapHead
    box: BoxHead
    offset: OffsetHead | None = None
    extra: tuple[ExtraHead, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        tensors = self.tensors
        if len(set(tensors)) != len(tensors):
            raise ValueError(f"expected a different tensor for every head, got {list(tensors)}")
        names = [extra.name for extra in self.extra]
        if len(set(names)) != len(names):
            raise ValueError(f"expected a different name for every extra head, got {names}")
        return self

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all head tensors: heatmap, box, offset if any, then the extra heads."""
        offset = () if self.offset is None else (self.offset.tensor,)
        return (self.heatmap.tensor, self.box.tensor, *offset, *(extra.tensor for extra in self.extra))

    def channels(self) -> dict[str, int | None]:
        """Return the number of channels of each tensor by name; None for the heatmap, whose channels are the classes."""
        wanted: dict[str, int | None] = {self.heatmap.tensor: None, self.box.tensor: self.box.channels}
        if self.offset is not None:
            wanted[self.offset.tensor] = 2
        return wanted | {extra.tensor: extra.channels for extra in self.extra}


class ModelSpec(SpecModel):
    """What a CenterNet network means: everything about it but its graph and weights.

    Immutable; unknown fields are errors. Make one by `preset`, `read_spec`, or its fields.

    A peak at cell (x, y) has its centre at (x, y) + `cell_offset` + offset head, in cells; times `stride` in
    network-input pixels; through the inverse of the resize policy in source-image pixels.

    Attributes:
        input: how an image becomes the input tensor.
        heads: which tensor is which head, and what it holds.
        stride: network-input pixels per cell of the heads.
        cell_offset: constant added to the cell's coordinates, in cells.
        top_k: maximum number of detections per image, 1..1024.
        threshold: default for the lowest score to return, 0..1.
        plateau: of equal neighbouring cells, keep `all` as peaks, like the official code, or the `first` of each 3x3
            neighbourhood.
        clip: whether boxes are clipped to the image.
        nms_iou: IoU above which greedy non-maximum suppression drops a box within its class; None for no suppression.
        class_names: by class index; "coco" stands for the 80 COCO classes and their category ids. May be empty.
        category_ids: COCO category ids by class index; may be empty.
    """

    input: InputSpec
    heads: HeadsSpec
    stride: int = Field(default=4, gt=0)
    cell_offset: float = 0.0
    top_k: int = Field(default=100, ge=1, le=MAX_TOP_K)
    threshold: float = Field(default=0.3, ge=0, le=1)
    plateau: Literal["all", "first"] = "all"
    clip: bool = False
    nms_iou: float | None = Field(default=None, gt=0, le=1)
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _coco_shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("class_names") == "coco":
            data = {**data, "class_names": COCO_CLASS_NAMES}
            data.setdefault("category_ids", COCO_CATEGORY_IDS)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.category_ids and len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"expected as many category_ids as class_names, got {len(self.category_ids)} and "
                f"{len(self.class_names)}"
            )
        size = self.input.size
        sides = (size.width, size.height) if isinstance(size, FixedSize) else (size.multiple,)
        if any(side % self.stride for side in sides):
            raise ValueError(
                f"expected a network input that is a multiple of the stride {self.stride}, got {sides}"
            )
        return self
