"""Search the widest int8 placement inside the accuracy budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.layers import Survey, Unit
from centernet_trt.builder.int8.placement import place, residual_skips
from centernet_trt.builder.int8.probe import Means, Probe, Thresholds
from centernet_trt.errors import CalibrationError
from centernet_trt.progress import Progress

__all__ = [
    "Budget",
    "BudgetError",
    "Search",
    "SearchResult",
    "Trial",
]


class BudgetError(CalibrationError):
    """No int8 graph is inside the budget. The command line exits with code 3."""


@dataclass(frozen=True)
class Budget:
    """What int8 may cost.

    Attributes:
        max_drop: largest expected drop in AP against the fp32 graph, 0..1.
        min_agreement: smallest F1 of matched boxes at the spec's threshold against the fp32 graph, 0..1. It applies to
            the lower bound at a confidence of 90 % (`Agreement.f1_low`), since other images often do not reach the F1
            of the evaluated ones. It is also the smallest agreement of every further head (`DetectionLoss.heads`).
        min_share: smallest share of the multiply-adds that must be int8 for the result to count as int8 at all.
    """

    max_drop: float = 0.005
    min_agreement: float = 0.95
    min_share: float = 0.0

    def allows(self, loss: DetectionLoss) -> bool:
        """Whether a graph's loss is inside the budget; `min_share` is not checked."""
        agree = (loss.agreement.f1_low, *loss.heads.values())
        return loss.drop <= self.max_drop and all(value >= self.min_agreement for value in agree)

    def heads_below(self, loss: DetectionLoss) -> str:
        """The further heads that agree too little, for a message that goes on; empty if there are none."""
        below = [
            f"; head {name!r} agrees to {value:.4f}, {self.min_agreement - value:.4f} below {self.min_agreement:g}"
            for name, value in loss.heads.items()
            if not value >= self.min_agreement
        ]
        return "".join(below)


@dataclass(frozen=True)
class Trial:
    """A graph that the search ran on all images.

    Attributes:
        units: number of units in int8.
        share: of the multiply-adds in int8.
        loss: against the fp32 graph.
        inside: whether the budget allows it.
        what: which units, in words.
    """

    units: int
    share: float
    loss: DetectionLoss
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
        loss: of `model`, on all images.
        share: of the multiply-adds in int8.
        probes: each unit alone, cheapest first.
        trials: the graphs that were run.
    """

    model: ModelProto
    chosen: tuple[Unit, ...]
    methods: dict[str, Method]
    thresholds: dict[str, float]
    skips: list[tuple[str, str]]
    loss: DetectionLoss
    share: float
    probes: list[Probe]
    trials: list[Trial] = field(default_factory=list)

    @property
    def layers(self) -> set[str]:
        """Names of the int8 layers."""
        return {layer.name for unit in self.chosen for layer in unit.layers}


# Failed attempts to add a unit after the bisection; each costs a run over all images.
_MISSES = 6


class Search:
    """Find the graph with the most multiply-adds in int8 inside a budget; each candidate is run once.

    Call `best` first; `narrower` then returns the next best of the graphs that were run.
    """

    def __init__(
        self,
        model: ModelProto,
        layers: Survey,
        thresholds: Thresholds,
        probes: Sequence[Probe],
        evaluator: LossEvaluator,
        means: Means,
        *,
        residual_skip: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Prepare a search.

        Args:
            model: fp32, the graph that the probes were made with.
            layers: of the graph.
            thresholds: by tensor and method.
            probes: from `probe_units`, cheapest first.
            evaluator: measures whole graphs.
            means: of the channels of tensors, for the correction of biases.
            residual_skip: see `Rules`.
            progress: called with (what, done, total).
        """
        self.model, self.layers, self.probes = model, layers, probes
        self.evaluator, self.progress = evaluator, progress
        self.means, self.residual_skip = means, residual_skip
        self.values = {p.unit.tensor: thresholds[p.unit.tensor][p.method] for p in probes}
        # Skips may read tensors that no layer reads; they take the first method.
        self.all_values = {tensor: next(iter(by.values())) for tensor, by in thresholds.items()} | self.values
        self.known: dict[tuple[tuple[int, ...], bool], DetectionLoss] = {}
        self.trials: list[Trial] = []
        self.budget = Budget()

    def best(self, budget: Budget) -> SearchResult:
        """Return the best graph inside this budget.

        Raises:
            BudgetError: not even the cheapest unit is inside the budget, or the share in int8 is below `min_share`.
        """
        self.budget = budget
        chosen = self._fill(self._longest_prefix())
        if not chosen:
            raise self._refusal()
        skips = self._with_skips(chosen) if self.residual_skip else []
        return self._result(chosen, skips)

    def narrower(self, than: SearchResult) -> SearchResult:
        """Of the graphs run so far inside the budget, return the one with the largest share below that of `than`.

        Raises:
            BudgetError: there is none.
        """
        inside = [
            units
            for (units, skips), loss in self.known.items()
            if units and not skips and self.budget.allows(loss) and self._share(units) < than.share
        ]
        if not inside:
            raise BudgetError(
                f"no graph with less than {than.share:.1%} of the multiply-adds in int8 is inside the budget",
                "allow a larger --max-drop or a smaller --min-agreement, or build with --precision fp16",
            )
        return self._result(max(inside, key=self._share), [])

    def _result(self, chosen: Sequence[int], skips: list[tuple[str, str]]) -> SearchResult:
        budget, share = self.budget, self._share(chosen)
        if share < budget.min_share:
            raise BudgetError(
                f"inside a drop of {budget.max_drop:g} and an agreement of {budget.min_agreement:g}, {share:.1%} of "
                f"the multiply-adds can be int8, expected at least {budget.min_share:.1%}",
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
        names = self._names(chosen)
        return place(self.model, self.all_values, names, skips=skips, means=self.means)

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

            loss = self.known[key] = self.evaluator.evaluate(self._graph(key[0], skips), step)
            self.trials.append(Trial(len(key[0]), self._share(key[0]), loss, self.budget.allows(loss), what))
        return self.budget.allows(self.known[key])

    def _longest_prefix(self) -> list[int]:
        """The longest run of cheapest units that fits, by bisection."""
        fits, too_long = 0, len(self.probes) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._fits(range(middle), f"the {middle} cheapest units"):
                fits = middle
            else:
                too_long = middle
        return list(range(fits))

    def _fill(self, chosen: list[int]) -> list[int]:
        """Add later units one by one: a unit may fit where the whole run up to it does not."""
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
        """Operands of additions to quantise too: all, or none if the graph leaves the budget with them."""
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
                "the rules exclude every layer of this graph from int8",
                "build with --precision fp16, or allow more layers",
            )
        best = min(self.trials, key=lambda trial: trial.loss.drop)
        over = best.loss.drop - self.budget.max_drop
        found = f"drop {best.loss.drop:.4f}, {over:+.4f} against the budget"
        if (low := best.loss.agreement.f1_low) < self.budget.min_agreement:
            short = self.budget.min_agreement - low
            found += f"; agreement {low:.4f} with a confidence of 90 %, {short:.4f} below {self.budget.min_agreement:g}"
        found += self.budget.heads_below(best.loss)
        return BudgetError(
            f"no layer can be int8 inside a drop of {self.budget.max_drop:g}: the best graph tried has {best.units} "
            f"units in int8, {found}",
            "allow a larger --max-drop, or build with --precision fp16",
        )
