"""Search the widest int8 placement inside the accuracy budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.layers import Rules, Survey, Unit
from centernet_trt.builder.int8.placement import place, residual_skips
from centernet_trt.errors import CalibrationError
from centernet_trt.progress import Progress

__all__ = [
    "Budget",
    "BudgetError",
    "Means",
    "Probe",
    "Search",
    "SearchResult",
    "Thresholds",
    "Trial",
    "everything",
    "predicted_loss",
    "probe_units",
]

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

    def allows(self, damage: DetectionLoss) -> bool:
        """Whether a graph's damage is inside the budget (its share aside)."""
        return damage.drop <= self.max_drop and damage.agreement.f1_low >= self.min_agreement


@dataclass(frozen=True)
class Probe:
    """A unit alone in int8: by which method, at what cost, on how many images; `tried` has the loss by each method."""

    unit: Unit
    method: Method
    damage: DetectionLoss
    tried: dict[Method, float]


@dataclass(frozen=True)
class Trial:
    """A graph that the search ran on all images: how many units were int8, with what damage, and the verdict."""

    units: int
    share: float
    damage: DetectionLoss
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
    damage: DetectionLoss
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


# A unit that costs less than this by the method asked for is not tried with another.
_CHEAP = 0.03
# Another method is taken where its loss is below this part of the first's. Not merely where it is smaller: that would
# fit every threshold to the few images that units are judged on. The COCO MobileNetV3 with 33 layers in int8 lost the
# same on its calibration images with the best method of each tensor and with squared error for all (0.140, 0.144), on
# other images it agreed with fp32 in 0.946 and 0.959 of the boxes.
_FAR_BETTER = 0.5
# Units behind the run that bisection found, tried one by one; a miss costs a run over all images.
_MISSES = 6


def probe_units(
    model: ModelProto,
    units: Sequence[Unit],
    thresholds: Thresholds,
    judge: LossEvaluator,
    methods: Sequence[Method],
    rules: Rules,
    means: Means,
    progress: Progress | None = None,
) -> list[Probe]:
    """Each unit alone in int8, by the first method, and where that costs much by the others; cheapest first.

    Another method is taken where it costs less than half.

    Cheapest by squared loss per multiply-add: the order in which units are worth being int8.
    """
    probes = []
    for done, unit in enumerate(units):
        if progress is not None:
            progress("damage of single layers", done, len(units))
        names = {layer.name for layer in unit.layers}
        found: dict[Method, DetectionLoss] = {}
        for method in methods:
            value = thresholds[unit.tensor][method]
            if any(thresholds[unit.tensor][other] == value for other in found):
                continue  # the same graph again
            found[method] = judge.damage(place(model, {unit.tensor: value}, names, rules, means=means))
            if found[method].loss < _CHEAP:
                break
        first = next(iter(found))
        best = min(found, key=lambda method: found[method].loss)
        if found[best].loss >= _FAR_BETTER * found[first].loss:
            best = first
        tried: dict[Method, float] = {method: damage.loss for method, damage in found.items()}
        probes.append(Probe(unit, best, found[best], tried))
    return sorted(
        probes, key=lambda probe: (probe.damage.loss**2 / probe.unit.multiply_adds, probe.unit.tensor)
    )


def everything(
    model: ModelProto,
    layers: Survey,
    thresholds: Thresholds,
    judge: LossEvaluator,
    rules: Rules,
    means: Means,
    progress: Progress | None = None,
) -> SearchResult:
    """Every layer that may be int8 in int8, each by the first of its methods: no budget, no choice."""
    methods: dict[str, Method] = {unit.tensor: next(iter(thresholds[unit.tensor])) for unit in layers.units}
    values = {tensor: thresholds[tensor][method] for tensor, method in methods.items()}
    names = {layer.name for unit in layers.units for layer in unit.layers}
    skips = residual_skips(model, names) if rules.residual_skip else []
    skips = [(node, tensor) for node, tensor in skips if tensor in values]
    graph = place(model, values, names, rules, skips, means)
    damage = judge.damage(graph, lambda done, total: progress and progress("every layer", done, total))
    share = sum(unit.multiply_adds for unit in layers.units) / (layers.multiply_adds or 1)
    return SearchResult(graph, layers.units, methods, values, skips, damage, share, [])


