"""One plan on this GPU, in a process of its own: `python benchmarks/rtx_try.py BUNDLE PLAN --json FILE`.

The file is written again after every step, so that a crash leaves how far it came. The bundle's own check of the GPU that a
plan was built for is skipped: whether it runs is left to TensorRT.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from centernet_trt.errors import BundleError, CenterNetError
from centernet_trt.evaluation.accuracy.tensor_error import ErrorSum
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor, GpuTimer
from centernet_trt.evaluation.bench.statistics import summarise
from centernet_trt.evaluation.bench.timing import WHOLE, TimingRules, measure
from centernet_trt.evaluation.environment import device_record
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.gpu.buffers import tensor_bytes
from centernet_trt.runtime.host.onnxruntime import OnnxRuntimeExecutor, allocate_heads
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.context import NetworkContext, TensorRTEngine
from centernet_trt.runtime.trt.inspector import EngineLayer, parse_layers

STEPS = ("read", "deserialise", "inspect", "context", "run", "compare", "time", "graph", "layers", "done")
_MOST_LINES = 200
_MOST_LAYERS = 150


class Progress:
    """The try's record, on disk after every step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"reached": "start", "seconds": {}}
        self.lines: list[trt_log.LogLine] = []

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a step; its time, what it returns (unless None or an object) and TensorRT's lines so far are written."""
        self.data["reached"] = name
        self.write()
        start = time.perf_counter()
        found = work()
        self.data["seconds"][name] = time.perf_counter() - start
        if isinstance(found, dict):
            self.data[name] = found
        self.write()
        return found

    def write(self) -> None:
        """Write it, whole or not at all."""
        self.data["log"] = [f"[{severity}] {text}" for severity, text in self.lines][-_MOST_LINES:]
        scratch = self.path.with_name(self.path.name + ".part")
        scratch.write_text(json.dumps(self.data, indent=1), encoding="utf-8")
        scratch.replace(self.path)


def attempt(bundle: EngineBundle, file: str, batch: int, progress: Progress, rules: TimingRules) -> None:
    """Load the plan, run it on a real batch, compare it with ONNX Runtime, time it.

    Args:
        bundle: of the plan.
        file: the plan's name in the bundle.
        batch: images at once.
        progress: where everything goes.
        rules: how long to time.

    Raises:
        BundleError: no such plan.
        BackendError: TensorRT refuses.
        CudaError: the driver does.
    """
    plans = [plan for plan in bundle.manifest.plans if plan.file == file]
    if not plans:
        listed = ", ".join(plan.file for plan in bundle.manifest.plans) or "none"
        raise BundleError(f"the bundle {bundle.path.name} has no plan {file}", f"its plans are: {listed}")
    only = EngineBundle(bundle.path, bundle.manifest.model_copy(update={"plans": tuple(plans)}))
    with Device.open(0, "cuda-bindings") as device:
        progress.data["device"] = device_record(device)
        executor: TensorRTEngine = progress.step("deserialise", lambda: _load(only, device))
        try:
            progress.step("inspect", lambda: inspect_engine(executor.loaded.module, executor.loaded.engine))
            _run(only, executor, batch, progress, rules)
        finally:
            executor.close()
    progress.step("done", dict)


