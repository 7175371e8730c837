"""What the search for an int8 graph works with: the budget, the damage of single units, the graphs tried."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.quantise.damage import Damage
from centernet_trt.builder.quantise.layers import Unit
from centernet_trt.errors import CalibrationError

__all__ = ["Budget", "BudgetError", "Means", "Probe", "SearchResult", "Thresholds", "Trial", "predicted_loss"]

Thresholds = Mapping[str, Mapping[Method, float]]
Means = Mapping[str, Sequence[float]]


class BudgetError(CalibrationError):
    """No int8 graph is inside the budget. The command line leaves with exit code 3."""


@dataclass(frozen=True)
class Budget:
    """What int8 may cost.

    Attributes:
        max_drop: expected drop in AP against the fp32 graph, 0..1.
        min_agreement: F1 of matched boxes at the spec's threshold against the fp32 graph's, 0..1, that images like the
            judged ones shall reach with a confidence of 90 % (`Agreement.f1_low`): what merely these images reach,
            others often do not.
        min_share: part of the multiply-adds that must be int8 for the result to count as int8 at all.
    """

    max_drop: float = 0.005
    min_agreement: float = 0.95
    min_share: float = 0.0

    def allows(self, damage: Damage) -> bool:
        """Whether a graph's damage is inside the budget (its share aside)."""
        return damage.drop <= self.max_drop and damage.agreement.f1_low >= self.min_agreement


@dataclass(frozen=True)
class Probe:
    """A unit alone in int8: by which method, at what cost, on how many images; `tried` has the loss by each method."""

    unit: Unit
    method: Method
    damage: Damage
    tried: dict[Method, float]


@dataclass(frozen=True)
class Trial:
    """A graph that the search ran on all images: how many units were int8, with what damage, and the verdict."""

    units: int
    share: float
    damage: Damage
    inside: bool
    what: str


@dataclass(frozen=True)
class SearchResult:
    """The mixed graph and how it was found.

    Attributes:
        model: the fp32 graph with Q/DQ.
        chosen: the units in int8.
        methods: how the threshold of each probed tensor was chosen.
        thresholds: of those tensors.
        skips: operands of additions that are quantised too: (node, tensor).
        damage: of `model`, on all images.
        share: of the multiply-adds in int8.
        probes: the damage of each unit alone, cheapest first.
        trials: the graphs tried.
    """

    model: ModelProto
    chosen: tuple[Unit, ...]
    methods: dict[str, Method]
    thresholds: dict[str, float]
    skips: list[tuple[str, str]]
    damage: Damage
    share: float
    probes: list[Probe]
    trials: list[Trial] = field(default_factory=list)

    @property
    def layers(self) -> set[str]:
        """Names of the int8 layers."""
        return {layer.name for unit in self.chosen for layer in unit.layers}


def predicted_loss(probes: Sequence[Probe]) -> float:
    """The loss of a graph with all these units in int8, from their single losses."""
    return math.sqrt(sum(probe.damage.loss**2 for probe in probes))
