"""The page of export.py --html in headless Chromium, from a file and without a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import CHROMIUM, Outcome, Run

import gpt2kit
from gpt2kit.cli import export, parser

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


def main(args: list[str]) -> None:
    parser.run(export.export, args)


@pytest.fixture(scope="module")
def page_file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "model.html"
    main(["--ckpt_path", str(run.folder), "--html", str(file), "--html_dtype=float32", f"--html_title={EVIL}"])
    return file


class Tab:
    """The page in a tab without a network, with the requests and the dialogs that it should not have."""

    def __init__(self, browser: Any, file: Path, query: str = "", **options: Any) -> None:
        self.page = browser.new_context(offline=True, **options).new_page()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self._record_request(request.url, file))
        self.page.on("dialog", lambda dialog: (self.problems.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(file.as_uri() + query)
        self.page.locator("#loading").wait_for(state="hidden")

    def _record_request(self, url: str, file: Path) -> None:
        if not url.startswith((file.as_uri(), "data:", "blob:")):
            self.problems.append(url)

    def generate(self, prompt: str, **values: str) -> str:
        self.page.locator("details").evaluate("element => element.open = true")
        for name, value in values.items():
            self.page.locator(f"#{name}").fill(value)
        self.page.locator("#prompt").fill(prompt)
        self.page.locator("#generate").click()
        self.page.wait_for_function(
            "() => /tokens\\/s|词元\\/秒|error/.test(document.getElementById('status').innerText)"
        )
        return str(self.page.locator("#result").text_content())


def test_the_text_is_that_of_generate(browser: Any, page_file: Path, run: Run) -> None:
    model = gpt2kit.load(str(run.folder), precision=32)
    for engine in ("webassembly", "javascript"):
        tab = Tab(browser, page_file, f"?engine={engine}")
        assert tab.page.evaluate("gpt2kit.request('facts')") == {"engine": engine}
        greedy = tab.generate("the quick ", temperature="0", maxNewTokens="40")
        assert greedy == model.generate("the quick ", temperature=0, max_new_tokens=40)
        sampled = tab.generate("the", temperature="1.2", seed="5", maxNewTokens="20")
        assert sampled == model.generate("the", temperature=1.2, seed=5, max_new_tokens=20)
        assert not tab.problems


def test_alternatives_appear_for_pointer_and_keyboard(browser: Any, page_file: Path) -> None:
    tab = Tab(browser, page_file)
    tab.generate("the quick", seed="1")
    panel = tab.page.locator("#alternatives")
    assert panel.is_hidden()
    tab.page.locator(".token").nth(2).hover()
    rows = panel.locator("li").all_inner_texts()
    assert len(rows) == 6 and "sampled" in rows[0] and all("%" in row for row in rows)
    tab.page.locator("#result").focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.locator(".selected").evaluate("e => [...e.parentNode.children].indexOf(e)") == 4
    assert panel.get_attribute("aria-live") == "polite"
    assert not tab.problems


def test_hostile_text_stays_text(browser: Any, page_file: Path) -> None:
    tab = Tab(browser, page_file)
    assert tab.page.title() == tab.page.locator("h1").inner_text() == EVIL
    assert tab.generate(EVIL).startswith(EVIL)
    assert tab.page.locator("img, h1 *").count() == 0
    blocked = "fetch('https://example.org').then(() => 'sent', () => 'blocked')"
    assert tab.page.evaluate(blocked) == "blocked"
    assert any("Content Security Policy" in problem for problem in tab.problems)
    assert not any(problem == "1" for problem in tab.problems), "no script of the title or the prompt runs"


def test_a_text_can_be_stopped_and_downloaded(browser: Any, page_file: Path) -> None:
    tab = Tab(browser, page_file)
    tab.page.locator("details").evaluate("element => element.open = true")
    tab.page.locator("#lines").fill("1000")  # a verse that does not end earlier
    tab.page.locator("#lineEnds").select_option("breaks")
    tab.page.locator("#prompt").fill("the")
    tab.page.keyboard.press("Control+Enter")
    tab.page.locator(".token").nth(1).wait_for()
    tab.page.locator("#stop").click()
    tab.page.get_by_text("Stopped.").wait_for()
    with tab.page.expect_download() as download:
        tab.page.locator("#download").click()
    assert Path(download.value.path()).read_bytes().decode() == tab.page.locator("#result").text_content()
    assert not tab.problems


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_the_screen(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    tab = Tab(browser, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme, locale="zh-TW")
    tab.generate("the quick")
    assert tab.page.locator("#generate").inner_text() == "生成"
    assert tab.page.evaluate("document.documentElement.lang") == "zh"
    assert not [label for label in tab.page.locator("th").all_inner_texts() if re.search("[a-z]", label)]
    assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for control in tab.page.locator("button, input, select, textarea, summary").all():
        assert control.bounding_box()["height"] >= 40, "large enough for a finger"
    unlabelled = "e => e.filter(e => !e.labels.length).map(e => e.id)"
    assert tab.page.locator("input, select, textarea, progress").evaluate_all(unlabelled) == []
    assert not tab.problems


def test_a_file_that_was_cut_off_is_reported(browser: Any, page_file: Path, tmp_path: Path) -> None:
    content = page_file.read_bytes()
    (tmp_path / "cut.html").write_bytes(content[: content.index(b'class="block">') + 5000])
    tab = Tab(browser, tmp_path / "cut.html")
    assert tab.page.locator("#status").inner_text() == "The file is incomplete. Download it again."
    assert tab.page.locator("#generate").is_disabled()


def test_options_that_do_not_fit_are_refused(run: Run, inside: Path, call: Callable[..., Outcome]) -> None:
    code, _, err = call(main, "--ckpt_path", run.folder)
    assert code == 2 and "--output_dir: give a folder to write, or --html with a file" in err
    code, _, err = call(main, "--ckpt_path", run.folder, "--html", "a.html", "--gguf")
    assert code == 2 and "--gguf: needs --output_dir" in err and not list(inside.iterdir())
    arguments = ["--ckpt_path", run.folder, "--html", "a.html", "--license", "cc0-1.0"]
    code, out, _ = call(main, *arguments)
    assert code == 0 and "a.html" in out and "rounding to int8 changes logits by up to" in out
    assert ">cc0-1.0<" in (inside / "a.html").read_text() and '<h1 dir="auto">a</h1>' in (inside / "a.html").read_text()
    code, _, err = call(main, *arguments)
    assert code == 2 and "replace it with --force" in err
    assert call(main, *arguments, "--force")[0] == 0
