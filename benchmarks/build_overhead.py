"""How much longer a build takes than TensorRT alone needs: `python benchmarks/build_overhead.py MODEL.onnx --spec PRESET`.

A build is passes, then TensorRT on the graph that they made. Both are timed in turns, and so is TensorRT alone: its
parser and its builder on the bundle's `model.onnx`, with nothing of ours around. What the whole build takes beyond
passes and bare TensorRT is the overhead: reading, comparing hashes, writing the bundle, watching progress.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.errors import BackendError
from centernet_trt.runtime import EngineBundle
from centernet_trt.runtime.manifest import ProfileRecord
from centernet_trt.runtime.presets import read_spec
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, load_flavour


@dataclass(frozen=True)
class Overhead:
    """One turn, in seconds of wall clock.

    Attributes:
        whole: the build, from the call to the bundle on disk.
        passes: each pass, by name.
        bare: TensorRT alone on the same graph.
    """

    whole: float
    passes: dict[str, float]
    bare: float

    @property
    def ratio(self) -> float:
        """The whole build over what cannot be avoided: TensorRT alone, and the passes."""
        return self.whole / (self.bare + sum(self.passes.values()))


def measure(model: Path, spec: ModelSpec, options: BuildOptions, folder: Path) -> Overhead:
    """Build a bundle into `folder`, then let TensorRT build the same graph alone.

    Raises:
        BackendError: TensorRT is missing, or refuses the graph.
        ModelError, SpecError, InputError: as `build.build`.
    """
    start = time.perf_counter()
    bundle = build(model, spec, folder, options)
    whole = time.perf_counter() - start
    passes: dict[str, float] = {}
    for row in bundle.manifest.passes:
        passes[row.name] = passes.get(row.name, 0.0) + row.seconds
    return Overhead(whole, passes, bare_build(bundle, load_flavour(bundle.manifest.plans[0].flavour)))


def bare_build(bundle: EngineBundle, flavour: Flavour) -> float:
    """Seconds that TensorRT takes to parse and build a bundle's graph by itself, for the same profiles and target."""
    trt, manifest = flavour.trt, bundle.manifest
    logger = trt_log.logger_for(flavour.module)
    start = time.perf_counter()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle.model_path))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in flavour.build_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for record in manifest.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(manifest.input.name, *_shapes(record, manifest.input.channels))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config) if parsed else None
    seconds = time.perf_counter() - start
    if plan is None:
        raise BackendError("TensorRT does not build the bundle's graph by itself", "look at what it logs")
    return seconds


def _shapes(record: ProfileRecord, channels: int) -> list[tuple[int, int, int, int]]:
    return [
        (getattr(record.batch, which), channels, getattr(record.height, which), getattr(record.width, which))
        for which in ("min", "opt", "max")
    ]


def report(turns: list[Overhead]) -> str:
    """The medians, pass by pass, as lines of text."""
    names = list(dict.fromkeys(name for turn in turns for name in turn.passes))
    lines = [f"{name:18} {median(turn.passes.get(name, 0.0) for turn in turns):8.3f} s" for name in names]
    passes = median(sum(turn.passes.values()) for turn in turns)
    ratios = sorted(turn.ratio for turn in turns)
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f} of {len(turns)} turns"
    lines += [
        f"{'all passes':18} {passes:8.3f} s",
        f"{'TensorRT alone':18} {median(turn.bare for turn in turns):8.3f} s",
        f"{'whole build':18} {median(turn.whole for turn in turns):8.3f} s",
        f"whole / (passes + TensorRT alone): median {median(ratios):.3f}, {spread}",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the turns as JSON where asked."""
    parser = argparse.ArgumentParser(prog="python benchmarks/build_overhead.py")
    parser.add_argument("model", type=Path)
    parser.add_argument("--spec", required=True, help="a preset or a file")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    options = BuildOptions(precision=given.precision, flavour="rtx")
    spec = read_spec(given.spec)
    turns: list[Overhead] = []
    with TemporaryDirectory() as folder:
        measure(given.model, spec, options, Path(folder) / "warm")  # imports, and the disk's cache
        for turn in range(given.turns):
            turns.append(measure(given.model, spec, options, Path(folder) / str(turn)))
    print(report(turns))
    if given.json is not None:
        rows = {"model": given.model.name, "precision": given.precision, "turns": [asdict(t) for t in turns]}
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
