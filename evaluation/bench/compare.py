"""Comparison: ratios with intervals of two reports of one model, and of the bundles of one report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.report import NETWORK_ALONE, BenchReport, Entry
from centernet_trt.evaluation.bench.statistics import Ratio, Statistic, Windows, bootstrap_ratio, centre

CONFIDENCE = 0.95
BY_EVENTS = " (events)"
"""Suffix of the names of stages timed by CUDA events."""


@dataclass(frozen=True)
class ComparedRow:
    """One subject of both reports: its medians (throughput: means) in seconds, and b / a with its interval."""

    entry: str
    what: str
    a: float
    b: float
    ratio: Ratio


@dataclass(frozen=True)
class Comparison:
    """All rows, what else differs between the runs, and the confidence with which *all* intervals hold at once."""

    rows: tuple[ComparedRow, ...]
    differences: tuple[str, ...]
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """As plain data, with each row's verdict."""
        rows = [{**asdict(row), "verdict": row.ratio.verdict} for row in self.rows]
        return {"confidence": self.confidence, "differences": list(self.differences), "rows": rows}


class _Pair(NamedTuple):
    """One subject of two entries: its samples in both, and the statistic that is compared."""

    entry: str
    what: str
    a: Windows
    b: Windows
    statistic: Statistic = "median"


def compare_reports(a: BenchReport, b: BenchReport, confidence: float = CONFIDENCE) -> Comparison:
    """Ratios b / a of every series and load that both reports have.

    Of twenty intervals of 95 % one would exclude 1 by chance; so each is widened until all hold together with the given
    confidence (Bonferroni's correction).

    Args:
        a: the first report.
        b: the second; of the same model, in any precision.
        confidence: with which all intervals hold at once.

    Raises:
        InputError: reports of different models, or with nothing in common.
    """
    pairs = _pairs(a, b)
    found = [pair for name, (first, second) in pairs.items() for pair in _common(name, first, second)]
    return Comparison(_ratios(found, confidence), tuple(_differences(a, b, pairs)), confidence)


def compare_entries(report: BenchReport, confidence: float = CONFIDENCE) -> Comparison:
    """Ratios of every later bundle of one report to the first, where they were built from the same file.

    Their windows were interleaved, so a drift of the machine affected both and cancels out. Throughput is not
    interleaved, and baselines belong to no bundle: both are left out. No rows where nothing is left.
    """
    first, *others = report.entries
    found = [
        pair
        for entry in others
        if entry.source_sha256 == first.source_sha256
        for pair in _common(entry.name, first, entry)
        if pair.what in (*first.pipeline.stages, NETWORK_ALONE) or pair.what.endswith(BY_EVENTS)
    ]
    return Comparison(_ratios(found, confidence, interleaved=True), (), confidence)


def _ratios(
    found: Sequence[_Pair], confidence: float, *, interleaved: bool = False
) -> tuple[ComparedRow, ...]:
    """A row for each, its interval wide enough for all to hold at once."""
    if not found:
        return ()
    each = 1 - (1 - confidence) / len(found)
    # The tails of a corrected interval need resamples: some twenty each.
    resamples = max(2000, round(40 * len(found) / (1 - confidence)))
    rows = []
    for name, what, left, right, statistic in found:
        ratio = bootstrap_ratio(
            left, right, statistic, interleaved=interleaved, confidence=each, resamples=resamples
        )
        rows.append(ComparedRow(name, what, centre(left, statistic), centre(right, statistic), ratio))
    return tuple(rows)


def _pairs(a: BenchReport, b: BenchReport) -> dict[str, tuple[Entry, Entry]]:
    """The bundles to compare: those of one name, or the only one of each report."""
    first, second = ({entry.name: entry for entry in report.entries} for report in (a, b))
    pairs = {name: (first[name], second[name]) for name in first if name in second}
    if not pairs and len(first) == len(second) == 1:
        (one,), (other,) = first.values(), second.values()
        pairs = {f"{one.name} -> {other.name}": (one, other)}
    if not pairs:
        raise InputError(
            f"the reports share no bundle: A has {', '.join(first)}, B has {', '.join(second)}",
            "compare reports of one bundle each, or of bundles with the same names",
        )
    for name, (one, other) in pairs.items():
        if one.source_sha256 != other.source_sha256:
            raise InputError(
                f"the reports are of different models: {name} was built from an ONNX file with SHA-256 "
                f"{one.source_sha256[:12]} in A and {other.source_sha256[:12]} in B",
                "compare reports of bundles that were built from the same ONNX file",
            )
    return pairs


def _common(entry: str, a: Entry, b: Entry) -> list[_Pair]:
    """The subjects that both entries have."""
    pairs = [
        _Pair(entry, stage, a.pipeline.of_stage(stage), b.pipeline.of_stage(stage))
        for stage in reversed(a.pipeline.stages)
        if stage in b.pipeline.stages
    ]
    pairs += [
        _Pair(entry, name, series.of_stage(), b.alone[name].of_stage())
        for name, series in a.alone.items()
        if name in b.alone
    ]
    if a.staged is not None and b.staged is not None:
        pairs += [
            _Pair(entry, f"{stage}{BY_EVENTS}", a.staged.of_stage(stage), b.staged.of_stage(stage))
            for stage in a.staged.stages
            if stage in b.staged.stages
        ]
    loads = {(row.way, row.threads, row.batch): row for row in b.throughput}
    for row in a.throughput:
        other = loads.get((row.way, row.threads, row.batch))
        if other is not None:
            load = f"{row.threads} threads, batch {row.batch}"
            what = f"an image, {row.threads} in flight" if row.way == "submit" else f"an image, {load}"
            pairs.append(_Pair(entry, what, row.image_seconds(), other.image_seconds(), "mean"))
    return pairs


def _differences(a: BenchReport, b: BenchReport, pairs: dict[str, tuple[Entry, Entry]]) -> list[str]:
    """What else differs, so that a ratio is not attributed to the wrong cause."""
    said = []
    for what in ("python", "system", "cpu", "cores"):
        if a.environment.get(what) != b.environment.get(what):
            said.append(f"{what}: {a.environment.get(what)} in A, {b.environment.get(what)} in B")
    packages = (a.environment.get("packages") or {}, b.environment.get("packages") or {})
    for name in sorted(set(packages[0]) | set(packages[1])):
        if packages[0].get(name) != packages[1].get(name):
            said.append(f"package {name}: {packages[0].get(name)} in A, {packages[1].get(name)} in B")
    if a.images != b.images:
        said.append("the images: times that depend on them are not comparable")
    if a.rules != b.rules:
        said.append(f"the timing rules: {a.rules.duration:g} s in A, {b.rules.duration:g} s in B")
    for name, (one, other) in pairs.items():
        for what in ("precision", "mode", "executor"):
            if getattr(one, what) != getattr(other, what):
                said.append(f"{name}, {what}: {getattr(one, what)} in A, {getattr(other, what)} in B")
        if one.model_sha256 != other.model_sha256 and one.precision == other.precision:
            said.append(f"{name}: the graphs differ, though built from the same file in the same precision")
    return said + [f"A: {text}" for text in a.warnings()] + [f"B: {text}" for text in b.warnings()]
