"""The page in a real browser, headless Chromium; left out where there is none."""

from __future__ import annotations

import contextlib
import gc
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import GRADIO_WARNINGS, HOSTILE_PROMPTS, Run

from gpt2kit.generation.decoder import Decoder
from gpt2kit.serving import app
from gpt2kit.serving.models import Service, find_models

pytest.importorskip("gradio", reason="the demo's extra is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [*GRADIO_WARNINGS, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Service:
    evil = tmp_path_factory.mktemp("evil") / EVIL
    shutil.copytree(run.folder, evil)
    found = Service(find_models([str(run.folder), str(evil)]))
    found.load()
    return found


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with served(service) as found:
        yield found
    gc.collect()


@contextlib.contextmanager
def served(service: Service, auth: tuple[str, str] | None = None) -> Iterator[str]:
    """The address of a server with the demo."""
    import uvicorn

    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    config = uvicorn.Config(app.app(service, "127.0.0.1", auth, 2), port=port, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


class Tab:
    """A page, what it asked of elsewhere, and what scripts it ran that it should not."""

    def __init__(self, browser: Any, url: str, page: Any = None, **options: Any) -> None:
        self.page = page or browser.new_context(**options).new_page()
        self.elsewhere: list[str] = []
        self.alarms: list[str] = []
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.on("dialog", self._alarm)
        self.page.goto(url)
        self.write = self.page.get_by_role("button", name="Write", exact=True)
        self.write.wait_for(timeout=60000)

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.elsewhere.append(asked)

    def _alarm(self, dialog: Any) -> None:
        self.alarms.append(dialog.message)
        dialog.dismiss()

    def text(self) -> str:
        return str(self.page.locator("#text textarea").input_value())

    def status(self, wanted: str) -> None:
        self.page.wait_for_function(f"() => /{wanted}/m.test(document.body.innerText)", timeout=120000)

    def set_tokens(self, tokens: int) -> None:
        box = self.page.get_by_label("number input for Tokens at most")
        box.fill(str(tokens))
        box.blur()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def test_write_stop_and_switch(browser: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = Tab(browser, url)
    tab.page.get_by_label("Prompt").fill("the quick")
    tab.set_tokens(40)
    tab.write.click()
    tab.status("a second")
    first = tab.text()
    assert first.startswith("the quick") and len(first) > 20
    tab.page.locator(".t").first.hover()
    assert tab.page.locator(".t .a").first.is_visible() and "%" in tab.page.locator(".t .a").first.inner_text()
    quick = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: [time.sleep(0.3), quick(self)][1])
    tab.write.click()
    tab.status("^[1-9] tokens$")
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    time.sleep(1)
    stopped = tab.text()
    time.sleep(1.5)
    assert tab.text() == stopped and first.startswith(stopped) and len(stopped) < len(first)
    monkeypatch.setattr(Decoder, "step", quick)
    tab.page.get_by_label("Model").click()
    tab.page.get_by_role("option").nth(1).click()
    tab.write.click()
    tab.status("a second")
    assert tab.text() == first, "the same weights and seed under another name"
    assert not tab.alarms and not tab.elsewhere


def test_copy_and_download(browser: Any, url: str) -> None:
    """What is copied and what is downloaded is the text, to the character."""
    tab = Tab(browser, url, permissions=["clipboard-read", "clipboard-write"])
    tab.page.get_by_label("Prompt").fill("<b>春</b> 🙂 é\nthe quick")
    tab.set_tokens(30)
    tab.write.click()
    tab.status("a second")
    text = tab.text()
    assert text.startswith("<b>春</b> 🙂 é\nthe quick") and len(text) > 30
    tab.page.locator("#text button").first.click()
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("navigator.clipboard.readText()") == text
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "text.txt"
    assert Path(download.value.path()).read_bytes().decode() == text
    assert not tab.alarms and not tab.elsewhere


def test_a_login(browser: Any, service: Service) -> None:
    """Without the password neither the page nor a model's name; with it, all works."""
    with served(service, ("me", "se cret")) as url:
        page = browser.new_context().new_page()
        page.goto(url)
        for password in ("wrong", "se cret"):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(password)
            assert page.get_by_role("button", name="Write", exact=True).count() == 0
            page.get_by_role("button", name="Login").click()
            if password == "wrong":
                page.get_by_text("Incorrect Credentials").wait_for()
                assert service.models.keys().isdisjoint(page.inner_text("body").split())
        page.get_by_role("button", name="Write", exact=True).wait_for(timeout=60000)  # the login's own change of page
        tab = Tab(browser, url, page=page)
        tab.page.get_by_label("Prompt").fill("the")
        tab.set_tokens(20)
        tab.write.click()
        tab.status("a second")
        assert tab.text().startswith("the") and not tab.alarms and not tab.elsewhere
    gc.collect()


@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS)
def test_hostile_prompts_stay_text(browser: Any, url: str, prompt: str) -> None:
    tab = Tab(browser, url)
    tab.page.get_by_label("Prompt").fill(prompt)
    tab.set_tokens(30)
    tab.write.click()
    tab.status("a second")
    assert not tab.alarms and not tab.elsewhere and tab.page.locator("img[src=x]").count() == 0


def test_a_megabyte_is_refused(browser: Any, url: str) -> None:
    """The box takes no more than the limit; what gets round the box is refused by the server."""
    tab = Tab(browser, url)
    tab.page.get_by_label("Prompt").evaluate(
        "(box) => { box.removeAttribute('maxlength'); box.value = 'x'.repeat(1 << 20);"
        "box.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    tab.write.click()
    time.sleep(2)
    assert not tab.text()
    tab.page.get_by_label("Prompt").fill("x" * 5000)
    tab.write.click()
    time.sleep(2)
    assert not tab.text() and not tab.alarms


def test_a_phone(browser: Any, url: str) -> None:
    tab = Tab(browser, url, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    tab.page.get_by_label("Prompt").fill("the")
    tab.set_tokens(60)
    tab.write.tap()
    tab.status("a second")
    assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.locator(".t").last.tap()
    box = tab.page.locator(".t .a:visible").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 200


def test_eight_at_once(url: str) -> None:
    """Each gets a text of their own, as if alone."""

    def visit(seed: int) -> str:
        with playwright.sync_playwright() as started:
            own = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = Tab(own, url)
            tab.page.get_by_label("Seed").fill(str(seed % 4))
            tab.page.get_by_label("Prompt").fill("the")
            tab.set_tokens(300)
            tab.write.click()
            tab.status("a second")
            found = tab.text()
            own.close()
        return found

    with ThreadPoolExecutor(8) as users:
        texts = list(users.map(visit, range(8)))
    assert texts[:4] == texts[4:] and len(set(texts)) == 4
