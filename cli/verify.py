"""`centernet-trt verify`: is it still the same model, and if not, where does the difference begin?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer
from rich.markup import escape

from centernet_trt.cli.console import EXIT_TOLERANCE, err, out, progress_bar, write_json
from centernet_trt.cli.detect import ModeChoice
from centernet_trt.errors import InputError
from centernet_trt.runtime.bundle import EngineBundle, sha256_file
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.images import BgrImage

if TYPE_CHECKING:
    from centernet_trt.evaluation.accuracy.bootstrap import ApDrop
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.evaluation.accuracy.compare import Compared, Side
    from centernet_trt.evaluation.accuracy.tolerances import Tolerances


def verify_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle to judge.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.onnx|BUNDLE",
            help="What is right: the source graph, or another bundle. [default: the bundle's own graph, true to "
            "its types]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images. [default: the pictures that ship]")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO instances file, for the difference in AP.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="At most so many, evenly picked.", show_default=False)
    ] = None,
    mode: Annotated[
        ModeChoice | None,
        typer.Option(help="Of ONNX Runtime. [default: faithful; fast without --against]", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Score of boxes that must agree. [default: the spec's]")
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Lowest signal to noise of a head. [default: by precision]"),
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(metavar="F1", help="Lowest agreement of boxes. [default: by precision]")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="AP", help="Largest drop in AP. [default: by precision]")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the image on which they agree least, side by side."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all of it there.")
    ] = None,
) -> None:
    """Compare a bundle with its source or another bundle, stage by stage; exit code 3 past a tolerance."""
    from centernet_trt.evaluation.accuracy.compare import bundle_side, verify
    from centernet_trt.evaluation.accuracy.tolerances import DEFAULTS, address, judge, to_json

    loaded = EngineBundle.load(bundle)
    chosen: Mode = mode.value if mode else ("fast" if against is None else "faithful")
    default = DEFAULTS[loaded.manifest.precision]
    tolerances = _tolerances(default, min_sqnr, min_agreement, max_drop)
    reference = _reference(against, loaded)
    candidate = bundle_side(loaded, chosen)
    truth, paths = _images(images, annotations, max_images)
    with progress_bar() as progress:
        task = progress.add_task("comparing", total=len(paths))
        found = verify(
            reference,
            candidate,
            paths,
            threshold=threshold,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        drop = None if truth is None else _ap_drop(found, truth, candidate)
    checks = judge(found, drop, tolerances)
    result = to_json(found, checks, drop, tolerances)
    _show(result)
    if picture is not None:
        _draw(found, paths, picture)
    if json_file is not None:
        from centernet_trt.evaluation.environment import environment

        write_json(
            json_file, to_json(found, checks, drop, tolerances) | {"environment": environment().to_json()}
        )
    if said := address(checks):
        err.print(f"[bold red]not the same:[/] {escape(said)}", highlight=False)
        raise typer.Exit(EXIT_TOLERANCE)


def _tolerances(
    default: "Tolerances", sqnr: float | None, agreement: float | None, drop: float | None
) -> "Tolerances":
    from dataclasses import replace

    given = {"sqnr_db": sqnr, "agreement": agreement, "ap_drop": drop}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _reference(against: Path | None, bundle: EngineBundle) -> "Side":
    """What is taken for right."""
    from centernet_trt.builder.source import comparable_source
    from centernet_trt.evaluation.accuracy.compare import bundle_side, graph_side

    if against is None:
        return bundle_side(bundle, "faithful")
    if against.is_dir():
        return bundle_side(EngineBundle.load(against), "faithful")
    if not against.is_file():
        raise InputError(f"there is no file or folder {against}", "give an ONNX file or a bundle's folder")
    manifest = bundle.manifest
    if sha256_file(against) != manifest.source.sha256:
        err.print(
            f"[yellow]note:[/] {escape(str(against))} is not the file that the bundle was built from (SHA-256 differs)"
        )
    return graph_side(against.name, comparable_source(against, manifest), manifest)


def _images(
    folder: Path | None, annotations: Path | None, most: int | None
) -> tuple["CocoGroundTruth | None", list[Path]]:
    """The annotations, where there are some, and the images to compare on: those annotated, else all."""
    from centernet_trt.calib_data import sample_images
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.evaluation.bench.throughput import pick_images

    if annotations is not None:
        if folder is None:
            raise typer.BadParameter("--annotations needs --images, the folder of the annotated images")
        if most is not None:
            raise typer.BadParameter(
                "--max-images does not go with --annotations: AP is of all annotated images"
            )
        truth = CocoGroundTruth(annotations, folder)
        return truth, [image.path for image in truth.images]
    paths = [image.path for image in sample_images()] if folder is None else pick_images(folder, 1 << 30)
    count = min(most or len(paths), len(paths))
    return None, [paths[row * len(paths) // count] for row in range(count)]


def _ap_drop(found: "Compared", truth: "CocoGroundTruth", candidate: "Side") -> "ApDrop":
    from centernet_trt.evaluation.accuracy.bootstrap import paired_drop
    from centernet_trt.evaluation.accuracy.coco import check_categories
    from centernet_trt.evaluation.accuracy.tolerances import RESAMPLES

    check_categories(candidate.spec, truth)
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for image, pair in zip(truth.images, found.found, strict=True):
        for rows, detections in zip(sides, pair, strict=True):
            rows += detections.to_coco(image.id)
    return paired_drop(truth, *sides, samples=RESAMPLES)


def _show(result: dict[str, Any]) -> None:
    from centernet_trt.cli.console import show_tables
    from centernet_trt.evaluation.accuracy.tolerances import boxes_sentence, checks_table, heads_table

    out.print(
        f"reference: {escape(result['reference'])}\ncandidate: {escape(result['candidate'])}", highlight=False
    )
    show_tables([heads_table(result), checks_table(result)])
    out.print(escape(boxes_sentence(result)), highlight=False)


def _draw(found: "Compared", paths: list[Path], target: Path) -> None:
    """Write the picture of the worst image."""
    from centernet_trt.runtime.images import read_image

    reference, candidate = found.found[found.worst]
    drawn = side_by_side(
        read_image(paths[found.worst]),
        (found.reference, reference),
        (found.candidate, candidate),
        found.whole.threshold,
    )
    suffix = target.suffix.lower() or ".png"
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"a picture cannot be written as {target.name}", "name it .png or .jpg")
    ok, data = cv2.imencode(suffix, drawn)
    if not ok:
        raise InputError(f"OpenCV cannot encode {target} ({drawn.shape[1]}x{drawn.shape[0]} pixels)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.tobytes())
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    out.print(f"written: {target}", highlight=False)


_BAR, _GAP = 34, 8
_WIDEST = 1400
"""Pixels of both halves together, so that the picture fits a screen."""


def side_by_side(
    image: BgrImage, left: tuple[str, Detections], right: tuple[str, Detections], threshold: float
) -> BgrImage:
    """The picture twice, (H, W, 3) uint8, blue first, with the detections at or above a score and a title each."""
    halves = []
    for title, found in (left, right):
        kept = found[found.score >= threshold]
        drawn = np.asarray(kept.draw(image), dtype=np.uint8)
        halves.append(_titled(drawn, f"{title}: {len(kept)}"))
    gap = np.full((halves[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([halves[0], gap, halves[1]], axis=1), dtype=np.uint8)


def _titled(image: BgrImage, title: str) -> BgrImage:
    """The picture below a bar with its title, scaled to half the width of a screen."""
    scale = min(1.0, _WIDEST / 2 / image.shape[1])
    if scale < 1:
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    width = image.shape[1]
    bar = np.full((_BAR, width, 3), 255, dtype=np.uint8)
    size = 0.55
    (wide, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size = min(size, size * (width - 12) / max(wide, 1))  # a long title becomes small, not cut
    cv2.putText(bar, title, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.concatenate([bar, image]), dtype=np.uint8)
