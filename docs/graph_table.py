"""The two tables of docs/builder.md: graphs that are taken, and graphs that are refused with the error that a user sees.

    python docs/graph_table.py ASSETS [--write]

The cases are those of the tests (tests/support/graph_cases.py, broken_cases.py), and two real models of ASSETS, which
has mb3_centernet_coco and centerface. Every graph is guessed, built for TensorRT for RTX, compared with its source in
ONNX Runtime, and run on a picture whose right answer is known; --write puts the tables into the page.
"""

import argparse
import re
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "support"))

from broken_cases import BROKEN, error_of
from graph_cases import GRAPHS, build_case
from tiny_centernet import scene

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.guess import Guess, guess_spec
from centernet_trt.builder.loading import load_model
from centernet_trt.evaluation.tables import text_table
from centernet_trt.runtime import Detector, EngineBundle
from centernet_trt.runtime.presets import preset

# Name in the table -> the file below ASSETS, and the preset where the graph cannot tell.
REAL = {
    "COCO, MobileNetV3 (real)": ("mb3_centernet_coco/mb3_centernet.onnx", "ttf-ltrb"),
    "CenterFace (real)": ("centerface/centerface.onnx", "centerface"),
}


def guessed(guess: Guess) -> str:
    """What was understood, in one line."""
    if guess.spec is None:
        candidates = ", ".join(f"{c.name} ({c.channels})" for c in guess.candidates)
        return f"in doubt: {candidates}; built with its preset"
    heads = guess.spec.heads
    offset = f", offset {heads.offset.tensor}" if heads.offset else ""
    heatmap = f"{heads.heatmap.tensor} ({heads.heatmap.activation})"
    rule = guess.spec.input.size.rule
    return f"heatmap {heatmap}, box {heads.box.tensor} ({heads.box.encoding}){offset}; {rule} size"


def built(bundle: EngineBundle) -> str:
    """What came out."""
    manifest = bundle.manifest
    plan = f"{manifest.plans[0].bytes / 1e6:.1f} MB" if manifest.plans else "none"
    return f"{manifest.precision}, {manifest.passes[-1].nodes} nodes, plan {plan}"


def compared(bundle: EngineBundle) -> str:
    """The head that differs most from the source."""
    name, worst = max(bundle.manifest.comparison.items(), key=lambda item: item[1].max_rel)
    return f"{worst.max_rel:.1e} of the largest magnitude ({name})"


def answer(bundle: EngineBundle) -> str:
    """How far the box of the known scene is from where it must be, in pixels."""
    with Detector.load(bundle, backend="onnxruntime", mode="faithful", threads=1) as detector:
        found = detector.detect(scene(64, 96), threshold=0.5)
    if found.label.tolist() != [0]:
        return f"wrong: {len(found)} boxes"
    width, height = 4 * (8 * 128 / 255 + 1), 4 * (4 * 128 / 255 + 2)
    sides = found.xyxy[0, 2] - found.xyxy[0, 0], found.xyxy[0, 3] - found.xyxy[0, 1]
    return f"{max(abs(sides[0] - width), abs(sides[1] - height)):.3f} px"


def graph_rows(assets: Path) -> list[tuple[str, ...]]:
    """Name, guess, build, comparison and answer of every graph that is taken."""
    rows = []
    for name in GRAPHS:
        with TemporaryDirectory() as folder:
            guess, bundle = build_case(name, Path(folder))
            rows.append((name, guessed(guess), built(bundle), compared(bundle), answer(bundle)))
    for name, (file, family) in REAL.items():
        with TemporaryDirectory() as folder:
            guess = guess_spec(load_model(assets / file))
            spec = guess.spec or preset(family)
            bundle = build(assets / file, spec, Path(folder) / "b", BuildOptions(flavour="rtx"))
            rows.append((name, guessed(guess), built(bundle), compared(bundle), "-"))
    return rows


def error_rows() -> list[tuple[str, ...]]:
    """Name, message and hint of every graph that is refused."""
    rows = []
    for name in BROKEN:
        with TemporaryDirectory() as folder:
            error = error_of(name, Path(folder))
            assert error is not None, f"{name} was built"
            rows.append((name, *(_plain(text, folder) for text in (error.message, error.hint))))
    return rows


def _plain(text: str, folder: str) -> str:
    """Without the temporary folder, in one line, and no longer than a reader wants."""
    text = text.replace(f"{folder}/", "").replace(folder, "a_folder")
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 320 else f"{text[:300]} ..."


def main() -> None:
    """Make both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("assets", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # ONNX Runtime's quantiser
    columns = ("graph", "guessed", "built", "differs from its source by", "box of the known scene is off by")
    tables = {
        "graphs": text_table("", columns, graph_rows(arguments.assets)),
        "errors": text_table("", ("graph or file", "error", "hint"), error_rows()),
    }
    page = DOCS / "builder.md"
    text = page.read_text(encoding="utf-8") if arguments.write else ""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: made by docs/graph_table.py -->", f"<!-- end of {name} -->"
        if not arguments.write:
            print(table.markdown(), end="\n\n")
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table.markdown()}\n{end}{after}"
    if arguments.write:
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
