"""The HTML page and the plots of a report: every figure is the JSON's, and nothing is fetched from elsewhere."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.bench_reports import MEDIANS, made_up_entry, made_up_report

from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.bench import html as plotting
from centernet_trt.evaluation.bench.html import html_report, whole_figure, write_png
from centernet_trt.evaluation.bench.report import BenchReport


class Page(HTMLParser):
    """Figures by their key: (shown text, exact value); the embedded report; addresses that are used."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: dict[str, tuple[str, float]] = {}
        self.report, self.addresses = "", []  # type: ignore[var-annotated]
        self._cell: tuple[str, float] | None = None
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "data-key" in found:
            self._cell = (str(found["data-key"]), float(str(found["data-value"])))
        self._script = found.get("id") == "report"
        self.addresses += [value for name, value in found.items() if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._script:
            self.report += data
        elif self._cell is not None:
            self.figures[self._cell[0]] = (data, self._cell[1])
            self._cell = None


def percentiles(data: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every latency figure, computed from the JSON's samples alone."""
    names = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "maximum": 100}
    for entry in data["entries"]:
        series = {"pipeline": entry["pipeline"], **entry["alone"]}
        for name, samples in series.items():
            for stage in samples["windows"][0]:
                values = [v for window in samples["windows"] for v in window[stage]]
                for label, share in names.items():
                    yield f"{entry['name']}/{name}/{stage}/{label}", float(np.percentile(values, share))


def check_figures(page: Page, report: BenchReport) -> None:
    data = json.loads(page.report)
    assert data == report.to_json()
    expected = dict(percentiles(data))
    assert len(expected) == len(report.entries) * 5 * (len(MEDIANS) + 2)
    for key, value in expected.items():
        text, exact = page.figures[key]
        assert exact == pytest.approx(value, rel=1e-12), key
        assert text == f"{value * 1e3:.2f}", key


@pytest.fixture
def report() -> BenchReport:
    entries = [made_up_entry("one", 1), made_up_entry("two </script> & <b>", 2, 1.5, drift=0.05)]
    return made_up_report(entries, notes=["a note with <tags>"])


def test_every_figure_of_the_page_is_the_json_s(report: BenchReport) -> None:
    text = html_report(report)
    page = Page(text)
    check_figures(page, report)
    assert "unstable" in text
    assert "a note with &lt;tags&gt;" in text
    assert "<b>" not in text[: text.index('id="report"')]


def test_the_page_needs_nothing_else(report: BenchReport) -> None:
    page = Page(html_report(report))
    assert len(page.addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert html_report(report) == html_report(report)


def test_the_png_shows_something(report: BenchReport, tmp_path: Path) -> None:
    write_png(whole_figure(report), tmp_path / "new" / "r.png")
    image = cv2.imread(str(tmp_path / "new" / "r.png"))
    assert image is not None
    assert image.shape[1] == 13 * 120
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_png(whole_figure(report), tmp_path / "file" / "r.png")


def test_without_throughput_there_are_three_plots() -> None:
    report = made_up_report([made_up_entry("one", 1, throughput=[])])
    assert len(Page(html_report(report)).addresses) == 3
    whole_figure(report)


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError) as caught:
        plotting.new_figure(1, 1)
    assert "centernet-trt[plot]" in caught.value.hint


@pytest.mark.slow
def test_a_browser_shows_the_figures(report: BenchReport, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path / "r.html"
    path.write_text(html_report(report), encoding="utf-8")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    words += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--window-size=1300,2600"]
    done = subprocess.run(
        [*words, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    check_figures(Page(done.stdout), report)
    screenshot = tmp_path / "r.png"
    subprocess.run(
        [*words, f"--screenshot={screenshot}", path.as_uri()], capture_output=True, timeout=120, check=True
    )
    shown = cv2.imread(str(screenshot))
    assert shown is not None
    # The plots were drawn: the colour of the first bundle is on the screen.
    first = tuple(int(plotting.COLOURS[0][place : place + 2], 16) for place in (5, 3, 1))
    assert (shown == first).all(axis=2).sum() > 1000
    assert re.search(r"Benchmark of", done.stdout)
