"""The README's commands and code are what the product understands."""

import re
import shlex
from pathlib import Path

import cv2
import pytest
from typer.main import get_command

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.recipe import read_recipe
from centernet_trt.calib_data import sample_images
from centernet_trt.cli.app import app
from centernet_trt.runtime.presets import spec_from_mapping

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    root = get_command(app)
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("centernet-trt ")]
    assert commands or page.name != "README.md"
    for _, name, *words in commands:
        context = root.make_context("centernet-trt", [name, *words], resilient_parsing=True)
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        assert command is not None, name
        command.make_context(name, words)  # a usage error names what the page has wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_spec_is_valid() -> None:
    import tomllib

    (text,) = blocks(ROOT / "README.md", "toml")
    assert spec_from_mapping(tomllib.loads(text)).class_names == ("cell",)


@pytest.mark.shared
def test_the_readme_code_runs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shared / "assets" / "centerface" / "centerface.onnx"
    build(
        model, read_recipe("centerface").spec, Path("engines/centerface-fp16"), BuildOptions(flavour="none")
    )
    astronaut = next(image.path for image in sample_images() if image.file == "astronaut.jpg")
    picture = cv2.imread(str(astronaut))
    assert picture is not None
    cv2.imwrite("photo.jpg", picture)
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own README
    printed = capsys.readouterr().out
    assert printed.startswith("face 0.9")
    assert "network ran in ONNX Runtime" in printed
