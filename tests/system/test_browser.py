"""The page of the web demo in headless Chromium. Skipped if Chromium or playwright is not installed."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import CHROMIUM, GRADIO_WARNINGS, HOSTILE_PROMPTS, Run
from system.demo_server import serve

from gpt2kit.generation.decoder import Decoder
from gpt2kit.serving.models import Service, find_models

pytest.importorskip("gradio", reason="the demo's extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [*GRADIO_WARNINGS, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Service:
    evil = tmp_path_factory.mktemp("evil") / EVIL
    shutil.copytree(run.folder, evil)
    service = Service(find_models([str(run.folder), str(evil)]))
    service.load()
    return service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with serve(service) as address:
        yield address
    gc.collect()


class Tab:
    """The page in a browser tab, with its requests to other servers and the dialogs that injected scripts opened."""

    def __init__(self, browser: Any, url: str, page: Any = None, **options: Any) -> None:
        self.page = page or browser.new_context(**options).new_page()
        self.external_requests: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("request", lambda request: self._record_request(request.url, url))
        self.page.on("dialog", self._record_dialog)
        self.page.goto(url)
        self.generate = self.page.get_by_role("button", name="Generate", exact=True)
        self.generate.wait_for(timeout=60000)

    def _record_request(self, requested: str, url: str) -> None:
        if not requested.startswith((url, "data:", "blob:")):
            self.external_requests.append(requested)

    def _record_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def text(self) -> str:
        return str(self.page.locator("#text textarea").input_value())

    def wait_for_status(self, pattern: str) -> None:
        self.page.wait_for_function(f"() => /{pattern}/m.test(document.body.innerText)", timeout=120000)

    def set_tokens(self, tokens: int) -> None:
        box = self.page.get_by_label("number input for Max new tokens")
        box.fill(str(tokens))
        box.blur()


@pytest.fixture(autouse=True)
def tabs_closed(browser: Any) -> Iterator[None]:
    """Close the tabs of a test: without its server, a page asks for it without a pause, which slows down the others."""
    yield
    for context in browser.contexts:
        context.close()


def test_generate_stop_and_select_another_model(browser: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = Tab(browser, url)
    tab.page.get_by_role("textbox", name="Prompt").fill("the quick")
    tab.set_tokens(40)
    tab.generate.click()
    tab.wait_for_status(r"tokens\/s")
    first = tab.text()
    assert first.startswith("the quick") and len(first) > 20
    tab.page.locator(".t").first.hover()
    assert tab.page.locator(".t .a").first.is_visible() and "%" in tab.page.locator(".t .a").first.inner_text()
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: [time.sleep(0.3), step(self)][1])
    tab.generate.click()
    tab.wait_for_status("^[1-9] tokens$")
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    time.sleep(1)
    stopped = tab.text()
    time.sleep(1.5)
    assert tab.text() == stopped and first.startswith(stopped) and len(stopped) < len(first)
    monkeypatch.setattr(Decoder, "step", step)
    tab.page.get_by_label("Model").click()
    tab.page.get_by_role("option").nth(1).click()
    tab.generate.click()
    tab.wait_for_status(r"tokens\/s")
    assert tab.text() == first, "the same weights and seed under another name"
    assert not tab.dialogs and not tab.external_requests


def test_the_page_waits_for_a_model_and_reports_one_that_fails(browser: Any, run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    service = Service(find_models([str(run.folder), str(tmp_path / "broken.ckpt")]))
    with serve(service) as url:
        tab = Tab(browser, url)
        tab.wait_for_status("Loading the model")
        assert tab.generate.is_disabled()
        service.load()
        tab.page.get_by_role("textbox", name="Prompt").fill("the")
        tab.generate.click()
        tab.wait_for_status(r"tokens\/s")
        tab.page.get_by_label("Model").click()
        tab.page.get_by_role("option").nth(1).click()
        tab.wait_for_status("not a readable file of tensors")
        assert tab.generate.is_disabled()
    gc.collect()


def test_the_labels_are_the_usual_terms(browser: Any, url: str) -> None:
    tab = Tab(browser, url)
    labels = "Model", "Prompt", "Example prompts", "Max new tokens", "Temperature", "Number of samples", "Seed"
    for label in (*labels, "Generated text", "Token probabilities"):
        assert tab.page.get_by_text(label).first.is_visible(), label


def test_a_prompt_may_end_inside_a_word(browser: Any, url: str) -> None:
    tab = Tab(browser, url)
    tab.page.get_by_role("textbox", name="Prompt").fill("the quick ")
    tab.set_tokens(20)
    tab.generate.click()
    tab.wait_for_status(r"tokens\/s")
    assert tab.text().startswith("the quick brown")
    assert tab.page.locator(".t").first.inner_text().startswith(" ")


def test_the_text_is_copied_and_downloaded_exactly(browser: Any, url: str) -> None:
    tab = Tab(browser, url, permissions=["clipboard-read", "clipboard-write"])
    tab.page.get_by_role("textbox", name="Prompt").fill("<b>春</b> 🙂 é\nthe quick")
    tab.set_tokens(30)
    tab.generate.click()
    tab.wait_for_status(r"tokens\/s")
    text = tab.text()
    assert text.startswith("<b>春</b> 🙂 é\nthe quick") and len(text) > 30
    tab.page.locator("#text button").first.click()
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("navigator.clipboard.readText()") == text
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "text.txt"
    assert Path(download.value.path()).read_bytes().decode() == text
    assert not tab.dialogs and not tab.external_requests


def test_the_page_needs_the_password(browser: Any, service: Service) -> None:
    with serve(service, ("me", "se cret")) as url:
        page = browser.new_context().new_page()
        page.goto(url)
        for password in ("wrong", "se cret"):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(password)
            assert page.get_by_role("button", name="Generate", exact=True).count() == 0
            page.get_by_role("button", name="Login").click()
            if password == "wrong":
                page.get_by_text("Incorrect Credentials").wait_for()
                assert service.models.keys().isdisjoint(page.inner_text("body").split())
        page.get_by_role("button", name="Generate", exact=True).wait_for(timeout=60000)  # the login reloads the page
        tab = Tab(browser, url, page=page)
        tab.page.get_by_role("textbox", name="Prompt").fill("the")
        tab.set_tokens(20)
        tab.generate.click()
        tab.wait_for_status(r"tokens\/s")
        assert tab.text().startswith("the") and not tab.dialogs and not tab.external_requests
    gc.collect()


def test_hostile_prompts_stay_text(browser: Any, url: str) -> None:
    tab = Tab(browser, url)
    for number, prompt in enumerate(HOSTILE_PROMPTS, start=20):
        tab.page.get_by_role("textbox", name="Prompt").fill(prompt)
        tab.set_tokens(number)
        tab.generate.click()
        tab.wait_for_status(rf"^{number} tokens.*tokens\/s")
        assert not tab.dialogs and not tab.external_requests and tab.page.locator("img[src=x]").count() == 0


def test_a_prompt_that_is_too_long_is_refused(browser: Any, url: str) -> None:
    """The text box enforces the limit, and the server refuses a request that circumvents it."""
    tab = Tab(browser, url)
    tab.page.get_by_role("textbox", name="Prompt").evaluate(
        "(box) => { box.removeAttribute('maxlength'); box.value = 'x'.repeat(1 << 16);"
        "box.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    tab.generate.click()
    time.sleep(1)
    assert not tab.text()
    tab.page.get_by_role("textbox", name="Prompt").fill("x" * 5000)
    tab.generate.click()
    time.sleep(1)
    assert not tab.text() and not tab.dialogs


def test_the_page_fits_a_phone(browser: Any, url: str) -> None:
    tab = Tab(browser, url, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    tab.page.get_by_role("textbox", name="Prompt").fill("the")
    tab.set_tokens(60)
    tab.generate.tap()
    tab.wait_for_status(r"tokens\/s")
    assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.locator(".t").last.tap()
    box = tab.page.locator(".t .a:visible").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 200


def test_concurrent_requests_do_not_affect_each_other(browser: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: [time.sleep(0.02), step(self)][1])  # so that they overlap
    tabs = [Tab(browser, url) for _ in range(2)]
    for seed, tab in enumerate(tabs):
        tab.page.get_by_label("Seed").fill(str(seed))
        tab.page.get_by_role("textbox", name="Prompt").fill("the")
        tab.set_tokens(100)
    for tab in tabs:
        tab.generate.click()
    texts = []
    for tab in tabs:
        tab.wait_for_status(r"tokens\/s")
        texts.append(tab.text())
    assert texts[0] != texts[1]
    monkeypatch.undo()
    tabs[0].page.get_by_label("Seed").fill("1")
    tabs[0].generate.click()
    tabs[0].page.wait_for_function("text => document.querySelector('#text textarea').value === text", arg=texts[1])
