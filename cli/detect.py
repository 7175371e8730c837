"""`centernet-trt detect`: boxes in pictures and videos."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from centernet_trt.cli.console import EXIT_ERROR, err, out, progress_bar, show_error, write_json
from centernet_trt.cli.media import AnnotatedWriter, Frame, expand_sources, frames
from centernet_trt.errors import CenterNetError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.select import BackendName


def detect_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Annotated[list[str], typer.Argument(help="Pictures, folders of pictures, or videos.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write annotated pictures and videos there."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score. [default: the spec's]", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Only these classes, by name or number.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="At most so many an image. [default: the spec's]", show_default=False)
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the network.")] = "auto",
    mode: Annotated[Mode, typer.Option(help="Of ONNX Runtime.")] = "fast",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all detections there.")
    ] = None,
) -> None:
    """Find objects in pictures, folders and videos: a table, annotated copies (-o), JSON (--json)."""
    paths = expand_sources(sources)
    wanted = (
        None
        if classes is None
        else [int(c) if c.strip().isdigit() else c.strip() for c in classes.split(",")]
    )
    rows: list[dict[str, Any]] = []
    failed = 0
    table = Table(title=f"{bundle}")
    for column, justify in (("image", "left"), ("objects", "right"), ("found", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    with (
        Detector.load(bundle, backend=backend, mode=mode) as detector,
        AnnotatedWriter(output, paths) as writer,
    ):
        for frame in _with_progress(frames(paths)):
            try:
                image = frame.image()
                found = detector.detect(image, threshold, wanted, top_k)
            except CenterNetError as error:
                failed += 1
                show_error(error)
                rows.append({**frame.where(), "error": error.message})
                continue
            rows.append({**frame.where(), "detections": found.to_json()})
            writer.write(frame, image, found)
            if frame.number is None:
                table.add_row(str(frame.path), str(len(found)), _summary(found))
        note = detector.note
    for path in dict.fromkeys(p for p in paths if any(r["image"] == str(p) and "frame" in r for r in rows)):
        done = [row for row in rows if row["image"] == str(path)]
        table.add_row(
            str(path), str(sum(len(r.get("detections", ())) for r in done)), f"in {len(done)} frames"
        )
    out.print(table)
    for written in writer.written:
        out.print(f"written: {written}", highlight=False)
    if note:
        err.print(f"[yellow]note:[/] {note}")
    if json_file is not None:
        write_json(json_file, rows)
    if failed:
        err.print(f"[red]{failed} of {len(rows)} images failed[/]")
        raise typer.Exit(EXIT_ERROR)


def _with_progress(items: Iterable[Frame]) -> Iterator[Frame]:
    with progress_bar() as progress:
        task = progress.add_task("detecting", total=None)
        for item in items:
            progress.update(task, description=item.path.name)
            yield item
            progress.advance(task)


def _summary(found: Detections) -> str:
    """Counts by class with the best score: `2 person (0.91), 1 dog (0.80)`."""
    best: dict[str, list[float]] = {}
    for row in range(len(found)):
        best.setdefault(found.name_of(row), []).append(float(found.score[row]))
    return ", ".join(f"{len(scores)} {name} ({scores[0]:.2f})" for name, scores in best.items()) or "nothing"
