"""The two kernels on a GPU: times beside the floor of the same run and beside PyTorch, answers checked against the host's.

    python benchmarks/kernels.py --json benchmarks/results/gpu-kernels.json

Forms: `alone` is one launch between two events; `graph` is one of many in a CUDA graph, as the pipeline launches it.
`warm`: the same data again and again; `cold`: after a flush of the L2 cache, or (`graph`) on copies of the data that
together are twice as large as it. Every answer is checked before it is timed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch_baselines
from common import check_target, command_line, result, write_result
from kernel_steps import DecodeStep, PreprocessStep
from kernel_tables import judge, tables

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.evaluation.bench.gpu_timer import GpuTimer
from centernet_trt.evaluation.bench.roofline import COPY_BYTES, TRAIN, measure_gpu_rates
from centernet_trt.evaluation.bench.statistics import stability, summarise
from centernet_trt.evaluation.bench.timing import WHOLE, Subject, TimingRules, measure
from centernet_trt.evaluation.environment import device_record
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.gpu.kernels import Kernels

THRESHOLD = 0.3
_MOST_COPIES = 64
"""Beyond so many copies (a map of one class) only the flush makes the cache cold."""
SMALL = "--batches 1 2 --classes 2 --grid 24x16 --k 5 --source 20x15 --target 32x32 --copy-mib 1 --duration 0.005 --iterations 3"
Step = DecodeStep | PreprocessStep


@dataclass(frozen=True)
class KernelOptions:
    """What to measure.

    Attributes:
        batches: images at once.
        classes: of the heatmaps.
        grid: (width, height) of the heatmap, in cells.
        k: detections an image.
        source: (width, height) of the images.
        target: (width, height) of the network input.
        copy_bytes: of the copies of the floor.
        rules: how long each thing.
        torch: time PyTorch too, where it is there.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    classes: tuple[int, ...] = (80, 1)
    grid: tuple[int, int] = (128, 128)
    k: int = 100
    source: tuple[int, int] = (640, 480)
    target: tuple[int, int] = (512, 512)
    copy_bytes: int = COPY_BYTES
    rules: TimingRules = field(default_factory=lambda: TimingRules(0.05, 0.4, 30, 3, allow_short=True))
    torch: bool = True


def measure_kernels(
    device: Device,
    options: KernelOptions,
    tell: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda content: None,
) -> dict[str, Any]:
    """Check and time everything -> `floor`, `rows`, `notes`, `targets`, and the cases that `failed`.

    Args:
        device: the GPU.
        options: what to measure.
        tell: hears what is being done.
        keep: given the content so far after every step, should this process be ended before its time.

    Raises:
        CudaError: not even the floor can be measured.
    """
    record = device_record(device)
    with GpuTimer(device) as timer:
        tell("floor")
        floor = measure_gpu_rates(timer, options.rules, options.copy_bytes).to_json()
        kernels = Kernels(device)
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        failed: list[dict[str, Any]] = []

        def content() -> dict[str, Any]:
            return {
                "floor": floor,
                "rows": rows,
                "notes": list(dict.fromkeys(notes)),
                "failed": failed,
                "targets": judge(record, floor, rows),
            }

        torch, why = torch_baselines.usable_torch() if options.torch else (None, "PyTorch was left out")
        if why:
            notes.append(why)
        try:
            for name, shape, batch, nbytes, make in _cases(device, kernels, timer, options):
                tell(f"{name} {shape}, batch {batch}")
                copies = _copies_for(nbytes, timer.l2_bytes)
                about = {"step": name, "shape": shape, "batch": batch}
                try:
                    found, said = _measured(timer, make, copies, options.rules, torch)
                    rows += [about | row for row in found]
                    notes += said
                except CenterNetError as error:  # the other cases say whether it is this one's fault
                    failed.append({**about, "problem": str(error)})
                keep(content())
        finally:
            kernels.close()
        if timer.late:
            notes.append(f"in {timer.late} measurements the host was late and there are gaps in them")
        return content()


def _cases(
    device: Device, kernels: Kernels, timer: GpuTimer, options: KernelOptions
) -> list[tuple[str, str, int, int, Callable[[int], Step]]]:
    """(step, shape, batch, bytes of one copy, maker) of all that is to be timed."""
    width, height = options.grid
    found: list[tuple[str, str, int, int, Callable[[int], Step]]] = []
    # Without a threshold every block hands on its best: the worst case, and the targets'. Then one as users have it.
    wanted = [(classes, None) for classes in options.classes] + [(options.classes[0], THRESHOLD)]
    for classes, threshold in wanted:
        name = f"{classes}x{height}x{width}" + ("" if threshold is None else f", score >= {threshold}")
        for batch in options.batches:
            shape = (batch, classes, height, width)
            make: Callable[[int], Step] = partial(
                DecodeStep, device, kernels, timer.stream, shape, options.k, threshold=threshold
            )
            found.append(("decode", name, batch, 2 * batch * classes * height * width, make))
    (w, h), (net_w, net_h) = options.source, options.target
    for batch in options.batches:
        make = partial(PreprocessStep, device, kernels, timer.stream, batch, options.source, options.target)
        shape_name = f"{w}x{h} to {net_w}x{net_h}"
        found.append(("preprocess", shape_name, batch, batch * (3 * w * h + 6 * net_w * net_h), make))
    return found


