"""The measured parts of docs/models.md are what the committed JSON says, and what is typed there is true."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from centernet_trt.builder.architectures.registry import ARCHITECTURES
from centernet_trt.builder.recipe import read_recipe, recipe_names
from centernet_trt.errors import InputError
from centernet_trt.evaluation import build_table as builds
from centernet_trt.evaluation import models_page
from centernet_trt.evaluation.build_table import build_row, build_table, merged
from centernet_trt.evaluation.models_page import filled

ROOT = Path(__file__).parents[2]
PAGE = ROOT / models_page.PAGE
RESULTS = ROOT / models_page.RESULTS


def results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_the_page_equals_what_the_command_generates() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run: python -m centernet_trt.evaluation.models_page"


def test_every_network_is_measured_and_every_plan_was_built() -> None:
    assert tuple(ARCHITECTURES) == builds.ARCHITECTURES
    measured = {(row["arch"], row["precision"]): row for row in results("builds.json")["rows"]}
    assert set(measured) == {(arch, kind) for arch in builds.ARCHITECTURES for kind in builds.PRECISIONS}
    assert not [row for row in measured.values() if "error" in row]
    verified = results("seed-models.json")["rows"]
    assert [row["arch"] for row in verified] == list(ARCHITECTURES)
    assert all(row["other"] for row in verified)
    assert sum(row["stored"] is not None for row in verified) == 8


def test_the_errors_on_the_page_are_inside_the_tolerance() -> None:
    for row in results("seed-models.json")["rows"]:
        for one in (row["stored"], *row["other"]):
            for graph in () if one is None else ("exported", "folded_and_lowered"):
                assert max(one[graph].values()) < 1e-5, row["arch"]


def test_the_first_table_is_true() -> None:
    """Parameters and multiply-adds are the measured ones; AP and AP50 are those of the recipes."""
    measured = {row["arch"]: row for row in results("seed-models.json")["rows"]}
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) M \| ([\d.]+) G \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == list(ARCHITECTURES)
    for arch, parameters, multiply_adds, published in rows:
        assert parameters == f"{measured[arch]['parameters'] / 1e6:.3f}"
        assert multiply_adds == f"{measured[arch]['multiply_adds'] / 1e9:.2f}"
        known = {one.metric: f"{100 * one.value:.1f}" for one in read_recipe(arch).published}
        assert published.split(" ")[0] == known.get("mAP", "-")
        assert (f"AP50 {known['mAP50']}" in published) if "mAP50" in known else "AP50" not in published


def test_every_architecture_has_a_recipe_with_its_preset() -> None:
    assert set(ARCHITECTURES) <= set(recipe_names())
    for name, arch in ARCHITECTURES.items():
        recipe = read_recipe(name)
        assert recipe.model.arch == name
        network = arch.network()
        assert {head.name for head in network.outputs} == set(recipe.spec.heads.tensors)
        assert recipe.spec.input.size.multiple == arch.multiple  # type: ignore[union-attr]


# The table of builds ---------------------------------------------------------------------------------------------------


def row(arch: str, precision: str, seconds: float, **more: Any) -> dict[str, Any]:
    built = {"plan_seconds": 1.25, "plan_mb": 30.04, "tensorrt": "rtx 1"}
    base = {"arch": arch, "precision": precision, "seconds": seconds, "cpu_seconds": 3.0, "peak_gib": 1.5}
    return base | {"load_before": 2.5} | built | more


def test_rows_measured_again_replace_the_old_ones_in_the_order_of_the_table() -> None:
    old = [row("dla_34", "int8", 9), row("res_18", "fp16", 8), row("res_18", "fp32", 7)]
    new = [row("res_18", "fp16", 1), row("hourglass", "fp32", 2)]
    found = [(one["arch"], one["precision"], one["seconds"]) for one in merged(old, new)]
    assert found == [
        ("res_18", "fp32", 7),
        ("res_18", "fp16", 1),
        ("dla_34", "int8", 9),
        ("hourglass", "fp32", 2),
    ]


def test_the_table_shows_failures_and_how_it_was_measured() -> None:
    failed = {"arch": "dla_34", "precision": "fp16", "seconds": 2.0, "cpu_seconds": 1.0, "peak_gib": 0.5}
    failed |= {"load_before": 0.5, "error": "no"}
    rows = [row("res_18", "fp16", 12.4), row("res_18", "int8", 20, images=7, int8_share=0.9961), failed]
    text = build_table({"rows": rows, "environment": {"cpu": "a CPU", "cores": 3}})
    lines = text.splitlines()
    assert "| `res_18` | fp16 | 12 s | 3 s | 1.2 s | 30.0 MB | 1.5 GiB |" in lines
    assert "| `dla_34` | fp16 | failed | | | | 0.5 GiB |" in lines
    for words in ("rtx 1; a CPU, 3 cores", "0.5 to 2.5 processes", "7 pictures", "99.6%", "not run"):
        assert words in text


def test_a_process_is_measured() -> None:
    block = "block = bytearray(200 << 20); block[::4096] = b'x' * len(block[::4096])"
    # In a process of its own, as the command is: a child's peak begins at what its parent had.
    code = (
        "import sys; from centernet_trt.evaluation.build_table import timed_process as t; "
        "a, b = (t([sys.executable, '-c', c]) for c in (sys.argv[1], 'import sys; sys.exit(\"no\")')); "
        "print(a.peak_gib - b.peak_gib, a.code, b.code, repr(b.log), b.cpu_seconds > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, block], capture_output=True, text=True, check=True)
    more, *rest = done.stdout.split()
    assert 0.15 < float(more) < 0.25
    assert rest == ["0", "1", repr("no\n"), "True"]


def test_a_build_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    found = build_row("res_18", "fp16", tmp_path / "absent.onnx", tmp_path, [])
    assert "absent.onnx" in found["error"]
    assert str(tmp_path) not in found["error"]
    assert "plan_mb" not in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("<!-- builds: end -->\n", ""), "builds: end"),
        (("<!-- verified: measured -->\n", "<!-- verified: measured -->\n" * 2), "verified: measured"),
    ],
)
def test_a_page_without_its_comments_is_refused(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        filled(PAGE.read_text(encoding="utf-8").replace(*change), RESULTS)


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seed-models\.json cannot be read"):
        filled(PAGE.read_text(encoding="utf-8"), tmp_path)
