"""Measures what docs/models.md says of deformable convolution in standard operators: its error, memory and time.

    python docs/deformable_cost.py --json evaluation/results/deformable.json

Standard is ONNX Runtime's own DeformConv, lowered is what RTX plans are built from. A network runs in a process of its
own, on one thread: processor time, which other work on the machine changes little, and the peak of resident memory above
what the process had before it opened the graph; one image of 512 x 512, random weights. Needs Linux (/proc).
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from centernet_trt.builder.architectures.registry import ARCHITECTURES
from centernet_trt.builder.deformable_lowering import column_bytes, lower_deform_conv
from centernet_trt.builder.export import export_model, save_model
from centernet_trt.builder.inference import refresh_shapes
from centernet_trt.builder.passes.shapes import set_input_size
from centernet_trt.evaluation.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from deform_layers import data, error, run, standard

LAYERS = 1500
NETWORKS = ("resdcn_18", "resdcn_101", "dla_34", "mmdet_r18_dcnv2")
ROUNDS = 7
SIDE = 512


def random_layers(count: int) -> float:
    """The largest relative error over random layers: kernels, strides, pads, dilations, groups, with and without mask."""
    rng = random.Random(0)
    worst = 0.0
    for seed in range(count):
        shape = {
            "strides": (rng.randint(1, 2), rng.randint(1, 3)),
            "pads": tuple(rng.randint(0, 3) for _ in range(4)),
            "dilations": (rng.randint(1, 2), rng.randint(1, 2)),
            "group": rng.choice([1, 2]),
            "offset_group": rng.choice([1, 2, 4]),
        }
        kernel = rng.choice([(3, 3), (1, 1), (3, 5), (2, 2)])
        extra = {"mask": rng.random() < 0.5, "bias": rng.random() < 0.5, "seed": seed}
        feeds, constants = data(size=(13, 12), kernel=kernel, **shape, **extra)  # type: ignore[arg-type]
        source = standard(feeds, constants, kernel_shape=kernel, **shape)
        worst = max(worst, error(run(lower_deform_conv(source), feeds), run(source, feeds)))
    return float(f"{worst:.2g}")


def one_large_layer() -> float:
    """64 channels on 128 x 128 cells."""
    feeds, constants = data(batch=1, channels=64, out=64, size=(128, 128))
    source = standard(feeds, constants, pads=[1] * 4)
    return float(f"{error(run(lower_deform_conv(source), feeds), run(source, feeds)):.2g}")


def samples_bytes(name: str) -> list[int]:
    """What the lowered form of each deformable convolution keeps in memory, for one image, float32."""
    model = set_input_size(export_model(name, None), "input", SIDE, SIDE)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    refresh_shapes(model)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    found = []
    for node in model.graph.node:
        if node.op_type == "DeformConv":
            (_, channels, _, _), (_, _, height, width) = shapes[node.input[0]], shapes[node.output[0]]
            found.append(column_bytes(channels, (3, 3), height, width))
    return found


def peak_bytes() -> int:
    """The peak of this process's resident memory. Not ru_maxrss: that begins at the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def child(path: Path, outputs: Path) -> None:
    """Run a saved graph: median processor seconds and the peak memory of this process; keeps the outputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    before = peak_bytes()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        heads = session.run(None, {"input": image})
        times.append(time.process_time() - start)
    np.savez(outputs, *heads)
    seconds = statistics.median(times[1:])  # the first run allocates
    print(json.dumps({"seconds": round(seconds, 3), "peak_bytes": peak_bytes() - before}))


def network(name: str, folder: Path) -> dict[str, Any]:
    """Both forms of a network with random weights, in turn."""
    model = export_model(name, None)
    row: dict[str, Any] = {"arch": name, "samples_bytes": samples_bytes(name)}
    heads = []
    for kind, made in (("standard", model), ("lowered", lower_deform_conv(model))):
        path = folder / f"{name}-{kind}.onnx"
        save_model(made, path)
        command = [sys.executable, __file__, "--child", str(path), str(path.with_suffix(".npz"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row[kind] = json.loads(done.stdout)
        heads.append(np.load(path.with_suffix(".npz")))
    worst = max(error(heads[1][key], heads[0][key]) for key in heads[0].files)
    row["error"] = float(f"{worst:.2g}")
    return row


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    result: dict[str, Any] = {"random_layers": {"count": LAYERS, "error": random_layers(LAYERS)}}
    result["large_layer"] = {"error": one_large_layer(), "samples_bytes": column_bytes(64, (3, 3), 128, 128)}
    result["networks"] = []
    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        for name in (name for name in ARCHITECTURES if name in NETWORKS):
            result["networks"].append(network(name, Path(scratch)))
            print(json.dumps(result["networks"][-1]), flush=True)
    result["environment"] = environment().to_json()
    print(json.dumps({key: result[key] for key in ("random_layers", "large_layer")}))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
