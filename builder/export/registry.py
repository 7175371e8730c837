"""The architectures that can be exported: `ARCHITECTURES`, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial

from centernet_trt.builder.export import mmdet as mmdet_family
from centernet_trt.builder.export.dla import dla_34
from centernet_trt.builder.export.hourglass import hourglass
from centernet_trt.builder.export.network import Network, Tensor
from centernet_trt.builder.export.resnet import res, resdcn
from centernet_trt.errors import ModelError

__all__ = ["ALIASES", "ARCHITECTURES", "INPUT", "Architecture", "architecture"]

INPUT = "input"
"""Name of the graphs' only input: (batch, 3, height, width) float32."""

_OFFICIAL_HEADS = {"hm": 80, "wh": 2, "reg": 2}
_MMDET_HEADS = {"center_heatmap": 80, "wh": 2, "offset": 2}


@dataclass(frozen=True)
class Architecture:
    """A network architecture.

    Attributes:
        name: for the user.
        write: appends the network to an input: (network, input, heads, head_conv).
        preset: the ModelSpec preset that fits its outputs.
        heads: default outputs and their channels; the first is the heatmap, its channels are the classes.
        head_conv: default width inside the heads.
        multiple: both sides of the input must be multiples of this.
        open_heads: whether outputs of other names can be added (pose, depth); mmdetection's names are fixed.
        spare: prefixes of tensors in public checkpoints that the network does not use.
    """

    name: str
    write: Callable[[Network, Tensor, Mapping[str, int], int], None]
    preset: str
    heads: Mapping[str, int] = field(default_factory=lambda: dict(_OFFICIAL_HEADS))
    head_conv: int = 64
    multiple: int = 32
    open_heads: bool = True
    spare: tuple[str, ...] = ()

    @property
    def heatmap(self) -> str:
        """Name of the output whose channels are the classes."""
        return next(iter(self.heads))

    def all_heads(self, classes: int, heads: Mapping[str, int] | None = None) -> dict[str, int]:
        """Merge the default outputs with the caller's.

        Args:
            classes: channels of the heatmap.
            heads: channels of outputs to change or add; 0 removes an output.

        Returns:
            Channels by output name, the defaults first.

        Raises:
            ModelError: no class, a negative channel count, or an output that this architecture cannot have or lack.
        """
        merged = {**self.heads, self.heatmap: classes, **(heads or {})}
        absent = [name for name, channels in merged.items() if channels == 0 and name != self.heatmap]
        if self.open_heads:
            merged = {name: channels for name, channels in merged.items() if name not in absent}
        wrong = {name: channels for name, channels in merged.items() if channels < 1}
        if wrong:
            raise ModelError(
                f"{self.name}: expected at least one channel per head, got {wrong}",
                "give at least one class or channel",
            )
        unknown = [name for name in merged if name not in self.heads]
        if unknown and not self.open_heads:
            raise ModelError(
                f"{self.name} cannot have the head {', '.join(unknown)}; its heads are {', '.join(self.heads)}",
                "remove the other heads",
            )
        return merged

    def network(
        self, classes: int = 80, heads: Mapping[str, int] | None = None, head_conv: int | None = None
    ) -> Network:
        """Build the network.

        Args:
            classes: channels of the heatmap.
            heads: see `all_heads`.
            head_conv: width inside the heads; None for the default, 0 for heads of one 1x1 convolution.

        Raises:
            ModelError: heads that this architecture cannot have, or a width that it cannot have.
        """
        net = Network()
        width = self.head_conv if head_conv is None else head_conv
        if width < 0 or (width == 0 and not self.preset == "official"):
            raise ModelError(
                f"{self.name}: expected a positive head_conv, got {width}",
                "give the width of the heads' 3x3 convolution",
            )
        self.write(net, Tensor(INPUT, 3), self.all_heads(classes, heads), width)
        return net


def _all() -> list[Architecture]:
    official = [
        *(Architecture(f"res_{n}", partial(res, depth=n), "official") for n in (18, 34, 50, 101)),
        *(Architecture(f"resdcn_{n}", partial(resdcn, depth=n), "official") for n in (18, 101)),
        # Public DLA checkpoints still have the ImageNet classifier.
        Architecture("dla_34", dla_34, "official", head_conv=256, spare=("base.fc.",)),
        Architecture("hourglass", hourglass, "official-hourglass", head_conv=256, multiple=128),
    ]
    neck = partial(mmdet_family.mmdet, depth=18)
    mmdet = [
        Architecture(name, partial(neck, dcn=dcn), "mmdet", _MMDET_HEADS, open_heads=False, spare=("ema_",))
        for name, dcn in (("mmdet_r18", False), ("mmdet_r18_dcnv2", True))
    ]
    return official + mmdet


ARCHITECTURES: Mapping[str, Architecture] = {arch.name: arch for arch in _all()}
ALIASES: Mapping[str, str] = {
    "dla_34_dcn": "dla_34",
    "hourglass_104": "hourglass",
    # Configuration names of mmdetection 2.x and 3.x.
    "centernet_resnet18_140e_coco": "mmdet_r18",
    "centernet_resnet18_dcnv2_140e_coco": "mmdet_r18_dcnv2",
    "centernet_r18_8xb16-crop512-140e_coco": "mmdet_r18",
    "centernet_r18-dcnv2_8xb16-crop512-140e_coco": "mmdet_r18_dcnv2",
}
"""Other public names -> architecture."""


def architecture(name: str) -> Architecture:
    """Return the architecture of that name or alias.

    Raises:
        ModelError: unknown; the message has the nearest names.
    """
    key = name.lower().removesuffix(".py")
    found = ARCHITECTURES.get(ALIASES.get(key, key))
    if found is None:
        near = get_close_matches(key, [*ARCHITECTURES, *ALIASES], n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"unknown architecture {name!r}{meant}", f"expected one of {', '.join(ARCHITECTURES)}"
        )
    return found
