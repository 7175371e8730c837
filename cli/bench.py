"""`centernet-trt bench`: latency by stage, throughput and loading of bundles; and two reports compared."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from centernet_trt.cli.console import out, progress_bar, show_note, show_tables, write_json, write_text
from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.evaluation.bench.timing import CacheState, InputKind, TimingRules
from centernet_trt.runtime.backend import GpuOptions
from centernet_trt.runtime.bundle import EngineBundle, sha256_file
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.select import BackendName, why_not_tensorrt

if TYPE_CHECKING:
    from centernet_trt.evaluation.bench.report import BenchReport
    from centernet_trt.evaluation.bench.roofline import MachineRates
    from centernet_trt.evaluation.bench.subjects import BenchOptions

_plain = typer.Option
_load, _host, _gpu, _file = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("Throughput", "With ONNX Runtime", "On a GPU", "Output")
)
HOST_ONLY = ("source", "read", "bandwidth", "rate", "network_threads")
GPU_ONLY = ("l2", "input_", "graph")
"""Parameters that mean nothing on the other backend: refused there, unless they have their default."""


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers, such as 1,4,8")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench_command(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of bundles, measured interleaved.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None, _plain(metavar="DIR", help="Images to rotate over (default: the images that ship).")
    ] = None,
    max_images: Annotated[int, _plain(min=1, help="At most so many of them, evenly picked.")] = 8,
    duration: Annotated[float, _plain(metavar="SECONDS", help="Least time to measure each thing.")] = 3.0,
    iterations: Annotated[int, _plain(help="Least number of calls to measure.")] = 10,
    warmup: Annotated[float, _plain(metavar="SECONDS", help="Time of calls that are discarded.")] = 0.2,
    allow_short: Annotated[
        bool, _plain("--allow-short", help="Accept less than 3 s or 10 iterations; marked in the report.")
    ] = False,
    backend: Annotated[
        BackendName, _plain(help="auto: TensorRT where the bundles' plans run, else ONNX Runtime.")
    ] = "auto",
    batches: Annotated[str, _load(metavar="N,...", help="Batch sizes of the throughput mode.")] = "1,4",
    threads: Annotated[
        str,
        _load(
            metavar="N,...",
            help="Threads that send requests: of one image each; on a GPU, with a stream each, of every batch size.",
        ),
    ] = "1,2",
    in_flight: Annotated[
        str, _load(metavar="N,...", help="Single images always in flight in Detector.submit.")
    ] = "8",
    latency_only: Annotated[bool, _load("--latency-only", help="Leave the throughput mode out.")] = False,
    mode: Annotated[Mode, _host(help="Mode of ONNX Runtime.")] = "fast",
    read: Annotated[bool, _host("--read", help="Reading the image file is a stage too.")] = False,
    network_threads: Annotated[
        int | None, _host(min=1, help="Threads of ONNX Runtime (default: its own choice).")
    ] = None,
    source: Annotated[
        Path | None,
        _host(metavar="MODEL.onnx", help="Time the source graph in plain ONNX Runtime beside its bundles."),
    ] = None,
    bandwidth: Annotated[
        float | None, _host(metavar="GB/S", help="For the lower bounds, with --rate (default: measured).")
    ] = None,
    rate: Annotated[
        float | None, _host(metavar="GFLOP/S", help="For the lower bounds, with --bandwidth.")
    ] = None,
    device: Annotated[str, _gpu(metavar="N|UUID", help="The GPU.")] = "0",
    l2: Annotated[CacheState, _gpu(help="The L2 cache before each call: as it is, or flushed.")] = "warm",
    input_: Annotated[InputKind, _gpu("--input", help="The memory that the images come from.")] = "pageable",
    graph: Annotated[
        bool, _gpu("--graph/--no-graph", help="Record each shape's work as a CUDA graph.")
    ] = True,
    binding: Annotated[BindingName, _gpu(help="The package for the driver.")] = "auto",
    json_file: Annotated[
        Path | None, _file("--json", metavar="FILE", help="Write every sample and the environment.")
    ] = None,
    png: Annotated[Path | None, _file(metavar="FILE", help="Write the plots.")] = None,
    html: Annotated[Path | None, _file(metavar="FILE", help="Write a self-contained page.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        _plain(metavar="A.json B.json", help="Measure nothing; compare two reports.", show_default=False),
    ] = None,
) -> None:
    """Measure bundles: every stage with one image in flight, throughput, loading, lower bounds and baselines."""
    if compare is not None:
        if bundles:
            raise typer.BadParameter("--compare takes two reports and no bundles")
        _compare(*compare, json_file)
        return
    if not bundles:
        raise typer.BadParameter("name the folder of a bundle, or --compare A.json B.json")
    rules = TimingRules(warmup, duration, iterations, allow_short=allow_short)
    rates = _rates(bandwidth, rate)
    sizes, counts, flights = _numbers(batches), _numbers(threads), _numbers(in_flight)
    if png is not None or html is not None:
        # Minutes of measuring should not end in a missing package.
        from centernet_trt.evaluation.bench.html import new_figure

        new_figure(1, 1)
    from centernet_trt.evaluation.bench.subjects import BenchOptions

    paths, loaded = _images(images, max_images), [EngineBundle.load(folder) for folder in bundles]
    gpu = GpuOptions(device=_device(device), streams=max(counts), cuda_graph=graph, binding=binding)
    on_gpu = runs_on_gpu(loaded, backend, gpu)
    given = _given(context, HOST_ONLY if on_gpu else GPU_ONLY)
    if given and on_gpu:
        raise typer.BadParameter(
            f"{given} cannot be used on a GPU, only with ONNX Runtime: add --backend onnxruntime"
        )
    if given:
        raise typer.BadParameter(f"{given} need bundles whose plans run on a GPU here")
    if on_gpu:
        loads = [(streams, batch) for streams in counts for batch in sizes]
        gpu = replace(gpu, max_pixels=_largest(paths))
    else:
        loads = [(1, batch) for batch in sizes] + [(count, 1) for count in counts]
    options = BenchOptions(
        rules,
        "tensorrt" if on_gpu else "onnxruntime",
        () if latency_only else tuple(loads),
        () if latency_only else flights,
        mode="fast" if on_gpu else mode,
        threads=network_threads,
        read=read,
        rates=rates,
        gpu=gpu,
        cache=l2,
        input=input_,
    )
    sources = {} if source is None else _sources(source, loaded)
    _show(_measure(loaded, paths, options, sources), json_file, png, html)


def runs_on_gpu(bundles: Sequence[EngineBundle], backend: BackendName, options: GpuOptions) -> bool:
    """Whether all bundles are to run in TensorRT.

    Raises:
        BackendError: TensorRT is required, or some bundles can use it and others cannot, which would be no comparison.
    """
    if backend == "onnxruntime":
        return False
    problems: dict[str, CenterNetError] = {}
    for bundle in bundles:
        problem = why_not_tensorrt(bundle, options)
        if problem is not None:
            problems[bundle.manifest.name] = problem
    if not problems:
        return True
    if backend == "auto" and len(problems) == len(bundles):
        return False
    name, first = next(iter(problems.items()))
    raise BackendError(
        f"TensorRT cannot run {name} here: {first.message}",
        f"{first.hint}; or measure on the host with --backend onnxruntime",
    )


def _given(context: typer.Context, names: Sequence[str]) -> str:
    """The options of these parameters that differ from their default, as the user writes them."""
    options = {parameter.name: parameter for parameter in context.command.params}
    given = [name for name in names if context.params[name] != options[name].get_default(context)]
    return ", ".join((options[name].secondary_opts or options[name].opts)[0] for name in given)


def _rates(bandwidth: float | None, rate: float | None) -> "MachineRates | None":
    if (bandwidth is None) != (rate is None):
        raise typer.BadParameter("--bandwidth and --rate go together")
    if bandwidth is None or rate is None:
        return None
    from centernet_trt.evaluation.bench.roofline import MachineRates

    return MachineRates(bandwidth * 1e9, rate * 1e9, "given with --bandwidth and --rate")


def _device(text: str) -> int | str:
    if not text:
        raise InputError("--device is empty", "name a GPU by its number or UUID")
    return int(text) if text.isdecimal() else text


def _largest(images: Sequence[Path]) -> int:
    """Pixels of the largest image; InputError for one that cannot be read."""
    from centernet_trt.evaluation.bench.throughput import load_images

    return max(image.height * image.width for image in load_images(images))


def _images(folder: Path | None, most: int) -> list[Path]:
    from centernet_trt.calib_data import sample_images
    from centernet_trt.evaluation.bench.throughput import pick_images

    if folder is None:
        return [image.path for image in sample_images()][:most]
    return pick_images(folder, most)


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


def _measure(
    bundles: list[EngineBundle], images: list[Path], options: "BenchOptions", sources: dict[Path, bytes]
) -> "BenchReport":
    from centernet_trt.builder.source import count_work
    from centernet_trt.evaluation.bench.run import run_bench

    with progress_bar() as progress:
        task = progress.add_task("starting", total=None)
        return run_bench(
            bundles,
            images,
            options,
            counter=count_work,
            sources=sources,
            command=shlex.join(["centernet-trt", *sys.argv[1:]]),
            progress=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )


def _show(report: "BenchReport", json_file: Path | None, png: Path | None, html: Path | None) -> None:
    from centernet_trt.evaluation.bench.html import html_report, whole_figure, write_png
    from centernet_trt.evaluation.bench.tables import report_tables

    show_tables(report_tables(report))
    for text in report.warnings():
        show_note(text)
    if json_file is not None:
        write_text(json_file, report.to_text())
    if png is not None:
        write_png(whole_figure(report), png)
    if html is not None:
        write_text(html, html_report(report))
    for path in (json_file, png, html):
        if path is not None:
            out.print(f"written: {path}", highlight=False)


def _compare(a: Path, b: Path, json_file: Path | None) -> None:
    from centernet_trt.evaluation.bench.compare import compare_reports
    from centernet_trt.evaluation.bench.report import read_report
    from centernet_trt.evaluation.bench.tables import comparison_table

    found = compare_reports(read_report(a), read_report(b))
    show_tables([comparison_table(found)])
    for text in found.differences:
        show_note(text)
    if json_file is not None:
        write_json(json_file, found.to_json())
