"""Make an int8 graph: calibrate, search, place Q/DQ, validate."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from centernet_trt.builder.calibration.images import CalibrationImages
from centernet_trt.builder.calibration.record import (
    CalibrationRecord,
    Identity,
    make_record,
    read_cache,
    read_record,
)
from centernet_trt.builder.calibration.statistics import collect_histograms, collect_statistics
from centernet_trt.builder.calibration.thresholds import METHODS, Method
from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.equalise import equalisable, equalise, replay
from centernet_trt.builder.int8.layers import Rules, Survey, survey
from centernet_trt.builder.int8.placement import LEVELS, place, raise_opset, residual_skips
from centernet_trt.builder.int8.probe import Means, Thresholds, probe_units
from centernet_trt.builder.int8.search import Budget, BudgetError, Search, SearchResult
from centernet_trt.builder.progress import BuildReporter
from centernet_trt.errors import CalibrationError
from centernet_trt.runtime.spec import InputSpec, ModelSpec

__all__ = ["Int8Options", "Int8Result", "calibrate", "make_int8"]


@dataclass(frozen=True)
class Int8Options:
    """How a graph becomes int8.

    Attributes:
        calibration: 100 to 500 training images.
        record: a `calibration.json` to reuse; it must have been made from the same model, images and pre-processing.
        cache: TensorRT's text calibration cache; its scales replace the thresholds chosen here. The channels are then
            not equalised, since the cache describes the graph before that.
        method: how thresholds are chosen first; a layer that loses much by it gets the best of the others.
        budget: what int8 may cost.
        rules: which layers may be int8, and what is done for their accuracy.
        everything: no search; every layer that may be int8 is, with thresholds by `method` alone. For experiments.
        judged_images: most images that whole graphs are evaluated on.
        probe_images: most images that single layers are evaluated on.
        threads: of ONNX Runtime.
    """

    calibration: CalibrationImages | None = None
    record: Path | None = None
    cache: Path | None = None
    method: Method = "mse"
    budget: Budget = field(default_factory=Budget)
    rules: Rules = field(default_factory=Rules)
    everything: bool = False
    judged_images: int = 128
    probe_images: int = 16
    threads: int = 1


@dataclass(frozen=True)
class Int8Result:
    """The mixed graph, and what the report is made of.

    Attributes:
        model: fp32 with Q/DQ; `to_fp16` types the rest of the graph.
        record: thresholds of every tensor.
        search: layers chosen, losses, trials.
        survey: layers of the graph.
        evaluator: the fp32 graph's detections on the images that whole graphs are evaluated on.
        options: of the caller.
        probe_images: names of the images that single layers were evaluated on.
        notes: for the user.
        again: the search, to continue; None if there was none.
    """

    model: ModelProto
    record: CalibrationRecord
    search: SearchResult
    survey: Survey
    evaluator: LossEvaluator
    options: Int8Options
    probe_images: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    again: Search | None = None

    def inside_budget(self, typed: DetectionLoss) -> bool:
        """Whether the typed graph, with this measured loss, is inside the budget; always true without a search."""
        return self.again is None or self.options.budget.allows(typed)

    def narrower(self, typed: DetectionLoss) -> "Int8Result":
        """Return the next best graph, after the typed one was found outside the budget.

        Args:
            typed: measured loss of the typed graph, for the message.

        Raises:
            BudgetError: there is none.
        """
        if self.again is None:
            raise ValueError("nothing was searched")
        try:
            found = self.again.narrower(self.search)
        except BudgetError as error:
            budget, simulated = self.options.budget, self.search.loss
            raise BudgetError(
                f"with fp16 around int8 no graph is inside a drop of {budget.max_drop:g} and an agreement of "
                f"{budget.min_agreement:g} (confidence 90 %): the last has a drop of {typed.drop:.4f} and an agreement "
                f"of {typed.agreement.f1_low:.4f}, in fp32 {simulated.drop:.4f} and {simulated.agreement.f1_low:.4f}"
                f"{budget.heads_below(typed)}; {error.message}",
                "allow a larger --max-drop or a smaller --min-agreement, or build with --precision fp16",
            ) from None
        return replace(self, model=found.model, search=found)


def make_int8(
    model: ModelProto, spec: ModelSpec, shape: tuple[int, int], options: Int8Options, reporter: BuildReporter
) -> Int8Result:
    """Make the mixed int8 graph with the most multiply-adds in int8 inside the budget.

    Args:
        model: fp32, batch norms folded, nodes named.
        spec: pre-processing, decode and threshold.
        shape: (height, width) of the input that multiply-adds are counted for, in pixels.
        options: see `Int8Options`.
        reporter: receives the progress.

    Raises:
        CalibrationError: images, record or cache cannot be used; NaN or infinite activations.
        BudgetError: no int8 graph is inside the budget.
        ModelError: sizes that cannot be inferred.
    """
    images = options.calibration
    if images is None:
        raise CalibrationError(
            "int8 needs images to calibrate on, got none",
            "--calibration DIR: 100 to 500 images of your training set, never of the validation set",
        )
    reporter.stage("calibration")
    model = raise_opset(model)
    model, record = calibrate(model, spec.input, images, options, reporter)
    layers = survey(model, *shape, options.rules)
    dead = record.always_zero
    layers = _without(layers, dict.fromkeys(dead, "its input was zero on every calibration image"))
    thresholds, missing = _thresholds(record, layers, options)
    layers = _without(layers, missing)
    means: Means = {}
    if options.rules.correct_bias:
        means = {name: tensor.means for name, tensor in record.tensors.items() if tensor.means}
    reporter.stage("int8 search")
    judged = images.subset(_spread(len(images), options.judged_images))
    evaluator = LossEvaluator(
        model,
        spec,
        judged.images,
        threads=options.threads,
        progress=lambda done, total: reporter.step("fp32 reference", done, total),
    )
    probing = images.subset(_spread(len(images), options.probe_images))
    searching: Search | None = None
    if options.everything:
        values = {unit.tensor: thresholds[unit.tensor][options.method] for unit in layers.units}
        found = _everything(model, layers, values, evaluator, options, means, reporter)
    else:
        small = LossEvaluator(model, spec, probing.images, threads=options.threads)
        methods = _methods(thresholds, options.method)
        probes = probe_units(model, layers.units, thresholds, small, methods, means, reporter.step)
        searching = Search(
            model,
            layers,
            thresholds,
            probes,
            evaluator,
            means,
            residual_skip=options.rules.residual_skip,
            progress=reporter.step,
        )
        found = searching.best(options.budget)
    notes = (*images.notes, *(f"tensor {name!r} was zero on every calibration image" for name in dead))
    names = tuple(image.name for image in probing)
    return Int8Result(found.model, record, found, layers, evaluator, options, names, notes, searching)


def _everything(
    model: ModelProto,
    layers: Survey,
    values: dict[str, float],
    evaluator: LossEvaluator,
    options: Int8Options,
    means: Means,
    reporter: BuildReporter,
) -> SearchResult:
    """Every layer that may be int8 in int8, with these thresholds: no budget, no choice."""
    names = {layer.name for unit in layers.units for layer in unit.layers}
    skips = residual_skips(model, names) if options.rules.residual_skip else []
    skips = [(node, tensor) for node, tensor in skips if tensor in values]
    graph = place(model, values, names, skips=skips, means=means)
    loss = evaluator.evaluate(graph, lambda done, total: reporter.step("every layer", done, total))
    share = sum(unit.multiply_adds for unit in layers.units) / (layers.multiply_adds or 1)
    return SearchResult(
        graph, layers.units, dict.fromkeys(values, options.method), values, skips, loss, share, []
    )


def calibrate(
    model: ModelProto,
    spec: InputSpec,
    images: CalibrationImages,
    options: Int8Options,
    reporter: BuildReporter,
) -> tuple[ModelProto, CalibrationRecord]:
    """Return the equalised graph, and the record of every activation that a layer reads.

    Both passes over the images happen here, unless `options.record` is a record of the same model, images and
    pre-processing.

    Args:
        model: fp32, batch norms folded, shapes inferred.
        spec: pre-processing.
        images: to run the graph on.
        options: see `Int8Options`.
        reporter: receives the progress.

    Raises:
        CalibrationError: the record cannot be read or was made from something else; NaN or infinite activations.
    """
    tensors = tuple(dict.fromkeys(node.input[0] for node in model.graph.node if _reads_weights(node.op_type)))
    identity = Identity.of(model, spec, images)
    may_equalise = options.rules.equalise and options.cache is None
    if options.record is not None:
        record = read_record(options.record)
        record.require(identity, str(options.record))
        exponents = {name: tensor.exponents for name, tensor in record.tensors.items() if tensor.exponents}
        if bool(exponents) and not may_equalise:
            raise CalibrationError(
                f"{options.record} describes a graph with equalised channels, but equalisation is off",
                "calibrate again: leave --calibration-record out",
            )
        return replay(model, exponents), record
    found = collect_statistics(
        model, spec, images.images, tensors, threads=options.threads, progress=reporter.step
    )
    exponents = {}
    if may_equalise:
        wanted = set(equalisable(model))
        model, exponents = equalise(model, {name: found[name].amax for name in tensors if name in wanted})
    factors = {name: np.exp2(exponents.get(name, np.zeros(len(one.amax)))) for name, one in found.items()}
    amax = {name: float((one.amax * factors[name]).max(initial=0.0)) for name, one in found.items()}
    means = {name: one.mean * factors[name] for name, one in found.items()}
    histograms = collect_histograms(
        model, spec, images.images, amax, threads=options.threads, progress=reporter.step
    )
    return model, make_record(identity, histograms, means, exponents)


def _reads_weights(op_type: str) -> bool:
    return op_type in ("Conv", "ConvTranspose", "Gemm")


def _without(layers: Survey, reasons: Mapping[str, str]) -> Survey:
    """Exclude the units that read these tensors, for these reasons."""
    excluded = {
        layer.name: reasons[unit.tensor]
        for unit in layers.units
        if unit.tensor in reasons
        for layer in unit.layers
    }
    units = tuple(unit for unit in layers.units if unit.tensor not in reasons)
    return Survey(layers.layers, units, layers.excluded | excluded)


def _thresholds(
    record: CalibrationRecord, layers: Survey, options: Int8Options
) -> tuple[Thresholds, dict[str, str]]:
    """Thresholds by tensor and method, and why some tensors have none."""
    if options.cache is None:
        return {name: tensor.thresholds for name, tensor in record.tensors.items()}, {}
    cache = read_cache(options.cache)
    wanted = [unit.tensor for unit in layers.units]
    known: Thresholds = {
        name: {options.method: LEVELS * cache.scales[name]} for name in wanted if name in cache.scales
    }
    if not known:
        raise CalibrationError(
            f"{options.cache} belongs to another model: none of its {len(cache.scales)} tensors is in this graph (it "
            f"has {next(iter(cache.scales), 'nothing')!r}, the graph has {next(iter(wanted), 'nothing')!r})",
            "give the cache that was written for this ONNX file, or leave it out to calibrate here",
        )
    missing = {name: f"the cache {options.cache.name} has no scale for {name}" for name in wanted}
    return known, {name: reason for name, reason in missing.items() if name not in known}


def _methods(thresholds: Thresholds, first: Method) -> list[Method]:
    """The methods to try: the first, then the others that have thresholds."""
    known = next(iter(thresholds.values()), {})
    return [first, *(method for method in METHODS if method != first and method in known)]


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread."""
    return list(range(count)) if count <= most else [row * count // most for row in range(most)]