def _copies_for(nbytes: int, l2: int) -> int:
    """Copies that are twice the cache together; one where that would be too many."""
    needed = max(2, -(-2 * l2 // nbytes))
    return needed if needed <= _MOST_COPIES else 1


def _measured(
    timer: GpuTimer, make: Callable[[int], Step], copies: int, rules: TimingRules, torch: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make a step, hold its answers to the host's, and time it."""
    step = make(copies)
    try:
        step.check()
        rows, notes = _timed(timer, step, copies, rules, torch)
    finally:
        step.close()
    return [{"bytes": step.nbytes} | row for row in rows], notes


def _baselines(torch: Any, step: Step) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """PyTorch's calls; a note where they fail, which is no fault of the kernels."""
    if torch is None or (isinstance(step, DecodeStep) and step.threshold is not None):
        return {}, []  # the official code decodes without a threshold
    try:
        if isinstance(step, DecodeStep):
            return torch_baselines.decode_calls(torch, step)
        return torch_baselines.preprocess_calls(torch, step)
    except (CenterNetError, RuntimeError) as error:
        return {}, [f"PyTorch was left out of a case: {' '.join(str(error).split())[:200]}"]


def _timed(
    timer: GpuTimer, step: Step, copies: int, rules: TimingRules, torch: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the kernel and of PyTorch's steps, measured in turn; and notes."""
    keys: dict[str, tuple[str, str, str]] = {}
    subjects: dict[str, Subject] = {}

    def add(who: str, form: str, cache: str, subject: Subject) -> None:
        name = f"{who}, {form}, {cache}"
        keys[name], subjects[name] = (who, form, cache), subject

    def in_turn() -> None:
        for copy in range(copies):
            step.launch(copy)

    def again() -> None:
        for _ in range(TRAIN):
            step.launch()

    graphs = [timer.recorded(again)] + ([timer.recorded(in_turn)] if copies > 1 else [])
    try:
        add("kernel", "alone", "warm", timer.subject(step.launch, "warm"))
        add("kernel", "alone", "cold", timer.subject(step.launch, "cold"))
        for graph, cache, times in zip(graphs, ("warm", "cold"), (TRAIN, copies), strict=False):
            add("kernel", "graph", cache, timer.subject(partial(graph.launch, timer.stream), times=times))
        calls, notes = _baselines(torch, step)
        for who, call in calls.items():
            work = torch_baselines.on_stream(torch, timer.stream, call)
            add(who, "alone", "warm", timer.subject(work, "warm"))
            add(who, "alone", "cold", timer.subject(work, "cold"))
        samples = measure(subjects, rules)
    finally:
        timer.stream.synchronize()
        close_all(graphs)
    rows = []
    for name, windows in samples.items():
        who, form, cache = keys[name]
        seconds = [[sample[WHOLE] for sample in window] for window in windows]
        summary = summarise([value for window in seconds for value in window]).to_json()
        stable = stability(seconds).stable
        rows.append({"who": who, "form": form, "cache": cache, **summary, "stable": stable})
    return rows, notes


def _pair(text: str) -> tuple[int, int]:
    """`640x480` -> (640, 480)."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 640x480")
    return int(parts[0]), int(parts[1])


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    usual = KernelOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    parser.add_argument("--device", default="0")
    parser.add_argument("--batches", type=int, nargs="+", default=list(usual.batches))
    parser.add_argument("--classes", type=int, nargs="+", default=list(usual.classes))
    parser.add_argument("--grid", type=_pair, default=usual.grid, help="of the heatmap, WIDTHxHEIGHT")
    parser.add_argument("--k", type=int, default=usual.k)
    parser.add_argument("--source", type=_pair, default=usual.source, help="of the images, WIDTHxHEIGHT")
    parser.add_argument("--target", type=_pair, default=usual.target, help="of the network input")
    parser.add_argument("--copy-mib", type=int, default=usual.copy_bytes >> 20)
    parser.add_argument("--duration", type=float, default=usual.rules.duration, help="seconds for each row")
    parser.add_argument("--iterations", type=int, default=usual.rules.iterations)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument(
        "--small", action="store_true", help="sizes for a dry run, in place of the usual ones"
    )
    given = sys.argv[1:] if arguments is None else list(arguments)
    return parser.parse_args([*SMALL.split(), *given] if "--small" in given else given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and on request write them; 3 where an answer was wrong or a case failed."""
    given = options_of(arguments)
    if given.copy_mib < 1:
        raise InputError(f"--copy-mib is {given.copy_mib}, at least 1 was expected")
    options = KernelOptions(
        batches=tuple(given.batches),
        classes=tuple(given.classes),
        grid=given.grid,
        k=given.k,
        source=given.source,
        target=given.target,
        copy_bytes=given.copy_mib << 20,
        rules=TimingRules(0.05, given.duration, given.iterations, 3, allow_short=True),
        torch=given.torch,
    )
    command = command_line(__file__, arguments)
    with Device.open(given.device, "cuda-bindings") as device:
        record = device_record(device)
        if given.json is not None:
            check_target(given.json, record)

        def whole(content: dict[str, Any]) -> dict[str, Any]:
            return result("gpu-kernels", record, command, k=options.k, **content)

        def keep(content: dict[str, Any]) -> None:
            if given.json is not None:
                write_result(given.json, whole(content))

        tell = partial(print, file=sys.stderr, flush=True)
        data = whole(measure_kernels(device, options, tell, keep))
    text = tables(data)
    print(text)
    if given.json is not None:
        write_result(given.json, data)
    if given.markdown is not None:
        given.markdown.write_text(text, encoding="utf-8")
    return 3 if data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
