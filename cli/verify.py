"""`centernet-trt verify`: compare a bundle with its source or another bundle, stage by stage."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer
from rich.markup import escape

from centernet_trt.cli.console import (
    EXIT_TOLERANCE,
    err,
    progress_bar,
    show_lines,
    show_note,
    show_tables,
    write_json,
)
from centernet_trt.cli.media import write_image
from centernet_trt.errors import InputError
from centernet_trt.runtime.bundle import EngineBundle, sha256_file
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.images import BgrImage

if TYPE_CHECKING:
    from centernet_trt.evaluation.accuracy.bootstrap import ApDrop
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.evaluation.accuracy.coco_ids import CocoId
    from centernet_trt.evaluation.accuracy.compare import Comparison, Side
    from centernet_trt.evaluation.accuracy.tolerances import Tolerances


def verify_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle to check.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.onnx|BUNDLE",
            help="The reference: the source graph, or another bundle.",
            show_default="the bundle's own graph in faithful mode",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the images.", show_default="images that ship"),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO instances file, for the difference in AP.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Number of images at most, evenly spaced.", show_default=False)
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Of ONNX Runtime.", show_default="faithful; fast without --against"),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest score of boxes that must agree.", show_default="the spec's"),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB", help="Lowest signal to noise ratio of a head.", show_default="by precision"
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="F1", help="Lowest agreement of boxes.", show_default="by precision"),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="AP", help="Largest drop in AP.", show_default="by precision"),
    ] = None,
    worst_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the image on which they agree least, side by side."),
    ] = None,
    picture: Annotated[  # former name of --worst-image, accepted for one release
        Path | None, typer.Option("--picture", hidden=True)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there.")
    ] = None,
) -> None:
    """Compare a bundle with its source or another bundle, stage by stage; exit code 3 if a tolerance is not met."""
    from centernet_trt.evaluation.accuracy.compare import bundle_side, verify
    from centernet_trt.evaluation.accuracy.tolerances import (
        DEFAULTS,
        check_tolerances,
        first_failure,
        to_json,
    )

    drawing = worst_image or picture
    if drawing is not None and drawing.suffix.lower() not in ("", ".png", ".jpg", ".jpeg"):
        raise InputError(
            f"expected a .png or .jpg file to draw to, got {drawing.name}", "name it .png or .jpg"
        )
    loaded = EngineBundle.load(bundle)
    chosen: Mode = mode or ("fast" if against is None else "faithful")
    default = DEFAULTS[loaded.manifest.precision]
    tolerances = _tolerances(default, min_sqnr, min_agreement, max_drop)
    reference = _reference(against, loaded)
    candidate = bundle_side(loaded, chosen)
    truth, paths = _images(images, annotations, max_images)
    ids = () if truth is None else _check_annotations(truth, candidate)
    with progress_bar() as progress:
        task = progress.add_task("comparing", total=len(paths))
        found = verify(
            reference,
            candidate,
            paths,
            threshold=threshold,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        drop = None if truth is None else _ap_drop(found, truth, ids)
    checks = check_tolerances(found, drop, tolerances)
    result = to_json(found, checks, drop, tolerances)
    _show(result)
    if drawing is not None:
        _draw_worst(found, paths, drawing)
    if json_file is not None:
        from centernet_trt.evaluation.environment import environment

        write_json(json_file, result | {"environment": environment().to_json()})
    if failure := first_failure(checks):
        err.print(f"[bold red]not the same:[/] {escape(failure)}", highlight=False)
        raise typer.Exit(EXIT_TOLERANCE)


def _tolerances(
    default: "Tolerances", sqnr: float | None, agreement: float | None, drop: float | None
) -> "Tolerances":
    given = {"sqnr_db": sqnr, "agreement": agreement, "ap_drop": drop}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _reference(against: Path | None, bundle: EngineBundle) -> "Side":
    """Open the reference of the comparison."""
    from centernet_trt.builder.source import comparable_source
    from centernet_trt.evaluation.accuracy.compare import bundle_side, graph_side

    if against is None:
        return bundle_side(bundle, "faithful")
    if against.is_dir():
        return bundle_side(EngineBundle.load(against), "faithful")
    if not against.is_file():
        raise InputError(
            f"there is no file or folder {against}", "give an ONNX file or the folder of a bundle"
        )
    manifest = bundle.manifest
    if sha256_file(against) != manifest.source.sha256:
        show_note(f"{against} is not the file that the bundle was built from (SHA-256 differs)")
    return graph_side(against.name, comparable_source(against, manifest), manifest)


def _images(
    folder: Path | None, annotations: Path | None, most: int | None
) -> tuple["CocoGroundTruth | None", list[Path]]:
    """Read the annotations, if any, and choose the images: those annotated, or all."""
    from centernet_trt.calib_data import sample_images
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.evaluation.bench.throughput import pick_images

    if annotations is not None:
        if folder is None:
            raise typer.BadParameter("--annotations needs --images, the folder of the annotated images")
        if most is not None:
            raise typer.BadParameter(
                "--max-images cannot be combined with --annotations: AP needs all annotated images"
            )
        truth = CocoGroundTruth(annotations, folder)
        return truth, [image.path for image in truth.images]
    paths = [image.path for image in sample_images()] if folder is None else pick_images(folder, 1 << 30)
    count = min(most or len(paths), len(paths))
    return None, [paths[row * len(paths) // count] for row in range(count)]


def _check_annotations(truth: "CocoGroundTruth", candidate: "Side") -> "tuple[CocoId, ...]":
    """The annotations' own id of each class; InputError if there is no AP to compare."""
    from centernet_trt.evaluation.accuracy.coco import category_notes, check_categories

    ids = check_categories(candidate.spec, truth)
    if not truth.labelled:
        raise InputError(truth.notes[-1], "leave out --annotations, or give annotations with objects")
    for note in (*truth.notes, *category_notes(ids, truth)):
        show_note(note)
    return ids


