"""The tables of `verify`, from its JSON: the same on the terminal and on the performance page."""

from typing import Any

from centernet_trt.evaluation.tables import Table, text_table


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
