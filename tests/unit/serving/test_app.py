"""The models, the page and the application of the web demo. tests/system/test_browser.py uses a real browser."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GRADIO_WARNINGS, Outcome, Run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import parser, web_demo
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.generation.decoder import SampledToken, TokenSequence
from gpt2kit.generation.examples import find_examples
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.serving import app, models, page
from gpt2kit.serving.models import Service, find_models

pytestmark = GRADIO_WARNINGS
# What the page sends when its button Generate is clicked.
EVENT = {
    "data": ["version_0", "the", 5, 0.8, 0, 0.95, 1, 1, 1],
    "event_data": None,
    "fn_index": 0,
    "trigger_id": None,
    "session_hash": "s",
}


@pytest.fixture(scope="module")
def service(run: Run) -> Service:
    service = Service(find_models([str(run.folder), str(run.work)]))
    service.load().join()
    return service


def test_each_model_is_found_once(run: Run, tmp_path: Path) -> None:
    file = paths.find(run.folder)
    names = [str(run.folder), str(run.work / "lightning_logs"), str(file)]
    assert [model.name for model in find_models(names)] == ["version_0"]
    assert find_models([str(file)])[0].name == file.stem
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        find_models([str(tmp_path)])


def test_each_model_has_a_name_of_its_own(run: Run, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a (3)", "x/a", "y/a")]
    for folder in folders:
        shutil.copytree(run.folder, folder)
    assert [model.name for model in find_models([*map(str, folders)])] == ["a (3)", "a", "a (2)"]


def test_a_model_is_described(service: Service) -> None:
    model = service.models["version_0"]
    assert set(model.facts) == {"parameters", "training text", "validation bits per byte", "context length"}
    assert "train.txt" in model.facts["training text"] and 0 < float(model.facts["validation bits per byte"]) < 9
    assert 1 <= len(model.examples) <= 4


def test_names_and_texts_that_are_no_unicode_do_not_stop_the_page(run: Run, tmp_path: Path) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"]["settings"]["data"]["train_files"] = "a/\ud800.txt"
    callback = {"class_path": "TextSamples", "init_args": {"prompts": ["\ud800", "x" * 5000]}}
    raw["gpt2kit"]["settings"]["trainer"]["callbacks"] = [callback]
    torch.save(raw, tmp_path / "a.ckpt")
    (tmp_path / "\udcff.ckpt").touch()
    model, unreadable = find_models([str(tmp_path / name) for name in ("a.ckpt", "\udcff.ckpt")])
    Service([model, unreadable]).load().join()
    assert model.examples == ["?"] and "?.txt" in model.facts["training text"]
    assert unreadable.name == "?" and "?.ckpt: not a readable file" in unreadable.failure


@pytest.mark.parametrize("callbacks", [None, 1, [7], [{"init_args": 1}]])
def test_examples_are_the_prompts_of_callbacks(callbacks: object) -> None:
    samples = {"class_path": "X", "init_args": {"prompts": ["a", 3, "b"]}}
    assert find_examples({"settings": {"trainer": {"callbacks": [samples, 7]}}}, 10) == ["a", "b"]
    assert find_examples({"settings": {"trainer": {"callbacks": callbacks}}}, 10) == []


def test_examples_may_come_from_a_file(run: Run, inside: Path, call: Callable[..., Outcome]) -> None:
    (model,) = find_models([str(run.folder)])
    Service([model], examples=["the", "a fox"]).load().join()
    assert model.examples == ["the", "a fox"]
    (inside / "short.txt").write_text("the\na fox\n")
    assert web_demo.read_examples(Path("short.txt"), False, 10) == ["the", "a fox"]
    assert web_demo.read_examples(Path("short.txt"), True, 10) == ["the\n", "a fox\n"]
    outcome = call(lambda argv: parser.run(web_demo.serve, argv), run.folder, "--newline_after_prompt")
    assert outcome[0] == 2 and "--newline_after_prompt: needs --prompts_file" in outcome[2]
    (inside / "long.txt").write_text("the\n" + "x" * 4001)
    for name, code, message in (
        ("long.txt", 2, "a prompt has more than 4,000 characters"),
        ("none", 3, "no such file"),
    ):
        options = (run.folder, "--prompts_file", name)
        outcome = call(lambda argv: parser.run(web_demo.serve, argv), *options)
        assert outcome[0] == code and message in outcome[2]


def test_a_model_that_cannot_be_loaded_does_not_affect_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    service = Service(find_models([str(tmp_path / "broken.ckpt"), str(run.folder)]))
    service.load().join()
    with pytest.raises(CheckpointError, match="not a readable file of tensors"):
        service.generator("broken")
    chunks = service.generator("version_0").generate(["the"], GenerationOptions(max_new_tokens=5))
    assert "".join(chunk.text for chunk in chunks)
    with pytest.raises(UserError, match="Choose one of"):
        service.generator("unknown")


def test_all_limits_of_a_request_are_checked() -> None:
    options = GenerationOptions(temperature=3, num_samples=5, max_new_tokens=501)
    assert len(models.request_problems("a" * 4001, options)) == 4
    assert not models.request_problems("a" * 4000, GenerationOptions())


def main(args: list[str]) -> None:
    parser.run(web_demo.serve, args)


def test_a_port_in_use_is_reported(run: Run, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = call(main, "--ckpt_path", run.folder, "--port", port)
    assert code == 5 and f"--port {port}:" in err and "Use --port" in err


def test_invalid_options_and_missing_packages_are_reported(
    run: Run, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(main, "--ckpt_path", run.folder, "--port", 0, "--auth", "me", "--max_concurrency", 0)
    assert code == 2 and err.count(";") == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = call(main, "--ckpt_path", run.folder)
    assert code == 2 and "pip install" in err


def client(service: Service, auth: tuple[str, str] | None = None, allow_frame: bool = False) -> Any:
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    testclient = pytest.importorskip("starlette.testclient")
    return testclient.TestClient(app.app(service, "127.0.0.1", auth, 2, allow_frame), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[Any]:
    yield client(service)
    gc.collect()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("x" * 4001, 5, 1.0, 0, 1.0, 1.0, 1, 1), "characters in the prompt: 4,001"),
        (("the", 501, 1.0, 0, 1.0, 1.0, 1, 1), "max new tokens: 501 is more"),
        (("the", "nine", 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", math.inf, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", math.nan, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", None, 1.0, 0, 1.0, 1.0, 1, 1), "a setting is not a number"),
        (("the", 5, -1, 0, 1.0, 1.0, 1, 1), "must be 0"),
        (("the", 5, math.nan, 0, 1.0, 1.0, 1, 1), "must be 0"),
        (("the", 5, 1.0, 0, 1.0, 1.0, 99, 1), "number of samples: 99 is more"),
        (("the", 5, 1.0, 0, 1.0, 1.0, 1, math.inf), "a setting is not a number"),
    ],
)
def test_settings_that_the_page_does_not_offer_are_refused(
    service: Service, settings: tuple[Any, ...], message: str
) -> None:
    """A request may contain values that the controls of the page do not allow."""
    with pytest.raises(UserError, match=message):
        list(page.generate_content(service, "version_0", *settings))


def test_an_unknown_model_is_refused(service: Service) -> None:
    with pytest.raises(UserError, match="no model"):
        list(page.generate_content(service, "../../etc/passwd", "the", 5, 1.0, 0, 1.0, 1.0, 1, 1))


def test_tokens_that_replace_the_end_of_a_prompt_are_shown_but_not_counted(service: Service) -> None:
    *_, (text, tokens, status) = page.generate_content(service, "version_0", "the quick ", 5, 0, 0, 1.0, 1.0, 1, 1)
    assert text.startswith("the quick brown") and status.startswith("5 tokens, ")
    assert tokens.count('class="t"') == 6


def test_tokens_are_escaped(service: Service) -> None:
    generator = service.generator("version_0")
    ids = generator.encode("<b>&\"'\n\x07\u202e🙂")
    sampled = [SampledToken(TokenSequence([]), token, 0.5, ((token, 0.5),)) for token in ids]
    content = page.tokens_html(generator, sampled)
    assert "<b>" not in content and "&lt;" in content and "U+0007" in content
    assert "\x07" not in content and "\u202e" not in content


def test_only_the_page_is_served(http: Any) -> None:
    response = http.get("/")
    assert response.status_code == 200 and "default-src 'self'" in response.headers["content-security-policy"]
    assert "<title>" in response.text or "gradio" in response.text
    for path in (
        "/docs",
        "/config",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/queue/status",
        "/gradio_api/queue/data?session_hash=unknown",
        "//gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://example.org",
        "/file=/etc/passwd",
    ):
        assert http.get(path).status_code == 404, path
    assert http.get("/assets/../../../../etc/passwd").status_code == 404
    assert http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert http.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_other_sites_may_show_the_page_in_a_frame_if_allowed(service: Service, http: Any) -> None:
    assert "frame-ancestors 'self'" in http.get("/").headers["content-security-policy"]
    policy = client(service, allow_frame=True).get("/").headers["content-security-policy"]
    assert "frame-ancestors *" in policy and "default-src 'self'" in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "https://demo.example", "sec-fetch-site": "same-origin"}, 200),  # behind a proxy
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:99"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_other_sites_cannot_send_requests(http: Any, headers: dict[str, str], status: int) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/reset"):
        body = json.dumps({**EVENT, "event_id": "e"})
        response = http.post(path, content=body, headers={**headers, "content-type": "text/plain"})
        assert response.status_code == status
    assert http.get("/", headers=headers).status_code == 200  # a link to the page


@pytest.mark.parametrize(
    "change",
    [
        {"data": []},
        {"data": [""] * 10},
        {"data": [{}] * 9},
        {"data": "nine chars"[:9]},
        {"fn_index": 99},
        {"fn_index": True},
        {"fn_index": "0"},
        {"session_hash": None},
        {"session_hash": "a<gradio-sep>b"},
        {"session_hash": "s" * 65},
        {"trigger_id": []},
    ],
)
def test_events_that_the_page_does_not_send_are_refused(
    http: Any, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert http.post("/gradio_api/queue/join", json={**EVENT, **change}).status_code == 400
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000, b'{"fn_index": ' + b"9" * 9000])
def test_bodies_that_are_not_events_are_refused(http: Any, body: bytes) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"):
        assert http.post(path, content=body).status_code == 400


@pytest.mark.parametrize("event_id", ["-Infinity", "null", '"\\ud800"', '"a/b"', "[]"])
def test_ids_that_the_page_does_not_send_are_refused(http: Any, event_id: str) -> None:
    body = f'{{"session_hash": "s", "fn_index": 0, "event_id": {event_id}}}'
    for path in ("/gradio_api/cancel", "/gradio_api/reset"):
        assert http.post(path, content=body).status_code == 400


def test_large_and_chunked_bodies_are_refused(http: Any) -> None:
    assert http.post("/gradio_api/queue/join", content=b" " * (1 << 20)).status_code == 413
    assert http.post("/gradio_api/queue/join", content=(b" " for _ in range(9))).status_code == 413


def test_nothing_is_served_without_the_password(service: Service) -> None:
    http = client(service, ("me", "secret"))
    paths = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")

    def statuses() -> set[int]:
        posted = {http.post(path, json=EVENT).status_code for path in paths}
        return posted | {http.get(path).status_code for path in ("/gradio_api/queue/data?session_hash=s", "/logout")}

    assert statuses() == {401} and "version_0" not in http.get("/").text
    assert http.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert statuses() == {401}
    assert http.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert 401 not in {http.post(path, json=EVENT).status_code for path in paths} and "version_0" in http.get("/").text


def test_passwords_cannot_be_guessed_quickly(service: Service) -> None:
    http = client(service, ("me", "secret"))
    guesses = [{"username": "me", "password": f"{i}"} for i in range(10)]
    proxy = {"x-forwarded-for": "203.0.113.1"}
    assert {http.post("/login", data=guess).status_code for guess in guesses} == {400}
    response = http.post("/login", data={"username": "me", "password": "secret"}, headers=proxy)
    assert response.status_code == 429 and response.headers["retry-after"] == "60"
    assert http.get("/").status_code == 200
