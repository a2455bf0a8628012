"""The service, its limits and the page; the browser's part is in test_browser.py."""

from __future__ import annotations

import gc
import importlib.util
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import GRADIO_WARNINGS, HOSTILE_PROMPTS, Outcome, Run

from gpt2kit.cli import parser, web_demo
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.serving import app, models
from gpt2kit.serving.models import Service, find_models

pytestmark = GRADIO_WARNINGS


@pytest.fixture(scope="module")
def served(run: Run) -> Service:
    found = Service(find_models([str(run.folder), str(run.work)]))
    found.load().join()
    return found


def test_models_are_found_once_each(run: Run, tmp_path: Path) -> None:
    file = models.checkpoint.find(run.folder)
    assert [model.name for model in find_models([str(run.folder), str(run.work / "lightning_logs"), str(file)])] == [
        "version_0"
    ]
    assert find_models([str(file)])[0].name == file.stem
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        find_models([str(tmp_path)])


def test_what_is_said_of_a_model(served: Service) -> None:
    model = served.model("version_0")
    assert set(model.facts) == {"size", "corpus", "bits per byte", "context"} and "train.txt" in model.facts["corpus"]
    assert 0 < float(model.facts["bits per byte"]) < 9 and 1 <= len(model.presets) <= 4
    settings = {"trainer": {"callbacks": [{"class_path": "X", "init_args": {"prompts": ["a", 3, "b"]}}, 7]}}
    assert models.presets(settings) == ["a", "b"] and models.presets(None) == models.presets({"trainer": 1}) == []


def test_a_model_that_cannot_be_loaded_is_said_and_the_others_serve(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    found = Service(find_models([str(tmp_path / "broken.ckpt"), str(run.folder)]))
    found.load().join()
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        found.model("broken")
    assert "".join(chunk.text for chunk in found.generate("version_0", "the", GenerationOptions(max_new_tokens=5)))
    with pytest.raises(UserError, match="Choose one of"):
        found.model("nobody")


def test_limits_hold_for_everyone(served: Service) -> None:
    options = GenerationOptions(temperature=3, num_samples=5, max_new_tokens=501)
    assert len(served.problems("a" * 4001, options)) == 4 and not served.problems("a" * 4000, GenerationOptions())
    with pytest.raises(UserError, match="4,001 characters"):
        next(served.generate("version_0", "a" * 4001, GenerationOptions()))


def test_a_port_that_is_taken(run: Run, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def main(args: list[str]) -> None:
        parser.run(web_demo.serve, args)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = call(main, "--ckpt_path", run.folder, "--port", port)
    assert code == 5 and f"--port {port}:" in err and "Use --port" in err
    code, _, err = call(main, "--ckpt_path", run.folder, "--port", 0, "--auth", "me", "--max_concurrency", 0)
    assert code == 2 and err.count(";") == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = call(main, "--ckpt_path", run.folder)
    assert code == 2 and "pip install" in err


def client(served: Service, auth: tuple[str, str] | None = None, base: str = "http://127.0.0.1") -> Any:
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    testclient = pytest.importorskip("starlette.testclient")
    return testclient.TestClient(app.app(served, "127.0.0.1", auth, 2), base_url=base)


@pytest.fixture(scope="module")
def http(served: Service) -> Iterator[Any]:
    yield client(served)
    gc.collect()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("x" * 4001, 5, 1.0, 0, 1.0, 1.0, 1, 1), "4,001 characters"),
        (("the", 501, 1.0, 0, 1.0, 1.0, 1, 1), "501 tokens"),
        (("the", "nine", 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", math.inf, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", math.nan, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", None, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", 5, -1, 0, 1.0, 1.0, 1, 1), "must not be negative"),
        (("the", 5, math.nan, 0, 1.0, 1.0, 1, 1), "must not be negative"),
        (("the", 5, 1.0, 0, 1.0, 1.0, 99, 1), "99 texts"),
        (("the", 5, 1.0, 0, 1.0, 1.0, 1, math.inf), "a setting is not a number"),
    ],
)
def test_settings_beyond_the_page_are_refused(served: Service, settings: tuple[Any, ...], message: str) -> None:
    """A request can hold what the page's sliders and boxes do not offer."""
    from gpt2kit.serving import page

    with pytest.raises(UserError, match=message):
        list(page.written(served, "version_0", *settings))


def test_a_model_that_is_not_served_is_refused(served: Service) -> None:
    from gpt2kit.serving import page

    with pytest.raises(UserError, match="no model"):
        list(page.written(served, "../../etc/passwd", "the", 5, 1.0, 0, 1.0, 1.0, 1, 1))


@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS)
def test_hostile_prompts_are_text(served: Service, prompt: str) -> None:
    from gpt2kit.serving import page

    shown = list(page.written(served, "version_0", prompt, 5, 1.0, 0, 1.0, 1.0, 1, 1))[-1]
    assert shown[0].startswith(prompt) and "<img" not in shown[1] and "<script" not in shown[1]


def test_tokens_are_escaped(served: Service) -> None:
    from gpt2kit.generation.decoder import SampledToken, TokenSequence
    from gpt2kit.serving import page

    writer = served.model("version_0").generator
    assert writer is not None
    ids = writer.encode("<b>&\"'\n\x07\u202e🙂")
    shown = page.tokens_html(writer, [SampledToken(TokenSequence([]), token, 0.5, ((token, 0.5),)) for token in ids])
    assert (
        "<b>" not in shown and "&lt;" in shown and "U+0007" in shown and "\x07" not in shown and "\u202e" not in shown
    )


def test_the_page_and_what_is_closed(http: Any) -> None:
    answer = http.get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert "<title>" in answer.text or "gradio" in answer.text
    for path in (
        "/docs",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://example.org",
        "/file=/etc/passwd",
    ):
        assert http.get(path).status_code == 404, path
    assert http.get("/assets/../../../../etc/passwd").status_code == 404
    assert http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert http.post("/gradio_api/queue/join", content=b" " * (1 << 20)).status_code == 413
    assert http.post("/gradio_api/queue/join", content=(b" " for _ in range(9))).status_code == 413
    assert http.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_password(served: Service) -> None:
    http = client(served, ("me", "secret"))
    assert http.get("/config").status_code == 401 and "version_0" not in http.get("/").text
    assert http.post("/gradio_api/queue/join", json={"data": []}).status_code == 401
    assert http.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert http.get("/config").status_code == 401
    assert http.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert http.get("/config").status_code == 200 and "version_0" in http.get("/").text
