"""`centernet-trt detect`: objects in images and videos."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from centernet_trt.cli.console import (
    EXIT_ERROR,
    err,
    make_table,
    out,
    progress_bar,
    show_error,
    show_lines,
    show_note,
    write_json,
)
from centernet_trt.cli.media import AnnotatedWriter, Frame, expand_sources, read_frames
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.select import BackendName

Row = dict[str, Any]


def detect_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Annotated[list[str], typer.Argument(help="Images, folders of images, or videos.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write annotated images and videos there."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Lowest score.", show_default="the spec's")] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Only these classes, by name or number.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Most detections per image.", show_default="the spec's")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the network.")] = "auto",
    mode: Annotated[Mode, typer.Option(help="Of ONNX Runtime.")] = "fast",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all detections there.")
    ] = None,
) -> None:
    """Find objects in images, folders and videos: a table, annotated copies (-o), JSON (--json)."""
    paths = expand_sources(sources)
    wanted = None if classes is None else [_parse_class(name.strip()) for name in classes.split(",")]
    rows: list[Row] = []
    with (
        Detector.load(bundle, backend=backend, mode=mode) as detector,
        AnnotatedWriter(output, paths) as writer,
    ):
        for frame in _with_progress(read_frames(paths)):
            try:
                image = frame.image()
                found = detector.detect(image, threshold, wanted, top_k)
            except CenterNetError as error:
                show_error(error)
                rows.append({**frame.where(), "error": error.message})
                continue
            rows.append({**frame.where(), "detections": found.to_json()})
            writer.write(frame, image, found)
        note = detector.note
    out.print(_table(str(bundle), rows))
    show_lines(f"written: {path}" for path in writer.written)
    if note:
        show_note(note)
    if json_file is not None:
        write_json(json_file, rows)
    if failed := sum("error" in row for row in rows):
        err.print(f"[red]{failed} of {len(rows)} images failed[/]")
        raise typer.Exit(EXIT_ERROR)


def _parse_class(name: str) -> int | str:
    return int(name) if name.isdigit() else name


def _with_progress(items: Iterable[Frame]) -> Iterator[Frame]:
    with progress_bar() as progress:
        task = progress.add_task("detecting", total=None)
        for item in items:
            progress.update(task, description=item.path.name)
            yield item
            progress.advance(task)


def _table(title: str, rows: Sequence[Row]) -> Table:
    """One line per image, then one per video; images that failed are left out."""
    table = make_table(title, ("image", "objects", "found"))
    table.columns[1].justify = "right"
    videos: dict[str, list[Row]] = {}
    for row in rows:
        if "frame" in row:
            videos.setdefault(row["image"], []).append(row)
        elif "detections" in row:
            found = row["detections"]
            table.add_row(escape(row["image"]), str(len(found)), escape(_summary(found)))
    for name, frames in videos.items():
        count = sum(len(frame.get("detections", ())) for frame in frames)
        table.add_row(escape(name), str(count), f"in {len(frames)} frames")
    return table


def _summary(found: Sequence[Row]) -> str:
    """Counts by class with the best score: `2 person (0.91), 1 dog (0.80)`."""
    scores: dict[str, list[float]] = {}
    for detection in found:
        scores.setdefault(detection["name"], []).append(detection["score"])
    return ", ".join(f"{len(best)} {name} ({best[0]:.2f})" for name, best in scores.items()) or "nothing"
