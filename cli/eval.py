"""`centernet-trt eval`: COCO mAP, size and speed of bundles."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from centernet_trt.cli.console import out, progress_bar, show_note, show_tables, write_json, write_text
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.select import BackendName

if TYPE_CHECKING:
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.runtime.bundle import EngineBundle
    from centernet_trt.runtime.tta.augment import TestTimeAugmentation

Row = dict[str, Any]
TtaName = Literal["flip", "multiscale", "flip+multiscale"]


def eval_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders of the bundles.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    annotations: Annotated[Path, typer.Option(help="COCO instances file.")],
    backend: Annotated[BackendName, typer.Option(help="What runs the network.")] = "auto",
    mode: Annotated[
        Mode, typer.Option(help="Of ONNX Runtime; faithful rounds every operation to its declared type.")
    ] = "faithful",
    rounding: Annotated[
        bool,
        typer.Option(
            "--official-rounding", help="Round boxes and scores to two decimals, as for published figures."
        ),
    ] = False,
    tta: Annotated[
        TtaName | None,
        typer.Option(help="Test-time augmentation, as for `Detector.detect(tta=)`; such a run is not timed."),
    ] = None,
    tta_scales: Annotated[
        str | None,
        typer.Option(metavar="S,S,...", help="Scales of a multi-scale --tta instead of the official ones."),
    ] = None,
    time: Annotated[
        bool, typer.Option(help="Measure the time per image in fast mode, as `bench` does.")
    ] = True,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table there, in Markdown.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the figures there: an object, or a list for several bundles.",
        ),
    ] = None,
) -> None:
    """Measure COCO mAP on annotated images, with no score threshold and the spec's top K."""
    from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
    from centernet_trt.evaluation.model_table import markdown_page, unstable_times
    from centernet_trt.runtime.bundle import EngineBundle

    augmentation = _augmentation(tta, tta_scales)
    truth = CocoGroundTruth(annotations, images)
    loaded = [EngineBundle.load(folder) for folder in bundles]
    _check_same_classes(loaded)
    early = (*truth.notes, *_category_notes(loaded, truth))
    for note in early:  # detection may take hours
        show_note(note)
    with progress_bar() as progress:
        found = [_detect(bundle, truth, backend, mode, rounding, augmentation, progress) for bundle in loaded]
        results = [
            _result(bundle, truth, mode, rounding, augmentation, *rest)
            for bundle, rest in zip(loaded, found, strict=True)
        ]
        first, _ = found[0]
        for result, (rows, _) in zip(results[1:], found[1:], strict=True):
            result["ap_drop"] = _drop(truth, first, rows, progress)
        if time and augmentation is None:  # what `bench` times is one run of the network
            for result, measured in zip(results, _times(loaded, truth, progress), strict=True):
                result["time"] = measured
    _show(results)
    for note in dict.fromkeys([*(note for _, note in found if note), *truth.notes, *unstable_times(results)]):
        if note not in early:
            show_note(note)
    if markdown is not None:
        write_text(markdown, markdown_page(results))
    if json_file is not None:
        write_json(json_file, results if len(results) > 1 else results[0])


def _augmentation(tta: TtaName | None, scales: str | None) -> "TestTimeAugmentation | None":
    from centernet_trt.errors import InputError
    from centernet_trt.runtime.tta.augment import TestTimeAugmentation, parse_augmentation

    if tta is None:
        if scales is not None:
            raise InputError("--tta-scales needs --tta", "add --tta multiscale or --tta flip+multiscale")
        return None
    if scales is None:
        return parse_augmentation(tta)
    if tta == "flip":
        raise InputError(
            "--tta flip runs one scale, got --tta-scales", "use --tta flip+multiscale with scales"
        )
    try:
        numbers = tuple(float(part) for part in scales.split(","))
    except ValueError:
        raise InputError(f"expected numbers such as 0.5,1,1.5 for --tta-scales, got {scales!r}") from None
    return TestTimeAugmentation(flip=tta == "flip+multiscale", scales=numbers)


def _check_same_classes(bundles: "list[EngineBundle]") -> None:
    from centernet_trt.evaluation.accuracy.compare import check_classes

    first = bundles[0].manifest
    for bundle in bundles[1:]:
        check_classes(first.spec, bundle.manifest.spec, first.name, bundle.manifest.name)