class Search:
    """The graph with the most multiply-adds in int8 inside a budget; each graph on the way is run once.

    `best` comes first; `narrower` gives the next best ones of the graphs that were run for it.
    """

    def __init__(
        self,
        model: ModelProto,
        layers: Survey,
        thresholds: Thresholds,
        probes: Sequence[Probe],
        judge: LossEvaluator,
        rules: Rules,
        means: Means,
        progress: Progress | None = None,
    ) -> None:
        """Search nothing yet.

        Args:
            model: fp32, the graph that the probes were made with.
            layers: what the graph consists of.
            thresholds: by tensor and method.
            probes: from `probe_units`, cheapest first.
            judge: measures whole graphs.
            rules: see `Rules`.
            means: of the channels of tensors, for the correction of biases.
            progress: called with (what, done, in all).
        """
        self.model, self.layers, self.probes = model, layers, probes
        self.judge, self.rules, self.progress = judge, rules, progress
        self.means = means
        self.values = {p.unit.tensor: thresholds[p.unit.tensor][p.method] for p in probes}
        # Skips may read tensors that no layer does; they take the method of most tensors.
        self.all_values = {tensor: next(iter(by.values())) for tensor, by in thresholds.items()} | self.values
        self.known: dict[tuple[tuple[int, ...], bool], DetectionLoss] = {}
        self.trials: list[Trial] = []
        self.budget = Budget()

    def best(self, budget: Budget) -> SearchResult:
        """The best graph inside this budget.

        Raises:
            BudgetError: not even the cheapest unit is inside the budget, or the share in int8 is below its least.
        """
        self.budget = budget
        chosen = self._fill(self._longest_prefix())
        if not chosen:
            raise self._refusal()
        skips = self._with_skips(chosen) if self.rules.residual_skip else []
        return self._result(chosen, skips)

    def narrower(self, than: SearchResult) -> SearchResult:
        """Of the graphs run so far that are inside the budget, the one with the most in int8 below another's share.

        Raises:
            BudgetError: there is none.
        """
        inside = [
            units
            for (units, skips), damage in self.known.items()
            if units and not skips and self.budget.allows(damage) and self._share(units) < than.share
        ]
        if not inside:
            raise BudgetError(
                f"no graph with less than {than.share:.1%} of the multiply-adds in int8 is inside"
            )
        return self._result(max(inside, key=self._share), [])

    def _result(self, chosen: Sequence[int], skips: list[tuple[str, str]]) -> SearchResult:
        budget, share = self.budget, self._share(chosen)
        if share < budget.min_share:
            raise BudgetError(
                f"inside a drop of {budget.max_drop:g} and an agreement of {budget.min_agreement:g}, {share:.1%} of "
                f"the multiply-adds can be int8; at least {budget.min_share:.1%} were asked for",
                "allow a larger --max-drop, give more calibration images, or build with --precision fp16",
            )
        return SearchResult(
            self._graph(chosen, skips),
            tuple(self.probes[index].unit for index in chosen),
            {probe.unit.tensor: probe.method for probe in self.probes},
            self.values,
            skips,
            self.known[tuple(chosen), bool(skips)],
            share,
            list(self.probes),
            list(self.trials),
        )

    def _graph(self, chosen: Sequence[int], skips: Sequence[tuple[str, str]] = ()) -> ModelProto:
        return place(self.model, self.all_values, self._names(chosen), self.rules, skips, self.means)

    def _names(self, chosen: Sequence[int]) -> set[str]:
        return {layer.name for index in chosen for layer in self.probes[index].unit.layers}

    def _share(self, chosen: Sequence[int]) -> float:
        inside = sum(self.probes[index].unit.multiply_adds for index in chosen)
        return inside / (self.layers.multiply_adds or 1)

    def _fits(self, chosen: Sequence[int], what: str, skips: Sequence[tuple[str, str]] = ()) -> bool:
        key = tuple(sorted(chosen)), bool(skips)
        if key not in self.known:
            number = len(self.trials) + 1

            def step(done: int, total: int) -> None:
                if self.progress is not None:
                    self.progress(f"search, graph {number}", done, total)

            self.known[key] = self.judge.damage(self._graph(key[0], skips), step)
            damage = self.known[key]
            inside = self.budget.allows(damage)
            self.trials.append(Trial(len(key[0]), self._share(key[0]), damage, inside, what))
        return self.budget.allows(self.known[key])

    def _longest_prefix(self) -> list[int]:
        """By bisection: the longest run of units from the cheapest that fits."""
        fits, too_long = 0, len(self.probes) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._fits(range(middle), f"the {middle} cheapest units"):
                fits = middle
            else:
                too_long = middle
        return list(range(fits))

    def _fill(self, chosen: list[int]) -> list[int]:
        """Units behind the run, one by one: those with much to gain for their cost fit where a whole run does not."""
        misses = 0
        for index in range(len(chosen), len(self.probes)):
            if misses >= _MISSES:
                break
            name = self.probes[index].unit.tensor
            if self._fits([*chosen, index], f"also the readers of {name}"):
                chosen = [*chosen, index]
            else:
                misses += 1
        return sorted(chosen)

    def _with_skips(self, chosen: list[int]) -> list[tuple[str, str]]:
        """The operands of additions that may be int8 too, if the graph stays inside the budget with all of them."""
        skips = [
            (node, tensor)
            for node, tensor in residual_skips(self.model, self._names(chosen))
            if tensor in self.all_values
        ]
        return skips if skips and self._fits(chosen, "also skip operands of additions", skips) else []

    def _refusal(self) -> BudgetError:
        """By how much the cheapest unit misses the budget."""
        if not self.trials:
            return BudgetError(
                "no layer of this graph may be int8 by the rules in force",
                "build with --precision fp16, or allow more layers",
            )
        best = min(self.trials, key=lambda trial: trial.damage.drop)
        over = best.damage.drop - self.budget.max_drop
        found = f"drop {best.damage.drop:.4f}, {over:+.4f} against the budget"
        if (sure := best.damage.agreement.f1_low) < self.budget.min_agreement:
            short = self.budget.min_agreement - sure
            found += f"; agreement {sure:.4f} with a confidence of 90 %, {short:.4f} below {self.budget.min_agreement:g}"
        return BudgetError(
            f"no layer can be int8 inside a drop of {self.budget.max_drop:g}: the best graph tried has {best.units} "
            f"units in int8, {found}",
            "allow a larger --max-drop, or build with --precision fp16",
        )