def _load(bundle: EngineBundle, device: Device) -> TensorRTEngine:
    """Load the bundle's only plan, whatever GPU it was built for: whether it runs here is left to TensorRT."""
    info, target = device.info, bundle.manifest.plans[0].target
    if target.startswith("sm_"):
        digits = int(target.removeprefix("sm_"))
        device.info = replace(info, capability=(digits // 10, digits % 10))
    try:
        return TensorRTEngine(bundle, device)
    finally:
        device.info = info  # the measuring kernels are compiled for the GPU that is there


def _run(
    bundle: EngineBundle, executor: TensorRTEngine, batch: int, progress: Progress, rules: TimingRules
) -> None:
    manifest, device = bundle.manifest, executor.device
    height, width = manifest.profile.height.opt, manifest.profile.width.opt
    image = np.random.default_rng(0).normal(0, 1, (batch, 3, height, width)).astype(manifest.input.dtype)
    made: list[Any] = []
    with GpuTimer(device) as timer:
        stream = timer.stream
        try:
            tensors = {manifest.input.name: DeviceTensor.of(device, image, stream)}
            made.append(tensors[manifest.input.name])
            for name, shape in executor.output_shapes(batch, height, width).items():
                dtype = {head.name: head.dtype for head in manifest.heads}[name]
                tensors[name] = DeviceTensor(device, shape, dtype, stream)
                made.append(tensors[name])
            workspace = device.allocate(executor.workspace_bytes)
            made.append(workspace)
            addresses = {name: tensor.address for name, tensor in tensors.items()}
            context: NetworkContext = progress.step(
                "context",
                lambda: executor.context((batch, height, width), addresses, workspace.address, stream),
            )
            made.append(context)

            def once() -> None:
                context.enqueue(stream)
                stream.synchronize()

            progress.step("run", once)
            progress.step("compare", lambda: _compared(bundle, image, tensors))
            enqueue = partial(context.enqueue, stream)
            progress.step("time", lambda: _timed(timer, enqueue, rules))
            progress.step("graph", lambda: _graph(timer, context, rules))
            progress.step("layers", lambda: _layers(executor, batch, height, width))
        finally:
            stream.synchronize()
            close_all(list(reversed(made)))


def _compared(bundle: EngineBundle, image: Any, tensors: dict[str, DeviceTensor]) -> dict[str, Any]:
    """The error of each head against ONNX Runtime on the same graph and input."""
    manifest = bundle.manifest
    wanted = allocate_heads(manifest, len(image), *image.shape[2:])
    host = OnnxRuntimeExecutor(bundle.model_path, manifest)
    try:
        host.run({manifest.input.name: image}, wanted)
    finally:
        host.close()
    found = {}
    for name, reference in wanted.items():
        errors = ErrorSum()
        errors.add(reference, tensors[name].read())
        found[name] = errors.result().to_json()
    return found


def _timed(timer: GpuTimer, enqueue: Callable[[], None], rules: TimingRules) -> dict[str, Any]:
    windows = measure({"network": timer.subject(enqueue)}, rules)["network"]
    return summarise([sample[WHOLE] for window in windows for sample in window]).to_json()


def _graph(timer: GpuTimer, context: NetworkContext, rules: TimingRules) -> dict[str, Any]:
    """The same as a CUDA graph; or why it is none."""
    if not context.capturable(timer.stream):
        return {"refused": "TensorRT says that this network cannot be recorded"}
    try:
        graph = timer.recorded(partial(context.enqueue, timer.stream))
    except CenterNetError as error:
        return {"refused": error.message}
    with graph:
        found = _timed(timer, partial(graph.launch, timer.stream), rules)
        timer.stream.synchronize()
    return found


def _layers(executor: TensorRTEngine, batch: int, height: int, width: int) -> dict[str, Any]:
    """Milliseconds of each layer by TensorRT's profiler, or why there are none."""
    try:
        return {"ms": profile_layers(executor, batch, height, width)}
    except CenterNetError as error:
        return {"problem": error.message}


def profile_layers(
    executor: TensorRTEngine, batch: int, height: int, width: int, runs: int = 20
) -> dict[str, float]:
    """Mean milliseconds of all layers, in the order they ran, for `batch` images of height x width pixels, all zero.

    TensorRT waits after every layer while it measures, so the sum is more than the network takes; compare layers, not
    totals.

    Raises:
        InputError: the shape is outside the profile.
        BackendError: TensorRT refuses.
        CudaError: out of memory.
    """
    manifest, device = executor.manifest, executor.device
    stride = manifest.spec.stride
    sizes = {manifest.input.name: tensor_bytes(manifest.input, batch, height, width)}
    sizes |= {
        head.name: tensor_bytes(head, batch, height // stride, width // stride) for head in manifest.heads
    }
    made: list[Any] = []
    times: dict[str, list[float]] = {}
    try:
        stream = device.stream()
        made.append(stream)
        buffers = {name: device.allocate(size) for name, size in sizes.items()}
        workspace = device.allocate(executor.workspace_bytes)
        made += [*buffers.values(), workspace]
        stream.fill(buffers[manifest.input.name].address, 0, sizes[manifest.input.name])
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        context = executor.context((batch, height, width), addresses, workspace.address, stream)
        made.append(context)
        context.enqueue(stream)  # the first run compiles and allocates
        stream.synchronize()
        context.report_layers_to(_profiler(executor.loaded.module, times))
        for _ in range(runs):
            context.enqueue(stream)
            stream.synchronize()
    finally:
        close_all(list(reversed(made)))
    return {name: sum(values) / runs for name, values in times.items()}


def _profiler(module: Any, times: dict[str, list[float]]) -> Any:
    class Profiler(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)  # as TensorRT's documents ask

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()


def inspect_engine(module: Any, engine: Any) -> dict[str, Any]:
    """Counts of layers, convolutions and int8 convolutions, and every layer (150 at most); or `problem`.

    Args:
        module: TensorRT's.
        engine: deserialised; built with detailed profiling verbosity, or there are only names.
    """
    try:
        text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
        layers = parse_layers(str(text))
    except Exception as error:  # noqa: BLE001 - a report only; the probe goes on without it
        return {"problem": f"{type(error).__name__}: {error}"}
    convolutions = [layer for layer in layers if "conv" in f"{layer.kind} {layer.name}".lower()]
    return {
        "layers": len(layers),
        "detailed": any(layer.outputs for layer in layers),
        "convolutions": len(convolutions),
        "int8_convolutions": sum(map(reads_int8, convolutions)),
        "told": [asdict(layer) for layer in layers[:_MOST_LAYERS]],
    }


def reads_int8(layer: EngineLayer) -> bool:
    """Whether any of its inputs is int8; never known from a name alone."""
    return any("int8" in text.lower() for text in layer.inputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try; 0 where the plan ran, 1 where it was refused (the file says by whom and how)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("plan")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--duration", type=float, default=1.0)
    given = parser.parse_args(arguments)
    progress = Progress(given.json)
    rules = TimingRules(0.1, given.duration, 10, 3, allow_short=True)
    with trt_log.capture() as progress.lines:
        try:
            bundle = progress.step("read", lambda: EngineBundle.load(given.bundle))
            attempt(bundle, given.plan, given.batch, progress, rules)
        except CenterNetError as error:
            progress.data["problem"] = {
                "kind": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
            }
            progress.write()
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
