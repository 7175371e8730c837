"""The table of docs/int8.md: AP, its drop with a 95 % interval, agreement and share of int8, for each way to int8.

    python benchmarks/int8_table.py ASSETS BUNDLE [--limit N] [--rows WORDS]

ASSETS has mb3_centernet_coco, coco128_train2017 and coco_val2017_dev; BUNDLE is the int8 bundle that
`centernet-trt build` made of that model with the coco128 images. Nothing is chosen here: the thresholds are those of
the bundle's calibration.json. Every graph runs in faithful mode.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from centernet_trt.builder.calibration.images import find_images
from centernet_trt.builder.calibration.record import read_record
from centernet_trt.builder.calibration.statistics import batches, collect_histograms, collect_statistics
from centernet_trt.builder.calibration.thresholds import METHODS, all_thresholds
from centernet_trt.builder.graph.io import keep_heads, make_dynamic, set_input_size
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.int8.equalise import replay
from centernet_trt.builder.int8.layers import Rules, share_in_int8, survey
from centernet_trt.builder.int8.placement import place, raise_opset
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import constants_to_initializers, fold_constants, remove_identities
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.evaluation.accuracy.agreement import agreement
from centernet_trt.evaluation.accuracy.bootstrap import paired_drop
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.onnxruntime import open_session
from centernet_trt.runtime.presets import read_spec
from centernet_trt.runtime.spec import FixedSize, ModelSpec

NAIVE = Rules(last_convs=True, smallest_share=0.0)


def fp32_graph(path: Path, spec: ModelSpec) -> ModelProto:
    """The graph that a build calibrates, but for equalisation."""
    name, size = spec.input.name, spec.input.size
    model = load_model(path)
    name = name or model.graph.input[0].name
    if isinstance(size, FixedSize):
        model = set_input_size(model, name, size.height, size.width)
    model = make_dynamic(keep_heads(model, spec.heads.tensors), name, size=not isinstance(size, FixedSize))
    model = remove_identities(fold_batch_norm(fold_constants(constants_to_initializers(model))))
    refresh_shapes(model)
    return model


def source(assets: Path, spec: ModelSpec) -> ModelProto:
    """The fp32 graph that a build calibrates, but for equalisation."""
    return raise_opset(fp32_graph(assets / "mb3_centernet_coco" / "mb3_centernet.onnx", spec))


def variants(assets: Path, bundle: Path, spec: ModelSpec) -> dict[str, ModelProto]:
    """Typed graphs by name."""
    plain = source(assets, spec)
    record = read_record(bundle / "calibration.json")
    equalised = replay(plain, {n: t.exponents for n, t in record.tensors.items() if t.exponents})
    means = {name: tensor.means for name, tensor in record.tensors.items()}
    rows = json.loads((bundle / "int8.json").read_text())["layers"]
    chosen = {row["layer"] for row in rows if row["precision"] == "int8"}
    found = {"fp32": plain, "fp16": typed(plain), "int8, default recipe": onnx.load(bundle / "model.onnx")}
    for method in METHODS:
        values = {name: tensor.thresholds[method] for name, tensor in record.tensors.items()}
        graph = place(equalised, values, chosen, means=means)
        found[f"the same layers, all by {method}"] = typed(graph)
    # The usual way: every convolution, heads too, no equalisation, no correction of biases.
    images = find_images(assets / "coco128_train2017" / "images").images[::4]
    layers = survey(plain, 512, 512, NAIVE)
    tensors = list(dict.fromkeys(layer.input for layer in layers.layers))
    ranges = collect_statistics(plain, spec.input, images, tensors)
    amax = {name: float(one.amax.max()) for name, one in ranges.items()}
    thresholds = {
        name: all_thresholds(one) for name, one in collect_histograms(plain, spec.input, images, amax).items()
    }
    names = {layer.name for layer in layers.layers}
    for method in METHODS:
        values = {name: by[method] for name, by in thresholds.items()}
        found[f"every convolution, {method}"] = typed(place(plain, values, names))
    # All that the default rules allow, equalised and corrected, without a search.
    every = {layer.name for unit in survey(equalised, 512, 512).units for layer in unit.layers}
    values = {name: tensor.thresholds["percentile"] for name, tensor in record.tensors.items()}
    found["every allowed layer, percentile"] = typed(place(equalised, values, every, means=means))
    values = {name: by["percentile"] for name, by in thresholds.items()}
    found["the same, not equalised, biases as they were"] = typed(place(plain, values, every))
    return found


def typed(model: ModelProto) -> ModelProto:
    """The graph typed fp16 around its Q/DQ."""
    made = to_fp16(model, scales="fp16").model
    refresh_shapes(made)
    return made


def detect(model: ModelProto, spec: ModelSpec, folder: Path, limit: int | None) -> dict[str, Detections]:
    """Detections by file name, in faithful mode."""
    session = open_session(model.SerializeToString(), "faithful", 1)
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    names = [value.name for value in model.graph.output]
    found = {}
    for batch in batches(find_images(folder).images[:limit], spec.input):
        heads = session.run(names, {"images": batch.tensor.astype(dtype)})
        (found[batch.names[0]],) = decode(
            dict(zip(names, heads, strict=True)), spec, batch.placements, threshold=0.0
        )
    return found


def main() -> None:
    """Print one row of the table after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("assets", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--rows", default="", help="only the rows whose names have this in them, and fp32")
    arguments = parser.parse_args()
    spec = read_spec("ttf-ltrb")
    folder = arguments.assets / "coco_val2017_dev"
    truth = CocoGroundTruth(folder / "instances_val2017_dev.json", folder / "images")
    ids = {image.path.name: image.id for image in truth.images}
    reference: dict[str, Detections] = {}
    print("| graph | AP | drop | 95 % | F1 | int8 |\n|---|---|---|---|---|---|", flush=True)
    for name, model in variants(arguments.assets, arguments.bundle, spec).items():
        if name != "fp32" and arguments.rows not in name:
            continue
        found = detect(model, spec, folder / "images", arguments.limit)
        reference = reference or found
        rows = [
            [row for file, one in d.items() for row in one.to_coco(ids[file])] for d in (reference, found)
        ]
        drop = paired_drop(truth, rows[0], rows[1])
        same = agreement(list(reference.values()), list(found.values()), threshold=spec.threshold)
        share = share_in_int8(model, 512, 512)
        print(
            f"| {name} | {drop.candidate_ap:.4f} | {drop.drop:+.4f} | {drop.low:+.4f} .. {drop.high:+.4f} | "
            f"{same.f1:.4f} | {share:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
