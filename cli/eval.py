"""`centernet-trt eval`: COCO mAP of a bundle."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from centernet_trt.cli.console import err, out, progress_bar, write_json
from centernet_trt.cli.detect import BackendChoice, ModeChoice


def eval_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    annotations: Annotated[Path, typer.Option(help="COCO instances file.")],
    backend: Annotated[BackendChoice, typer.Option(help="What runs the network.")] = BackendChoice.auto,
    mode: Annotated[
        ModeChoice, typer.Option(help="Of ONNX Runtime; faithful rounds as the graph's types say.")
    ] = ModeChoice.faithful,
    rounding: Annotated[
        bool,
        typer.Option(
            "--official-rounding", help="Round boxes and scores to two decimals, as published figures."
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")
    ] = None,
) -> None:
    """Measure COCO mAP on annotated images, with no score threshold and the spec's top K."""
    from centernet_trt.evaluation.coco import CocoGroundTruth, coco_rows, detect_all, official_rounding
    from centernet_trt.runtime.detector import Detector

    truth = CocoGroundTruth(annotations, images)
    with (
        Detector.load(bundle, backend=backend.value, mode=mode.value) as detector,
        progress_bar() as progress,
    ):
        task = progress.add_task(f"detecting in {len(truth.images)} images", total=len(truth.images))
        rows = coco_rows(detect_all(detector, truth, lambda done, _: progress.update(task, completed=done)))
        note, manifest = detector.note, detector.bundle.manifest
    scores = truth.score(official_rounding(rows) if rounding else rows)
    result: dict[str, Any] = {
        "bundle": manifest.name,
        "precision": manifest.precision,
        "annotations": annotations.name,
        "executor": note or "TensorRT",
        "mode": mode.value,
        "official_rounding": rounding,
        **scores.to_json(),
    }
    table = Table(
        title=f"{manifest.name} on {annotations.name}: {scores.images} images, {scores.objects} objects"
    )
    for column in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        table.add_column(column, justify="right")
    shown = (
        scores.ap,
        scores.ap50,
        scores.ap75,
        scores.ap_small,
        scores.ap_medium,
        scores.ap_large,
        scores.ar100,
    )
    table.add_row(*(f"{value:.4f}" for value in shown))
    out.print(table)
    if note:
        err.print(f"[yellow]note:[/] {note}")
    if json_file is not None:
        write_json(json_file, result)
