"""The web demo hands out a model as an HTML file: requests as the page sends them, and the page in Chromium."""

from __future__ import annotations

import gc
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from helpers import CHROMIUM, GRADIO_WARNINGS, Run
from system.demo_server import serve

from gpt2kit.export import html as html_export
from gpt2kit.serving.models import Service, find_models

pytest.importorskip("gradio", reason="the demo's extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = GRADIO_WARNINGS
PREPARE = 8  # the number of the button's event
EVIL = '"><img src=x onerror=alert(1)>\u202e'


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Service:
    evil = tmp_path_factory.mktemp("evil") / EVIL
    shutil.copytree(run.folder, evil)
    service = Service(find_models([str(run.folder), str(evil)]), allow_download=True)
    service.load().join()
    return service


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serve(service) as address:
        yield address
    gc.collect()


def request(url: str, method: str, path: str, body: str | None = None) -> HTTPResponse:
    connection = HTTPConnection(url.partition("://")[2], timeout=60)
    connection.request(method, path, body)
    return connection.getresponse()


def press(url: str, name: str, session: str) -> list[str]:
    """Send the event of the button, and return the notes that the page shows."""
    event = {"data": [name], "fn_index": PREPARE, "session_hash": session}
    assert request(url, "POST", "/gradio_api/queue/join", json.dumps(event)).status == 200
    stream = request(url, "GET", f"/gradio_api/queue/data?session_hash={session}").read().decode()
    messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    outputs = [message["output"].get("data") for message in messages if message.get("output")]
    return [str(output[0]) for output in outputs if output]


def test_a_file_is_prepared_and_served(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert request(url, "GET", "/model.html?name=version_0").status == 404
    first, *_, last = press(url, "version_0", "a")
    assert "Preparing the page ..." in first
    anchor = re.search(r'<a href="(model\.html\?name=version_0)" download>version_0\.html</a> \([0-9.]+ MB\)', last)
    assert anchor
    response = request(url, "GET", "/" + anchor[1])
    content = response.read()
    assert response.status == 200 and content.startswith(b"<!doctype html>") and content.endswith(b"</body></html>\n")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"].startswith('attachment; filename="version_0.html"; ')
    assert "sandbox" in response.headers["content-security-policy"]
    assert "Set-Cookie" not in response.headers and response.headers["cache-control"] == "private, no-store"
    assert "no model &#x27;&lt;b&gt;&#x27;" in press(url, "<b>", "b")[-1]
    assert capfd.readouterr() == ("", "")


def test_one_file_is_prepared_at_a_time(
    url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    parts = html_export.parts

    def slow_parts(opened: Any, dtype: Any, title: str) -> Iterator[str]:
        started.append(title)
        for part in parts(opened, dtype, title):
            time.sleep(0.3)
            yield part

    monkeypatch.setattr(html_export, "parts", slow_parts)
    with ThreadPoolExecutor() as threads:
        one = threads.submit(press, url, "version_0", "one")
        while not started:
            time.sleep(0.01)
        assert request(url, "GET", "/model.html?name=version_0").status == 404, "not complete"
        other = threads.submit(press, url, "version_0", "other")
        assert "<a " in one.result()[-1] and one.result()[-1] == other.result()[-1]
        assert any("Pages before this one: 1" in note for note in other.result())
    assert started == ["version_0"]
    assert capfd.readouterr() == ("", "")


def test_the_files_are_removed_when_the_server_stops(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serve(service) as url:
        press(url, "version_0", "a")
        (folder,) = tmp_path.glob("gpt2kit-*")
        assert len(list(folder.iterdir())) == 1 and folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    gc.collect()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_one_click_downloads_a_page_that_generates(browser: Any, url: str, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    tab = context.new_page()
    dialogs: list[str] = []
    context.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.goto(url)
    tab.get_by_label("Model").click()
    tab.get_by_role("option").nth(1).click()
    button = tab.get_by_role("button", name="Download the model as HTML")
    with tab.expect_download(timeout=60000) as download:
        button.click()
    assert download.value.suggested_filename == "___img src=x onerror=alert(1)__.html"
    download.value.save_as(tmp_path / "model.html")
    assert tab.get_by_role("link", name="img src=x").is_visible() and tab.locator("img[src=x]").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.goto((tmp_path / "model.html").as_uri())
    assert tab.locator("h1").inner_text().startswith('"><img src=x onerror=alert(1)>')
    tab.locator("#prompt").fill("the quick")
    tab.locator("#generate").click()
    tab.wait_for_function("() => /tokens\\/s/.test(document.getElementById('status').innerText)")
    assert tab.locator("#result").inner_text().startswith("the quick") and not dialogs
    context.close()
