"""`centernet-trt bench`: how fast, honestly; and two reports compared."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from centernet_trt.cli.console import err, out, progress_bar, write_json, write_text
from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.runtime.bundle import EngineBundle, sha256_file
from centernet_trt.runtime.host.onnxruntime import Mode

if TYPE_CHECKING:
    from centernet_trt.evaluation.bench.gpu_options import GpuBenchOptions
    from centernet_trt.evaluation.bench.report import BenchReport
    from centernet_trt.evaluation.bench.run import BenchOptions
    from centernet_trt.evaluation.bench.timing import TimingRules


class BackendChoice(StrEnum):
    """Where the network runs."""

    auto = "auto"
    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


class CacheChoice(StrEnum):
    """State of the L2 cache when a call begins."""

    warm = "warm"
    cold = "cold"


class InputChoice(StrEnum):
    """Where the images come from."""

    pageable = "pageable"
    pinned = "pinned"
    device = "device"


class BindingChoice(StrEnum):
    """Python package for the CUDA driver."""

    auto = "auto"
    pycuda = "pycuda"
    cuda_bindings = "cuda-bindings"


@dataclass(frozen=True)
class GpuChoices:
    """What was asked for on the command line."""

    backend: BackendChoice = BackendChoice.auto
    device: str = "0"
    cache: CacheChoice = CacheChoice.warm
    input: InputChoice = InputChoice.pageable
    graph: bool = True
    streams: tuple[int, ...] = (1, 2)
    binding: BindingChoice = BindingChoice.auto


def runs_on_gpu(bundles: Sequence[EngineBundle], choices: GpuChoices) -> bool:
    """Whether all bundles are to run in TensorRT.

    Raises:
        BackendError: TensorRT was asked for, or some bundles can use it and others not: that is no comparison.
    """
    if choices.backend is BackendChoice.onnxruntime:
        return False
    from centernet_trt.runtime.backend import GpuOptions
    from centernet_trt.runtime.select import why_not_tensorrt

    options = GpuOptions(device=_device(choices))
    problems: dict[str, CenterNetError] = {}
    for bundle in bundles:
        problem = why_not_tensorrt(bundle, options)
        if problem is not None:
            problems[bundle.manifest.name] = problem
    if not problems:
        return True
    if choices.backend is BackendChoice.auto and len(problems) == len(bundles):
        return False
    name, first = next(iter(problems.items()))
    raise BackendError(
        f"TensorRT cannot run {name} here: {first.message}",
        f"{first.hint}; or measure on the host with --backend onnxruntime",
    )


def gpu_options(
    choices: GpuChoices,
    rules: "TimingRules",
    batches: Sequence[int],
    in_flight: Sequence[int],
    images: Sequence[Path],
) -> "GpuBenchOptions":
    """The options of `run_gpu_bench`; the upload buffer is made for the largest of the images.

    Args:
        choices: of the command line.
        rules: how long.
        batches: sizes of the throughput mode; none leaves it out.
        in_flight: images under way in `submit`.
        images: files.

    Raises:
        InputError: an image that cannot be read.
    """
    from centernet_trt.evaluation.bench.gpu_options import GpuBenchOptions
    from centernet_trt.evaluation.bench.host_stages import load_pictures
    from centernet_trt.runtime.backend import GpuOptions

    pixels = max(p.pixels.shape[0] * p.pixels.shape[1] for p in load_pictures(images))
    gpu = GpuOptions(
        device=_device(choices),
        streams=max(choices.streams),
        cuda_graph=choices.graph,
        max_pixels=pixels,
        binding=choices.binding.value,
    )
    return GpuBenchOptions(
        gpu=gpu,
        rules=rules,
        cache=choices.cache.value,
        input=choices.input.value,
        loads=tuple((streams, batch) for streams in choices.streams for batch in batches),
        in_flight=tuple(in_flight),
    )


def _device(choices: GpuChoices) -> int | str:
    if not choices.device:
        raise InputError("--device is empty", "name a GPU by its number or UUID")
    return int(choices.device) if choices.device.isdecimal() else choices.device


Run = Callable[..., "BenchReport"]


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers, such as 1,4,8")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench_command(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Folders of bundles, measured in turn.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images to rotate over. [default: the pictures that ship]"),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="At most so many of them, evenly picked.")] = 8,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="Measure each thing at least so long.")
    ] = 3.0,
    iterations: Annotated[int, typer.Option(help="And at least so often.")] = 10,
    warmup: Annotated[float, typer.Option(metavar="SECONDS", help="Of calls that are thrown away.")] = 0.2,
    allow_short: Annotated[
        bool,
        typer.Option("--allow-short", help="Accept less than 3 s or 10 iterations; marked in the report."),
    ] = False,
    batches: Annotated[
        str, typer.Option(metavar="N,...", help="Batch sizes of the throughput mode.")
    ] = "1,4",
    threads: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="Threads that ask at once: each for one image, and on a GPU, with a stream each, for every batch size.",
        ),
    ] = "1,2",
    in_flight: Annotated[
        str, typer.Option(metavar="N,...", help="Single images always under way in Detector.submit.")
    ] = "8",
    latency_only: Annotated[
        bool, typer.Option("--latency-only", help="Leave the throughput mode out.")
    ] = False,
    read: Annotated[bool, typer.Option("--read", help="Reading the image file is a stage too.")] = False,
    mode: Annotated[Mode, typer.Option(help="Of ONNX Runtime.")] = "fast",
    network_threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of ONNX Runtime. [default: its own choice]", show_default=False),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.onnx", help="Time the source graph in plain ONNX Runtime beside its bundles."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="GB/S", help="For the floor, with --rate. [default: measured]", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="GFLOP/S", help="For the floor, with --bandwidth.", show_default=False),
    ] = None,
    backend: Annotated[
        BackendChoice, typer.Option(help="auto: TensorRT where the bundles' plans run, else ONNX Runtime.")
    ] = BackendChoice.auto,
    device: Annotated[str, typer.Option(metavar="N|UUID", help="The GPU.")] = "0",
    l2: Annotated[
        CacheChoice, typer.Option(help="GPU: the L2 cache before each call, as it is or flushed.")
    ] = CacheChoice.warm,
    source_memory: Annotated[
        InputChoice, typer.Option("--input", help="GPU: the memory that the images come from.")
    ] = InputChoice.pageable,
    graph: Annotated[
        bool, typer.Option("--graph/--no-graph", help="GPU: record each shape's work as a CUDA graph.")
    ] = True,
    binding: Annotated[
        BindingChoice, typer.Option(help="GPU: the package for the driver.")
    ] = BindingChoice.auto,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write every sample and the environment there."),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the pictures there.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained page there.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A.json B.json", help="Measure nothing; compare two reports.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure bundles: every stage with one image in flight, throughput, loading, floors and baselines."""
    if compare is not None:
        if bundles:
            raise typer.BadParameter("--compare takes two reports and no bundles")
        _compare(*compare, json_file)
        return
    if not bundles:
        raise typer.BadParameter("name the folder of a bundle, or --compare A.json B.json")
    from centernet_trt.evaluation.bench.roofline import MachineRates
    from centernet_trt.evaluation.bench.run import BenchOptions
    from centernet_trt.evaluation.bench.timing import TimingRules

    if (bandwidth is None) != (rate is None):
        raise typer.BadParameter("--bandwidth and --rate go together")
    rates = None
    if bandwidth is not None and rate is not None:
        rates = MachineRates(bandwidth * 1e9, rate * 1e9, "given with --bandwidth and --rate")
    if png is not None or html is not None:
        # Minutes of measuring should not end in a missing package.
        from centernet_trt.evaluation.bench.html import new_figure

        new_figure(1, 1)
    loads = [(1, batch) for batch in _numbers(batches)] + [(count, 1) for count in _numbers(threads)]
    options = BenchOptions(
        rules=TimingRules(warmup, duration, iterations, allow_short=allow_short),
        mode=mode,
        threads=network_threads,
        read=read,
        loads=() if latency_only else tuple(dict.fromkeys(loads)),
        in_flight=() if latency_only else tuple(_numbers(in_flight)),
        rates=rates,
    )
    paths, loaded = _images(images, max_images), [EngineBundle.load(folder) for folder in bundles]
    choices = GpuChoices(backend, device, l2, source_memory, graph, _numbers(threads), binding)
    if runs_on_gpu(loaded, choices):
        if source or read or rates or network_threads:
            raise typer.BadParameter(
                "--source, --read, --bandwidth, --rate and --network-threads are of ONNX Runtime's benchmark: add "
                "--backend onnxruntime"
            )
        sizes = () if latency_only else _numbers(batches)
        gpu = gpu_options(choices, options.rules, sizes, options.in_flight, paths)
        _measure(_gpu_run(loaded, paths, gpu), json_file, png, html)
        return
    if (l2, source_memory, graph) != (CacheChoice.warm, InputChoice.pageable, True):
        raise typer.BadParameter("--l2, --input and --no-graph need bundles whose plans run on a GPU here")
    _measure(_host_run(loaded, paths, options, source), json_file, png, html)


