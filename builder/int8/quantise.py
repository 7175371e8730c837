"""Make an int8 graph: calibrate, search, place Q/DQ, validate."""

from collections.abc import Mapping, Sequence
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
from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.equalise import equalisable, equalise, replay
from centernet_trt.builder.int8.layers import Rules, Survey, survey
from centernet_trt.builder.int8.placement import LEVELS, raise_opset
from centernet_trt.builder.int8.search import (
    Budget,
    BudgetError,
    Search,
    SearchResult,
    Thresholds,
    everything,
    probe_units,
)
from centernet_trt.builder.progress import BuildReporter
from centernet_trt.errors import CalibrationError
from centernet_trt.runtime.spec import InputSpec, ModelSpec

__all__ = ["Int8Options", "Int8Result", "calibrate", "make_int8"]


@dataclass(frozen=True)
class Int8Options:
    """How a graph becomes int8.

    Attributes:
        calibration: the images: training images, 100 to 500 of them.
        record: a `calibration.json` to use again; it must have been made from the same model, images and
            pre-processing.
        cache: TensorRT's text calibration cache: its scales are used instead of our thresholds. The channels are
            then not equalised, for the cache speaks of the graph as it was.
        method: how thresholds are chosen; a layer that suffers much by it gets the best of the others.
        budget: what int8 may cost.
        rules: which layers may be int8, and how.
        everything: no search, every layer that may be int8 is, with thresholds by `method` alone: an experiment.
        judged_images: most images that whole graphs are judged on.
        probe_images: most images that single layers are judged on.
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
    """The mixed graph, and all that the report tells.

    Attributes:
        model: fp32 with Q/DQ; `to_fp16` types what is around them.
        record: thresholds of every tensor.
        search: layers chosen, damages, trials.
        survey: what the graph consists of.
        judge: the fp32 graph's detections on the judged images.
        options: as asked for.
        probe_images: names of the images that single layers were judged on.
        notes: what the user should know.
        again: the search, to go on with; None where there was none.
    """

    model: ModelProto
    record: CalibrationRecord
    search: SearchResult
    survey: Survey
    judge: LossEvaluator
    options: Int8Options
    probe_images: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    again: Search | None = None

    def inside_budget(self, typed: DetectionLoss) -> bool:
        """Whether the typed graph, with this measured damage, is what was asked for; so is all without a search."""
        return self.again is None or self.options.budget.allows(typed)

    def narrower(self, typed: DetectionLoss) -> "Int8Result":
        """The next best graph, where the typed one is outside the budget by its measured damage.

        Raises:
            BudgetError: there is none.
        """
        if self.again is None:
            raise ValueError("nothing was searched")
        try:
            found = self.again.narrower(self.search)
        except BudgetError as error:
            budget, simulated = self.options.budget, self.search.damage
            raise BudgetError(
                f"with fp16 around int8 no graph is inside a drop of {budget.max_drop:g} and an agreement of "
                f"{budget.min_agreement:g} (confidence 90 %): the last has a drop of {typed.drop:.4f} and an agreement "
                f"of {typed.agreement.f1_low:.4f}, in fp32 {simulated.drop:.4f} and {simulated.agreement.f1_low:.4f}; "
                f"{error.message}",
                "allow a larger --max-drop or a smaller --min-agreement, or build with --precision fp16",
            ) from None
        return replace(self, model=found.model, search=found)


def make_int8(
    model: ModelProto, spec: ModelSpec, shape: tuple[int, int], options: Int8Options, reporter: BuildReporter
) -> Int8Result:
    """The mixed int8 graph with the most multiply-adds in int8 inside the budget.

    Args:
        model: fp32, batch norms folded, nodes named.
        spec: pre-processing, decode and threshold.
        shape: (height, width) of the input that multiply-adds are counted for.
        options: see `Int8Options`.
        reporter: hears the progress.

    Raises:
        CalibrationError: images, record or cache cannot be used; NaN or infinite activations.
        BudgetError: no int8 graph is inside the budget.
        ModelError: sizes that cannot be inferred.
    """
    images = options.calibration
    if images is None:
        raise CalibrationError(
            "int8 needs images to calibrate on, none were given",
            "--calibration DIR: 100 to 500 images of your training set, never of the validation set",
        )
    reporter.stage("calibration")
    model = raise_opset(model)
    model, record = calibrate(model, spec.input, images, options, reporter)
    layers = survey(model, *shape, options.rules)
    layers, dead = _without_dead(layers, record, options.rules)
    thresholds, missing = _thresholds(record, layers, options)
    layers = _without(layers, missing)
    means = {name: tensor.means for name, tensor in record.tensors.items() if tensor.means}
    reporter.stage("int8 search")
    judged = images.subset(_spread(len(images), options.judged_images))
    judge = LossEvaluator(
        model,
        spec,
        judged.images,
        threads=options.threads,
        progress=lambda done, total: reporter.step("fp32 reference", done, total),
    )
    probing = images.subset(_spread(len(images), options.probe_images))
    searching: Search | None = None
    if options.everything:
        alone: Thresholds = {name: {options.method: by[options.method]} for name, by in thresholds.items()}
        found = everything(model, layers, alone, judge, options.rules, means, reporter.step)
    else:
        small = LossEvaluator(model, spec, probing.images, threads=options.threads)
        methods = _methods(thresholds, options.method)
        probes = probe_units(
            model, layers.units, thresholds, small, methods, options.rules, means, reporter.step
        )
        searching = Search(model, layers, thresholds, probes, judge, options.rules, means, reporter.step)
        found = searching.best(options.budget)
    notes = (*images.notes, *(f"tensor {name!r} was zero on every calibration image" for name in dead))
    names = tuple(image.name for image in probing)
    return Int8Result(found.model, record, found, layers, judge, options, names, notes, searching)


def calibrate(
    model: ModelProto,
    spec: InputSpec,
    images: CalibrationImages,
    options: Int8Options,
    reporter: BuildReporter,
) -> tuple[ModelProto, CalibrationRecord]:
    """The equalised graph, and the thresholds of every activation that a layer reads.

    Both passes over the images are made here, unless a record of the same model, images and pre-processing is given.
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
                f"{options.record} is of a graph with equalised channels, and equalisation is off here",
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