def _category_notes(bundles: "list[EngineBundle]", truth: "CocoGroundTruth") -> list[str]:
    """Check every bundle's classes against the annotations; notes for the user."""
    from centernet_trt.evaluation.accuracy.coco import category_notes, check_categories

    notes = [category_notes(check_categories(bundle.manifest.spec, truth), truth) for bundle in bundles]
    return list(dict.fromkeys(note for each in notes for note in each))


def _detect(
    bundle: "EngineBundle",
    truth: "CocoGroundTruth",
    backend: BackendName,
    mode: Mode,
    rounding: bool,
    tta: "TestTimeAugmentation | None",
    progress: Progress,
) -> tuple[list[Row], str]:
    """Detect in every annotated image: COCO result rows, and the detector's note."""
    from centernet_trt.evaluation.accuracy.coco import coco_rows, detect_all, official_rounding
    from centernet_trt.runtime.detector import Detector

    total = len(truth.images)
    with Detector.load(bundle, backend=backend, mode=mode) as detector:
        task = progress.add_task(f"{bundle.manifest.name}: detecting in {total} images", total=total)
        update = lambda done, _: progress.update(task, completed=done)
        rows = coco_rows(detect_all(detector, truth, update, tta))
        return (official_rounding(rows) if rounding else rows), detector.note


def _result(
    bundle: "EngineBundle",
    truth: "CocoGroundTruth",
    mode: Mode,
    rounding: bool,
    tta: "TestTimeAugmentation | None",
    rows: list[Row],
    note: str,
) -> Row:
    from centernet_trt.builder.source import try_count

    manifest, scores = bundle.manifest, truth.score(rows)
    height, width = manifest.profile.height.opt, manifest.profile.width.opt
    work = try_count(bundle, height, width)
    return {
        "bundle": manifest.name,
        "precision": manifest.precision,
        "annotations": truth.path.name,
        "executor": note or "TensorRT",
        "mode": mode,
        "official_rounding": rounding,
        "tta": None if tta is None else {"flip": tta.flip, "scales": list(tta.scales)},
        "input": f"{width}x{height}",
        "multiply_adds": work and work[0],
        "parameters": work and work[1],
        "time": None,
        "ap_drop": None,
        **scores.to_json(),
    }


def _drop(truth: "CocoGroundTruth", first: list[Row], rows: list[Row], progress: Progress) -> Row | None:
    from centernet_trt.evaluation.accuracy.bootstrap import paired_drop
    from centernet_trt.evaluation.accuracy.tolerances import RESAMPLES

    if not first or not rows or not truth.labelled:
        return None  # without detections there is nothing to resample, and without objects AP is undefined
    progress.add_task("interval of the difference", total=None)
    return paired_drop(truth, first, rows, samples=RESAMPLES).to_json()


def _times(bundles: "list[EngineBundle]", truth: "CocoGroundTruth", progress: Progress) -> list[Row]:
    """Time every bundle on up to eight of the annotated images, interleaved; statistics of one image each."""
    from centernet_trt.evaluation.bench.run import measure_latency
    from centernet_trt.evaluation.environment import environment

    count = min(8, len(truth.images))
    paths = [truth.images[row * len(truth.images) // count].path for row in range(count)]
    task = progress.add_task("timing", total=None)
    found = measure_latency(bundles, paths, lambda what, done, total: progress.update(task, description=what))
    machine = environment()
    where = {"cpu": machine.cpu, "cores": machine.cores}
    return [
        {**series.summary().to_json(), "spread": series.stability().spread, "executor": note, **where}
        for series, note in found
    ]


def _show(results: list[Row]) -> None:
    from centernet_trt.evaluation.model_table import format_ap, model_table

    columns = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "APs": "ap_small",
        "APm": "ap_medium",
        "APl": "ap_large",
    }
    for result in results:
        table = Table(
            title=f"{escape(result['bundle'])} on {escape(result['annotations'])}: {result['images']} images, "
            f"{result['objects']} objects"
        )
        for column in (*columns, "AR100"):
            table.add_column(column, justify="right")
        table.add_row(*(format_ap(result[key]) for key in (*columns.values(), "ar100")))
        out.print(table)
    show_tables([model_table(results)])