def _images(folder: Path | None, most: int) -> list[Path]:
    from centernet_trt.calib_data import sample_images
    from centernet_trt.evaluation.bench.host_stages import pick_images

    if folder is None:
        return [image.path for image in sample_images()][:most]
    return pick_images(folder, most)


def _host_run(
    bundles: list[EngineBundle], images: list[Path], options: "BenchOptions", source: Path | None
) -> Run:
    from centernet_trt.builder.source import count_work
    from centernet_trt.evaluation.bench.run import run_bench

    sources = {} if source is None else _sources(source, bundles)
    return partial(run_bench, bundles, images, options, counter=count_work, sources=sources)


def _gpu_run(bundles: list[EngineBundle], images: list[Path], options: "GpuBenchOptions") -> Run:
    from centernet_trt.builder.source import count_work
    from centernet_trt.evaluation.bench.gpu_run import run_gpu_bench

    return partial(run_gpu_bench, bundles, images, options, counter=count_work)


def _measure(run: Run, json_file: Path | None, png: Path | None, html: Path | None) -> None:
    from centernet_trt.cli.console import show_tables
    from centernet_trt.evaluation.bench.tables import report_tables

    with progress_bar() as progress:
        task = progress.add_task("starting", total=None)
        report = run(
            command=shlex.join(["centernet-trt", *sys.argv[1:]]),
            progress=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    show_tables(report_tables(report))
    for text in report.warnings():
        err.print(f"[yellow]note:[/] {escape(text)}", highlight=False)
    if json_file is not None:
        write_text(json_file, report.to_text())
    if png is not None:
        from centernet_trt.evaluation.bench.html import whole_figure, write_png

        write_png(whole_figure(report), png)
    if html is not None:
        from centernet_trt.evaluation.bench.html import html_report

        write_text(html, html_report(report))
    for path in (json_file, png, html):
        if path is not None:
            out.print(f"written: {path}", highlight=False)


def _sources(source: Path, bundles: list[EngineBundle]) -> dict[Path, bytes]:
    """The source graph for the first bundle that was built from it: once is enough in one run."""
    from centernet_trt.builder.source import comparable_source

    if not source.is_file():
        raise InputError(f"there is no file {source}", "give the ONNX file that the bundle was built from")
    digest = sha256_file(source)
    for bundle in bundles:
        if bundle.manifest.source.sha256 == digest:
            return {bundle.path: comparable_source(source, bundle.manifest)}
    raise InputError(
        f"none of the bundles was built from {source} (SHA-256 {digest[:12]})",
        "give the ONNX file that a bundle was built from: its manifest names it under `source`",
    )


def _compare(a: Path, b: Path, json_file: Path | None) -> None:
    from centernet_trt.cli.console import show_tables
    from centernet_trt.evaluation.bench.compare import compare_reports
    from centernet_trt.evaluation.bench.report import read_report
    from centernet_trt.evaluation.bench.tables import comparison_table

    found = compare_reports(read_report(a), read_report(b))
    show_tables([comparison_table(found)])
    for text in found.differences:
        err.print(f"[yellow]note:[/] {escape(text)}", highlight=False)
    if json_file is not None:
        write_json(json_file, found.to_json())