def _ap_drop(found: "Comparison", truth: "CocoGroundTruth", ids: "tuple[CocoId, ...]") -> "ApDrop":
    from centernet_trt.evaluation.accuracy.bootstrap import paired_drop
    from centernet_trt.evaluation.accuracy.coco import coco_rows
    from centernet_trt.evaluation.accuracy.tolerances import RESAMPLES

    keys = [image.id for image in truth.images]
    reference, candidate = (
        coco_rows(
            dict(zip(keys, (replace(pair[side], category_ids=ids) for pair in found.found), strict=True))
        )
        for side in (0, 1)
    )
    return paired_drop(truth, reference, candidate, samples=RESAMPLES)


def _show(result: dict[str, Any]) -> None:
    from centernet_trt.evaluation.accuracy.tolerances import boxes_sentence, checks_table, heads_table

    show_lines([f"reference: {result['reference']}", f"candidate: {result['candidate']}"])
    show_tables([heads_table(result), checks_table(result)])
    show_lines([boxes_sentence(result)])


def _draw_worst(found: "Comparison", paths: list[Path], target: Path) -> None:
    """Write the image on which both agree least, with the detections of each."""
    from centernet_trt.runtime.images import read_image

    reference, candidate = found.found[found.worst]
    drawn = side_by_side(
        read_image(paths[found.worst]),
        (found.reference, reference),
        (found.candidate, candidate),
        found.whole.threshold,
    )
    write_image(target, drawn)
    show_lines([f"written: {target}"])


_BAR, _GAP = 34, 8
_WIDEST = 1400
"""Width of both halves together in pixels, to fit a screen."""


def side_by_side(
    image: BgrImage, left: tuple[str, Detections], right: tuple[str, Detections], threshold: float
) -> BgrImage:
    """Draw two sets of detections on copies of an image, next to each other.

    Args:
        image: (H, W, 3) uint8 in BGR order.
        left: title and detections of the left copy.
        right: title and detections of the right copy.
        threshold: lowest score to draw.

    Returns:
        (height, width, 3) uint8 in BGR order, scaled down to at most 1408 columns.
    """
    halves = []
    for title, found in (left, right):
        kept = found[found.score >= threshold]
        drawn = np.asarray(kept.draw(image), dtype=np.uint8)
        halves.append(_titled(drawn, f"{title}: {len(kept)}"))
    gap = np.full((halves[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([halves[0], gap, halves[1]], axis=1), dtype=np.uint8)


def _titled(image: BgrImage, title: str) -> BgrImage:
    """Put a bar with a title above an image, scaled down to half the width of a screen."""
    scale = min(1.0, _WIDEST / 2 / image.shape[1])
    if scale < 1:
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    width = image.shape[1]
    bar = np.full((_BAR, width, 3), 255, dtype=np.uint8)
    size = 0.55
    (wide, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size = min(size, size * (width - 12) / max(wide, 1))  # a long title is shrunk, not cut
    cv2.putText(bar, title, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.concatenate([bar, image]), dtype=np.uint8)
