"""The search and the probes, with known losses, and the budget."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.int8_network import network, pictures
from helpers.tiny_centernet import tiny_spec
from onnx import ModelProto

from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.layers import layers_in_int8, share_in_int8, survey
from centernet_trt.builder.int8.probe import Probe, predicted_loss, probe_units
from centernet_trt.builder.int8.search import Budget, BudgetError, Search
from centernet_trt.evaluation.accuracy.agreement import agreement
from centernet_trt.runtime.detections import Detections

SPEC = tiny_spec(threshold=0.3)
# What each tensor's readers cost in int8 in the tests with known losses.
COSTS = {
    "image": 0.004,
    "r0": 0.0001,
    "r1": 0.001,
    "r2": 0.0005,
    "a3": 0.0002,
    "r4": 0.02,
    "r5": 0.0011,
    "r6": 0.003,
}
NOBODY = agreement(
    [Detections(np.zeros((0, 4), "f"), np.zeros(0, "f"), np.zeros(0, "i4"))] * 2,
    [Detections(np.zeros((0, 4), "f"), np.zeros(0, "f"), np.zeros(0, "i4"))] * 2,
    threshold=0.3,
)


class KnownLoss(LossEvaluator):
    """Drops add up as COSTS says; counts its calls."""

    def __init__(self, f1: float = 1.0) -> None:
        self.asked = 0
        self.f1 = f1
        self.units = survey(network(), 64, 64).units

    def evaluate(self, model: ModelProto, progress: object = None) -> DetectionLoss:
        self.asked += 1
        names = layers_in_int8(model)
        tensors = [u.tensor for u in self.units if any(layer.name in names for layer in u.layers)]
        drop = sum(COSTS[tensor] for tensor in tensors)
        return DetectionLoss(drop**0.5, drop, replace(NOBODY, f1=1.0, f1_low=self.f1))


def known(budget: Budget, f1: float = 1.0) -> tuple[object, KnownLoss]:
    model, evaluator = network(), KnownLoss(f1)
    layers = survey(model, 64, 64)
    thresholds = {unit.tensor: {"max": 1.0} for unit in layers.units}
    probes = probe_units(model, layers.units, thresholds, evaluator, ["max"], {})
    return Search(model, layers, thresholds, probes, evaluator, {}).best(budget), evaluator


def best_share(max_drop: float) -> float:
    """The most multiply-adds inside a budget, by trying every set of units."""
    units = survey(network(), 64, 64).units
    total = survey(network(), 64, 64).multiply_adds
    best = 0
    for mask in range(1 << len(units)):
        chosen = [unit for row, unit in enumerate(units) if mask >> row & 1]
        if sum(COSTS[unit.tensor] for unit in chosen) <= max_drop + 1e-12:
            best = max(best, sum(unit.multiply_adds for unit in chosen))
    return best / total


@pytest.mark.parametrize("max_drop", [0.0002, 0.001, 0.003, 0.006, 0.01, 0.1])
def test_the_search_finds_most_of_what_is_possible(max_drop: float) -> None:
    result, evaluator = known(Budget(max_drop))
    assert result.loss.drop <= max_drop
    assert result.share >= 0.85 * best_share(max_drop)
    assert result.share == pytest.approx(share_in_int8(result.model, 64, 64))
    assert evaluator.asked < 8 + 4 + 8
    assert layers_in_int8(result.model) == result.layers


@pytest.mark.parametrize(
    ("budget", "f1", "said"),
    [
        (Budget(0.00005), 1.0, r"best graph tried has 1 units in int8, drop 0\.0001, \+0\.0001"),
        (Budget(0.005), 0.9, r"agreement 0\.9000 with a confidence of 90 %, 0\.0500 below"),
        (Budget(0.003, min_share=0.99), 1.0, r"expected at least 99\.0%"),
    ],
)
def test_a_budget_that_cannot_be_met_says_by_how_much(budget: Budget, f1: float, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        known(budget, f1)


@pytest.mark.parametrize(("wanted", "cost"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_skips_are_quantised_by_rule_where_the_budget_allows(wanted: bool, cost: float) -> None:
    class SkipLoss(KnownLoss):
        """A quantised operand of the residual addition costs `cost`."""

        def evaluate(self, model: ModelProto, progress: object = None) -> DetectionLoss:
            loss = super().evaluate(model, progress)
            (add,) = (node for node in model.graph.node if node.name == "residual")
            return replace(loss, drop=loss.drop + cost * ("r1/dequantised" in add.input))

    model, evaluator = network(), SkipLoss()
    layers = survey(model, 64, 64)
    thresholds = {unit.tensor: {"max": 1.0} for unit in layers.units}
    probes = probe_units(model, layers.units, thresholds, evaluator, ["max"], {})
    search = Search(model, layers, thresholds, probes, evaluator, {}, residual_skip=wanted)
    result = search.best(Budget(0.1))
    (add,) = (node for node in result.model.graph.node if node.name == "residual")
    taken = wanted and cost == 0
    assert (("residual", "r1") in result.skips) == taken
    assert ("r1/dequantised" in add.input) == taken
    assert layers_in_int8(result.model) == result.layers


def test_losses_are_predicted_as_independent_noise() -> None:
    unit = survey(network(), 64, 64).units[0]
    probes = [Probe(unit, "max", DetectionLoss(loss, 0.0, NOBODY), {}) for loss in (0.03, 0.04)]
    assert predicted_loss(probes) == pytest.approx(0.05)


def test_another_method_is_tried_where_the_first_costs_much() -> None:
    model, images = network(), pictures()
    evaluator = LossEvaluator(model, SPEC, images.images)
    unit = next(u for u in survey(model, 64, 64).units if u.tensor == "r6")
    thresholds = {"r6": {"entropy": 1e-3, "percentile": 1e-3, "max": 4.0}}
    (probe,) = probe_units(model, [unit], thresholds, evaluator, ["entropy", "percentile", "max"], {})
    assert probe.method == "max"
    assert set(probe.tried) == {"entropy", "max"}  # the second gives the same graph as the first
    assert probe.tried["max"] < probe.tried["entropy"]


@pytest.mark.parametrize(("other", "taken"), [(0.6, "mse"), (0.4, "max")])
def test_another_method_is_taken_where_it_costs_less_than_half(other: float, taken: str) -> None:
    class Scripted(KnownLoss):
        """The first threshold costs 0.1, the other one a part of it."""

        def evaluate(self, model: ModelProto, progress: object = None) -> DetectionLoss:
            self.asked += 1
            return DetectionLoss(0.1 if self.asked == 1 else 0.1 * other, 0.0, NOBODY)

    model = network()
    unit = next(u for u in survey(model, 64, 64).units if u.tensor == "r0")
    thresholds = {"r0": {"mse": 1.0, "max": 4.0}}
    (probe,) = probe_units(model, [unit], thresholds, Scripted(), ["mse", "max"], {})
    assert probe.method == taken
    assert set(probe.tried) == {"mse", "max"}


class TypedLoss(KnownLoss):
    """Typing costs `extra` beyond what the search sees."""

    def __init__(self, extra: float) -> None:
        super().__init__()
        self.extra = extra

    def typed(self, model: ModelProto) -> DetectionLoss:
        simulated = self.evaluate(model)
        return replace(simulated, drop=simulated.drop + self.extra)


@pytest.mark.parametrize("extra", [0.0, 0.0002, 0.0008])
def test_the_next_best_graph_is_taken_until_the_typed_one_is_inside(extra: float) -> None:
    model, evaluator, budget = network(), TypedLoss(extra), Budget(0.003)
    layers = survey(model, 64, 64)
    thresholds = {unit.tensor: {"max": 1.0} for unit in layers.units}
    probes = probe_units(model, layers.units, thresholds, evaluator, ["max"], {})
    search = Search(model, layers, thresholds, probes, evaluator, {})
    found = first = search.best(budget)
    asked = evaluator.asked
    while not budget.allows(evaluator.typed(found.model)):
        before = found
        found = search.narrower(before)
        assert found.share < before.share
        assert budget.allows(found.loss)
        assert layers_in_int8(found.model) == found.layers
    assert (found is first) == (extra == 0.0)
    assert evaluator.asked - asked <= 2 * len(search.trials)  # `typed` asks; nothing is searched anew
    with pytest.raises(BudgetError, match="no graph with less than"):
        while True:
            found = search.narrower(found)


def test_a_budget_wants_a_surplus_where_few_images_speak() -> None:
    rng = np.random.default_rng(3)
    images = [scene_of(rng) for _ in range(40)]
    found = [image[rng.random(len(image)) < 0.92] for image in images]
    few, many = (agreement(images[:n], found[:n], threshold=0.3) for n in (5, 40))
    # The bound lies below the figure itself, and nearer to it with more images.
    assert few.f1_low < few.f1
    assert 0 < many.f1 - many.f1_low < few.f1 - few.f1_low
    between = (many.f1 + many.f1_low) / 2
    assert not Budget(1.0, between).allows(DetectionLoss(0.0, 0.0, many))
    assert Budget(1.0, many.f1_low).allows(DetectionLoss(0.0, 0.0, many))


def scene_of(rng: np.random.Generator) -> Detections:
    corner = rng.uniform(0, 400, (int(rng.integers(3, 12)), 2))
    boxes = np.concatenate([corner, corner + 50], axis=1).astype(np.float32)
    scores = np.full(len(boxes), 0.8, np.float32)
    return Detections(boxes, scores, np.arange(len(boxes), dtype=np.int32))


def test_a_further_head_below_the_agreement_is_outside_the_budget_and_named() -> None:
    budget, agree = Budget(1.0, 0.95), replace(NOBODY, f1=1.0, f1_low=1.0)
    for value, inside in ((0.96, True), (0.94, False), (float("nan"), False)):
        loss = DetectionLoss(0.0, 0.0, agree, {"embedding": value, "landmarks": 1.0})
        assert budget.allows(loss) is inside
        assert ("head 'embedding'" in budget.heads_below(loss)) is not inside
        assert "landmarks" not in budget.heads_below(loss)