def _without_dead(layers: Survey, record: CalibrationRecord, rules: Rules) -> tuple[Survey, tuple[str, ...]]:
    """The survey without the units whose input was always zero, by rule; and which tensors those are."""
    dead = tuple(unit.tensor for unit in layers.units if unit.tensor in record.always_zero)
    reasons = dict.fromkeys(dead, "its input was zero on every calibration image")
    return (layers if rules.dead_inputs else _without(layers, reasons)), record.always_zero


def _without(layers: Survey, reasons: Mapping[str, str]) -> Survey:
    """The survey without the units that read these tensors."""
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
    """Thresholds by tensor and method; and why some tensors have none."""
    if options.cache is None:
        return {name: tensor.thresholds for name, tensor in record.tensors.items()}, {}
    cache = read_cache(options.cache)
    wanted = [unit.tensor for unit in layers.units]
    known: Thresholds = {
        name: {options.method: LEVELS * cache.scales[name]} for name in wanted if name in cache.scales
    }
    if not known:
        raise CalibrationError(
            f"{options.cache} has {len(cache.scales)} tensors, none of them one of this graph's: it is of another "
            f"model (it has {next(iter(cache.scales), 'nothing')!r}, the graph has {next(iter(wanted), 'nothing')!r})",
            "give the cache that was written for this ONNX file, or leave it out to calibrate here",
        )
    missing = {name: f"the cache {options.cache.name} has no scale for {name}" for name in wanted}
    return known, {name: reason for name, reason in missing.items() if name not in known}


def _methods(thresholds: Thresholds, first: Method) -> list[Method]:
    """The methods to try: the one asked for, then the other sound ones, where thresholds by them are known."""
    known = next(iter(thresholds.values()), {})
    others: Sequence[Method] = ("entropy", "mse", "percentile", "max")
    return [first, *(method for method in others if method != first and method in known)]


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of `count`, evenly spread: the same for the same count."""
    return list(range(count)) if count <= most else [row * count // most for row in range(most)]
