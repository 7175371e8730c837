"""Check a `Comparison` against `Tolerances`, and tabulate the results."""

from dataclasses import asdict, dataclass
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.bootstrap import ApDrop
from centernet_trt.evaluation.accuracy.compare import Comparison
from centernet_trt.evaluation.accuracy.tensor_error import TensorError
from centernet_trt.evaluation.tables import Table, text_table
from centernet_trt.runtime.manifest import Precision

__all__ = [
    "DEFAULTS",
    "RESAMPLES",
    "ToleranceCheck",
    "Tolerances",
    "boxes_sentence",
    "check_tolerances",
    "checks_table",
    "first_failure",
    "heads_table",
    "to_json",
]


@dataclass(frozen=True)
class Tolerances:
    """How far a candidate may differ from its reference.

    Attributes:
        input: largest difference of input tensors, relative to their largest magnitude.
        sqnr_db: lowest signal to quantisation noise ratio of a head, in dB.
        agreement: lowest F1 of the detections above the threshold, with the reference as ground truth.
        ap_drop: largest drop in AP, checked if there are annotations.
    """

    input: float
    sqnr_db: float
    agreement: float
    ap_drop: float

    def __post_init__(self) -> None:
        if not (self.input >= 0 and 0 <= self.agreement <= 1 and self.ap_drop >= -1):
            raise InputError(
                "expected tolerances of 0 or more (input), 0 to 1 (agreement) and -1 or more (drop in AP), "
                f"got {self.input}, {self.agreement} and {self.ap_drop}"
            )


DEFAULTS: dict[Precision, Tolerances] = {
    "fp32": Tolerances(input=1e-6, sqnr_db=80.0, agreement=0.995, ap_drop=0.001),
    "fp16": Tolerances(input=1e-6, sqnr_db=25.0, agreement=0.95, ap_drop=0.005),
    "int8": Tolerances(input=1e-6, sqnr_db=8.0, agreement=0.90, ap_drop=0.01),
}
"""By the candidate's precision; docs/performance.md has measured values of the two models that ship."""

RESAMPLES = 400
"""Of the images, for the interval of a difference in AP: its ends are then accurate to a few percent of its width."""

# Two correct decodes differ by float32 rounding of pixel coordinates, and of a sigmoid.
_SAME_BOX, _SAME_SCORE = 1e-2, 1e-6


@dataclass(frozen=True)
class ToleranceCheck:
    """Result of one tolerance check.

    Attributes:
        stage: `preprocess`, `network`, `decode` or `whole`.
        what: the quantity checked.
        found: its value, as text.
        allowed: its limit, as text.
        passed: whether the value is within the limit.
    """

    stage: str
    what: str
    found: str
    allowed: str
    passed: bool


def check_tolerances(
    comparison: Comparison, drop: ApDrop | None, tolerances: Tolerances
) -> list[ToleranceCheck]:
    """Check every stage of a comparison.

    Args:
        comparison: the differences, from `compare.verify`.
        drop: difference in AP; None if there are no annotations.
        tolerances: the limits.

    Returns:
        The checks in the order of the stages.
    """
    whole = comparison.whole
    checks = [_check_input(comparison, tolerances)]
    checks += [_check_head(name, error, tolerances) for name, error in comparison.heads.items()]
    checks.append(_check_decode(comparison))
    agreement = f"agreement above score {whole.threshold:g}"
    limit = f">= {tolerances.agreement:g}"
    checks.append(
        ToleranceCheck("whole", agreement, f"F1 {whole.f1:.4f}", limit, whole.f1 >= tolerances.agreement)
    )
    if drop is not None:
        found = f"{drop.drop:+.4f} ({drop.low:+.4f} to {drop.high:+.4f})"
        limit = f"<= {tolerances.ap_drop:g}"
        checks.append(ToleranceCheck("whole", "drop in AP", found, limit, drop.drop <= tolerances.ap_drop))
    return checks


def first_failure(checks: list[ToleranceCheck]) -> str:
    """Describe the first stage that exceeds its tolerance; empty if all checks passed."""
    failed = next((check for check in checks if not check.passed), None)
    if failed is None:
        return ""
    return (
        f"the first stage that differs is {failed.stage} "
        f"({failed.what}: expected {failed.allowed}, got {failed.found})"
    )


