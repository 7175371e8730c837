"""Tolerances of a comparison, and the table of its results."""

from dataclasses import asdict, dataclass
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.bootstrap import ApDrop
from centernet_trt.evaluation.accuracy.compare import Compared
from centernet_trt.evaluation.tables import Table, text_table
from centernet_trt.runtime.manifest import Precision


@dataclass(frozen=True)
class Tolerances:
    """What is still the same model.

    Attributes:
        input: largest difference of input tensors, over their largest magnitude.
        sqnr_db: lowest signal to noise of a head.
        agreement: lowest F1 of the detections above the threshold, the reference's taken for right.
        ap_drop: largest drop in AP, where annotations are given.
    """

    input: float
    sqnr_db: float
    agreement: float
    ap_drop: float

    def __post_init__(self) -> None:
        if not (self.input >= 0 and 0 <= self.agreement <= 1 and self.ap_drop >= -1):
            raise InputError(
                f"tolerances of {self.input} (input), {self.agreement} (agreement) and {self.ap_drop} (AP) were given; "
                "0 or more, 0 to 1, and a difference of AP were expected"
            )


DEFAULTS: dict[Precision, Tolerances] = {
    "fp32": Tolerances(input=1e-6, sqnr_db=80.0, agreement=0.995, ap_drop=0.001),
    "fp16": Tolerances(input=1e-6, sqnr_db=25.0, agreement=0.95, ap_drop=0.005),
    "int8": Tolerances(input=1e-6, sqnr_db=8.0, agreement=0.90, ap_drop=0.01),
}
"""By the candidate's precision; measured values of the two models that ship are in docs/performance.md."""


RESAMPLES = 400
"""Of the images, for the interval of a difference in AP: the interval's ends are then good to a few percent of it."""

# Two correct decodes differ by float32 rounding of pixel coordinates, and of a sigmoid.
_SAME_BOX, _SAME_SCORE = 1e-2, 1e-6


@dataclass(frozen=True)
class Check:
    """One thing that was held to a tolerance: found and allowed in words, and whether it passed."""

    stage: str
    what: str
    found: str
    allowed: str
    passed: bool


def judge(found: Compared, drop: ApDrop | None, tolerances: Tolerances) -> list[Check]:
    """Hold everything to the tolerances, in the order of the stages: the first that fails is the address."""
    checks = [_input_check(found, tolerances)]
    for name, error in found.heads.items():
        sqnr = "identical" if error.sqnr_db is None else f"{error.sqnr_db:.1f} dB"
        good = error.sqnr_db is None or error.sqnr_db >= tolerances.sqnr_db
        if error.unequal:
            sqnr += f", {error.unequal} infinite or NaN on one side only"
        checks.append(
            Check(
                "network",
                f"SQNR of {name}",
                sqnr,
                f">= {tolerances.sqnr_db:g} dB",
                good and not error.unequal,
            )
        )
    checks.append(_decode_check(found))
    checks.append(
        Check(
            "whole",
            f"agreement above score {found.whole.threshold:g}",
            f"F1 {found.whole.f1:.4f}",
            f">= {tolerances.agreement:g}",
            found.whole.f1 >= tolerances.agreement,
        )
    )
    if drop is not None:
        checks.append(
            Check(
                "whole",
                "drop in AP",
                f"{drop.drop:+.4f} ({drop.low:+.4f} to {drop.high:+.4f})",
                f"<= {tolerances.ap_drop:g}",
                drop.drop <= tolerances.ap_drop,
            )
        )
    return checks


def address(checks: list[Check]) -> str:
    """The first stage that is past its tolerance, in words; empty where all is well."""
    failed = next((check for check in checks if not check.passed), None)
    if failed is None:
        return ""
    return (
        f"the difference begins in: {failed.stage} ({failed.what}: {failed.found}, allowed {failed.allowed})"
    )


def to_json(
    found: Compared, checks: list[Check], drop: ApDrop | None, tolerances: Tolerances
) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "schema": 1,
        "kind": "verify",
        "reference": found.reference,
        "candidate": found.candidate,
        "images": list(found.images),
        "preprocess": None if found.preprocess is None else found.preprocess.to_json(),
        "resized": list(found.resized),
        "heads": {name: error.to_json() for name, error in found.heads.items()},
        "decode": asdict(found.decode),
        "whole": found.whole.to_json(),
        "ap": None if drop is None else drop.to_json(),
        "worst": found.images[found.worst],
        "tolerances": asdict(tolerances),
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }


def _decode_check(found: Compared) -> Check:
    same = found.decode
    text = f"{same.box:.1e} px, score {same.score:.1e}"
    if same.images:
        text = f"other boxes in {same.images} images"
    passed = not same.images and same.box <= _SAME_BOX and same.score <= _SAME_SCORE
    return Check("decode", "boxes of the same heads", text, f"<= {_SAME_BOX:g} px, {_SAME_SCORE:g}", passed)


def _input_check(found: Compared, tolerances: Tolerances) -> Check:
    what, allowed = "input tensor", f"<= {tolerances.input:g} of its largest"
    error = found.preprocess
    if error is None:
        return Check("preprocess", what, f"other sizes for {len(found.resized)} images", allowed, False)
    text = "identical" if error.identical else f"{error.max_rel:.1e}"
    return Check("preprocess", what, text, allowed, error.max_rel <= tolerances.input and not error.unequal)


def heads_table(result: dict[str, Any]) -> Table:
    """The error of every head."""
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
    """Every stage and its tolerance."""
    rows = [
        (row["stage"], row["what"], row["found"], row["allowed"], "ok" if row["passed"] else "past it")
        for row in result["checks"]
    ]
    return text_table("Stage by stage", ("stage", "what", "found", "allowed", ""), rows)


def boxes_sentence(result: dict[str, Any]) -> str:
    """The agreement of the boxes in words."""
    whole = result["whole"]
    return (
        f"{whole['images']} images: {whole['reference']} and {whole['candidate']} boxes at or above score "
        f"{whole['threshold']:g}, {whole['matched']} in common; their scores differ by {whole['score_mean']:.4f} on "
        f"average (at most {whole['score_max']:.4f}), their IoU is {whole['iou_mean']:.4f} on average (at least "
        f"{whole['iou_min']:.4f}). Least alike: {result['worst']}."
    )
