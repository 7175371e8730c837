"""The code of docs/embedding.md runs, and the web service in it answers."""

import asyncio
import importlib.util
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene

from centernet_trt.runtime import Batching, Detector
from centernet_trt.runtime.tta.augment import _NAMED

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the bundle and the photo that the page speaks of."""
    write_tiny_bundle(tmp_path / "engines" / "my_model-fp16")
    cv2.imwrite(str(tmp_path / "photo.png"), scene())
    (tmp_path / "photo.png").rename(
        tmp_path / "photo.jpg"
    )  # lossless, so that the planted object stays exact
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, place: int, names: dict[str, Any]) -> None:
    exec(compile(code, f"{PAGE.name}, block {place}", "exec"), names)  # noqa: S102 - our own page


def test_the_page_runs_from_top_to_bottom(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    threads = threading.active_count()
    for place, code in enumerate(blocks(), 1):
        if "fastapi" not in code:
            run(code, place, names)
    printed = capsys.readouterr().out
    assert "1 1\n" in printed  # both engines of the swap found the planted object
    assert "input: image float32 batch 1:1:4" in printed
    assert "heads: [('hm', 'float32', 2), ('wh', 'float32', 2), ('reg', 'float32', 2)]" in printed
    assert threading.active_count() == threads


def test_the_page_names_every_augmentation() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in _NAMED:
        assert f'| `"{name}"` |' in text


@pytest.fixture
def service() -> dict[str, Any]:
    missing = [name for name in ("fastapi", "httpx") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (extra `test`)")
    (code,) = (code for code in blocks() if "fastapi" in code)
    names: dict[str, Any] = {"__name__": "service"}
    run(code, 0, names)
    return names


@asynccontextmanager
async def serving(service: dict[str, Any]) -> AsyncIterator[tuple[Any, Any]]:
    """The application started, and a client that calls it without a socket."""
    import httpx

    app = service["app"]
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield app, client


def test_the_web_service(workplace: Path, service: dict[str, Any]) -> None:
    async def visit() -> None:
        body = (workplace / "photo.jpg").read_bytes()
        async with serving(service) as (app, client):
            answer = await client.post("/detect", content=body)
            assert answer.status_code == 200
            (row,) = answer.json()
            assert row["name"] == "blue"
            assert row["score"] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-6)
            for wrong, parameters in ((b"", {}), (b"no image", {}), (body, {"threshold": 7})):
                refused = await client.post("/detect", content=wrong, params=parameters)
                assert refused.status_code == 400
            huge = cv2.imencode(".png", np.zeros((900, 9, 3), np.uint8))[1].tobytes()
            refused = await client.post("/detect", content=huge)
            assert refused.status_code == 400
            assert "height 32:64:256" in refused.json()["detail"]
            figures = (await client.get("/stats")).json()
            assert (figures["completed"], figures["failed"], figures["queue_depth"]) == (1, 0, 0)
            assert app.state.detector.stats.batch_sizes == {1: 1}

    asyncio.run(visit())


def test_the_web_service_says_when_it_is_full(
    workplace: Path, service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()

    async def visit(small: Detector) -> None:
        async with serving(service) as (app, client):
            monkeypatch.setattr(app.state, "detector", small)
            answer = await client.post("/detect", content=(workplace / "photo.jpg").read_bytes())
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"

    with Detector.load("engines/my_model-fp16", threads=1, batching=Batching(queue=1, max_wait=0.0)) as small:
        assert small._backend is not None
        plain = small._backend.run

        def held(batches: Any) -> Any:
            entered.set()
            assert gate.wait(60)
            return plain(batches)

        monkeypatch.setattr(small._backend, "run", held)
        running = small.submit(scene())
        assert entered.wait(60)
        waiting = small.submit(scene())
        try:
            asyncio.run(visit(small))
        finally:
            gate.set()
        assert len(running.result(60)) == len(waiting.result(60)) == 1