def _check_input(comparison: Comparison, tolerances: Tolerances) -> ToleranceCheck:
    what, allowed = "input tensor", f"<= {tolerances.input:g} of its largest"
    error = comparison.preprocess
    if error is None:
        found = f"other sizes for {len(comparison.resized)} images"
        return ToleranceCheck("preprocess", what, found, allowed, False)
    found = "identical" if error.identical else f"{error.max_rel:.1e}"
    passed = error.max_rel <= tolerances.input and not error.unequal
    return ToleranceCheck("preprocess", what, found, allowed, passed)


def _check_head(name: str, error: TensorError, tolerances: Tolerances) -> ToleranceCheck:
    found = "identical" if error.sqnr_db is None else f"{error.sqnr_db:.1f} dB"
    if error.unequal:
        found += f", {error.unequal} infinite or NaN on one side only"
    passed = not error.unequal and (error.sqnr_db is None or error.sqnr_db >= tolerances.sqnr_db)
    return ToleranceCheck("network", f"SQNR of {name}", found, f">= {tolerances.sqnr_db:g} dB", passed)


def _check_decode(comparison: Comparison) -> ToleranceCheck:
    difference = comparison.decode
    found = f"{difference.box:.1e} px, score {difference.score:.1e}"
    if difference.images:
        found = f"other boxes in {difference.images} images"
    passed = not difference.images and difference.box <= _SAME_BOX and difference.score <= _SAME_SCORE
    allowed = f"<= {_SAME_BOX:g} px, {_SAME_SCORE:g}"
    return ToleranceCheck("decode", "boxes of the same heads", found, allowed, passed)


def to_json(
    comparison: Comparison, checks: list[ToleranceCheck], drop: ApDrop | None, tolerances: Tolerances
) -> dict[str, Any]:
    """Assemble the report of `verify --json`.

    Args:
        comparison: the differences.
        checks: their checks.
        drop: difference in AP, if any.
        tolerances: the limits of the checks.

    Returns:
        Plain data, schema 1.
    """
    return {
        "schema": 1,
        "kind": "verify",
        "reference": comparison.reference,
        "candidate": comparison.candidate,
        "images": list(comparison.images),
        "preprocess": None if comparison.preprocess is None else comparison.preprocess.to_json(),
        "resized": list(comparison.resized),
        "heads": {name: error.to_json() for name, error in comparison.heads.items()},
        "decode": asdict(comparison.decode),
        "whole": comparison.whole.to_json(),
        "ap": None if drop is None else drop.to_json(),
        "worst": comparison.images[comparison.worst],
        "tolerances": asdict(tolerances),
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }


def heads_table(result: dict[str, Any]) -> Table:
    """Tabulate the error of every head, of a `to_json` result."""
    rows = [
        (
            name,
            f"{error['max_abs']:.2e}",
            f"{error['mean_abs']:.2e}",
            f"{error['magnitude']:.4g}",
            "identical" if error["sqnr_db"] is None else f"{error['sqnr_db']:.1f}",
            f"{error['cosine']:.6f}",
        )
        for name, error in result["heads"].items()
    ]
    columns = ("head", "max error", "mean error", "largest value", "SQNR, dB", "cosine")
    return text_table("Heads, both networks fed with the reference's input", columns, rows)


def checks_table(result: dict[str, Any]) -> Table:
    """Tabulate the checks of a `to_json` result."""
    rows = [
        (row["stage"], row["what"], row["found"], row["allowed"], "ok" if row["passed"] else "failed")
        for row in result["checks"]
    ]
    return text_table("Stage by stage", ("stage", "what", "found", "allowed", ""), rows)


def boxes_sentence(result: dict[str, Any]) -> str:
    """Describe the agreement of the boxes of a `to_json` result."""
    whole = result["whole"]
    return (
        f"{whole['images']} images: {whole['reference']} and {whole['candidate']} boxes at or above score "
        f"{whole['threshold']:g}, {whole['matched']} in common; their scores differ by {whole['score_mean']:.4f} on "
        f"average (at most {whole['score_max']:.4f}), their IoU is {whole['iou_mean']:.4f} on average (at least "
        f"{whole['iou_min']:.4f}). Least similar: {result['worst']}."
    )
