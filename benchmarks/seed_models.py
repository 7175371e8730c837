"""Measures what docs/models.md says of the seed networks: how far the exported graphs are from PyTorch, and their size.

    python benchmarks/seed_models.py --reference ../shared/reference --json benchmarks/results/seed-models.json

Two oracles: the stored outputs of the public PyTorch models (128 x 128, 80 classes), and, where PyTorch is installed, a
second implementation of every network in float64 (tests/helpers/torch_networks.py), at other sizes, two images, 20
classes. Each graph is compared as exported, and with batch norms folded and deformable convolutions lowered.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from centernet_trt.builder.export.export import export_model, random_weights
from centernet_trt.builder.export.registry import ARCHITECTURES
from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv
from centernet_trt.evaluation.environment import environment

Array = NDArray[Any]

# (batch, height, width): sides that no stored reference has; Hourglass needs multiples of 128.
OTHER_SIZES = ((2, 160, 96), (1, 32, 224))
OTHER_SIZES_HOURGLASS = ((2, 128, 256),)
OTHER_CLASSES = 20


def run(model: ModelProto, image: Array) -> dict[str, Array]:
    """The outputs by name, in ONNX Runtime on the CPU."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(x) for x in session.run(names, {"input": image})), strict=True))


def errors(found: dict[str, Array], wanted: dict[str, Array]) -> dict[str, float]:
    """Largest difference by output, relative to the output's largest magnitude."""
    if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in wanted.items()}:
        raise ValueError("the outputs differ in names or shapes")
    return {n: float(f"{np.abs(found[n] - v).max() / np.abs(v).max():.2g}") for n, v in wanted.items()}


def both_graphs(
    name: str, weights: dict[str, Array], image: Array, wanted: dict[str, Array], classes: int
) -> dict[str, Any]:
    """Errors of the graph as exported and as RTX plans are built from it."""
    folded = lower_deform_conv(export_model(name, weights, classes=classes, fold_bn=True))
    return {
        "exported": errors(run(export_model(name, weights, classes=classes), image), wanted),
        "folded_and_lowered": errors(run(folded, image), wanted),
    }


def against_stored(name: str, folder: Path, seeded: ModuleType) -> dict[str, Any] | None:
    """Errors against the stored outputs; None where there are none."""
    path = folder / f"{name}.seed1.npz"
    if not path.is_file():
        return None
    shapes = ARCHITECTURES[name].network().parameters
    weights = {key: seeded.tensor(key, shape, 1) for key, shape in shapes.items()}
    return both_graphs(name, weights, seeded.image(1, 128), dict(np.load(path)), 80)


def against_torch(name: str) -> list[dict[str, Any]]:
    """Errors against the second implementation; nothing where PyTorch is missing."""
    if importlib.util.find_spec("torch") is None:
        return []
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.torch_networks import torch_heads  # type: ignore[import-not-found]

    weights = random_weights(ARCHITECTURES[name].network(OTHER_CLASSES).parameters, seed=3)
    rows = []
    for batch, height, width in OTHER_SIZES_HOURGLASS if name == "hourglass" else OTHER_SIZES:
        image = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
        wanted = torch_heads(name, weights, image)
        found = both_graphs(name, weights, image, wanted, OTHER_CLASSES)
        size = {"batch": batch, "height": height, "width": width, "classes": OTHER_CLASSES}
        rows.append(size | found)
    return rows


def size(name: str) -> dict[str, Any]:
    """Parameters and arithmetic of one 512 x 512 image, 80 classes, by every convention that we count."""
    shapes = ARCHITECTURES[name].network().parameters
    learnt = sum(int(np.prod(shape)) for key, shape in shapes.items() if "running_" not in key)
    counted = count_complexity(export_model(name, None), 512, 512)
    return {
        "parameters": learnt,
        "parameters_in_graph": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "output_convention": counted.output_convention,
        "mmcv_flops": counted.mmcv_flops,
    }


def main() -> None:
    """Measure every network, print a line for each, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, help="folder of the stored outputs")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("seeded", options.reference / "seeded.py")
    if spec is None or spec.loader is None:
        parser.error(f"there is no seeded.py in {options.reference}")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    rows = []
    for name in ARCHITECTURES:
        stored = against_stored(name, options.reference, seeded)
        rows.append({"arch": name} | size(name) | {"stored": stored, "other": against_torch(name)})
        print(json.dumps(rows[-1]), flush=True)
    result = {"rows": rows, "environment": environment().to_json()}
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
