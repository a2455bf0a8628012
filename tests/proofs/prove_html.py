"""`make prove`: the page of export.py --html gives the ids, the logits and the text of the Python code, in browsers.

    python tests/proofs/prove_html.py [--only NAME]

A small model with each lossless kind of tokenizer is trained on the documentation and exported as a page, which is
opened from its file, without a network: in Chromium with playwright, and in Firefox, if firefox-esr and npm are there,
with puppeteer-core (WebDriver BiDi), which is installed under .cache/clients. Prints a table of the proofs and how many
of them failed. Results are kept, as by prove_resume.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import numpy as np
from helpers import ODD_TEXTS, SAMPLE_TEXTS
from playwright.sync_api import sync_playwright
from proofs.journal import ROOT, run_proofs
from tokenizers import normalizers

import gpt2kit
from gpt2kit.__main__ import main as gpt2kit_command
from gpt2kit.export import huggingface
from gpt2kit.tokenization import tokenizer as tokenizers

CLIENTS = ROOT / ".cache" / "clients"
NODE_PACKAGE = "puppeteer-core@25.16.0"
KINDS = {
    "bpe": ["--kind=bpe"],
    "spm-bpe": ["--kind=spm-bpe"],
    "spm-unigram": ["--kind=spm-unigram"],
    "char": ["--kind=char"],
    "words": ["--kind=words", "--vocab_size=4000"],
    "bpe, nfkc, parsed tokens": ["--kind=bpe", "--normalizer=nfkc", "--special_tokens=<user>", "--parse_special"],
    "spm-bpe, lowercase": ["--kind=spm-bpe", "--normalizer=lowercase"],
}
TRAINING = [
    "--data.tokenizer=tokenizer",
    *("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=64", "--data.block_size=64"),
    *("--data.global_batch_size=16", "--trainer.max_steps=150", "--trainer.accelerator=cpu", "--seed_everything=1"),
]
TEXTS, SAMPLES, TOKENS = 5000, 50, 40
HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(1)>"

Ask = Callable[[Path, list[Any]], list[Any]]


class Exported:
    """A small model with a kind of tokenizer; it is trained and exported when it is needed first."""

    def __init__(self, kind: str, text: Path) -> None:
        self.kind, self.text = kind, text
        self.work = text.parent / re.sub(r"\W+", "_", kind)

    @functools.cached_property
    def run(self) -> Path:
        """The folder of the run."""
        self.work.mkdir()
        size = [] if any("vocab_size" in option for option in KINDS[self.kind]) else ["--vocab_size=1024"]
        tokenizer = [*KINDS[self.kind], *size, "--output_dir", "tokenizer"]
        self.call("tokenize", "--files", self.text, *tokenizer)
        self.call("train", self.text, *TRAINING)
        return self.work / "lightning_logs" / "version_0"

    def page(self, dtype: str, *options: str) -> Path:
        """Export a page, unless it is there, and return its file."""
        file = self.run.parents[1] / f"{dtype}{len(options)}.html"
        if not file.exists():
            self.call("export", self.run, "--html", file, "--html_dtype", dtype, *options)
        return file

    @functools.cached_property
    def model(self) -> gpt2kit.Model:
        """The model in Python."""
        return gpt2kit.load(self.run, precision=32)

    def call(self, *arguments: object) -> None:
        """Run a command in the folder of the model, in this process, which has imported torch already."""
        output = io.StringIO()
        try:
            with contextlib.chdir(self.work), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                gpt2kit_command([*map(str, arguments)])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{arguments[0]}: {output.getvalue()[-1500:]}") from None

    def prompts(self, count: int) -> list[str]:
        """Return beginnings of sentences of the text."""
        chance, source = random.Random(4), self.text.read_text(encoding="utf-8")
        starts = (chance.randrange(len(source) - 50) for _ in range(count))
        return [source[start : start + chance.randrange(40)] for start in starts]


def chromium(file: Path, requests: list[Any]) -> list[Any]:
    """Ask the page in Chromium; raise if it loads anything else."""
    loaded: list[str] = []
    dialogs: list[str] = []
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: loaded.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        page.locator("#loading").wait_for(state="hidden", timeout=120_000)
        answers = []
        for name, *values in requests:
            if name == "text":
                answers.append(show_text(page, *values))
            else:
                answers.append(page.evaluate("([name, values]) => gpt2kit.request(name, ...values)", [name, values]))
        browser.close()
    refuse_requests(loaded, file)
    if dialogs:
        raise RuntimeError(f"scripts ran: {dialogs}")
    return answers


def show_text(page: Any, prompt: str, values: dict[str, str]) -> str:
    """Generate a text with the controls of the page, and return what it shows."""
    page.locator("details").evaluate("element => element.open = true")
    for name, value in values.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#prompt").fill(prompt)
    page.locator("#generate").click()
    page.locator("#result[aria-busy=false]").wait_for(timeout=120_000)
    return str(page.locator("#result").text_content())


def firefox(file: Path, requests: list[Any]) -> list[Any]:
    """Ask the page in Firefox; raise if it loads anything else."""
    request_file = file.with_suffix(".json")
    request_file.write_text(json.dumps({"url": file.as_uri(), "requests": requests}), encoding="utf-8")
    client = ROOT / "tests" / "proofs" / "browser_client.mjs"
    command = ["node", client, CLIENTS / "node_modules", firefox_path(), request_file]
    process = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8")
    if process.returncode:
        raise RuntimeError(process.stderr[-1500:])
    result = json.loads(process.stdout)
    refuse_requests(result["loaded"], file)
    return list(result["answers"])


def firefox_path() -> str | None:
    """Return Firefox's program, if it and npm are there."""
    return shutil.which("firefox-esr") if shutil.which("npm") else None


def refuse_requests(urls: list[str], file: Path) -> None:
    """Raise if a page has requested anything but itself and its own data."""
    if others := [url for url in urls if not url.startswith((file.as_uri(), "data:", "blob:"))]:
        raise RuntimeError(f"the page requested {others}")


def random_texts(count: int) -> list[str]:
    """Return strings: odd ones, parts of samples, and characters from all of Unicode that Python knows."""
    chance = random.Random(5)
    known = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs"))
    # The library's tables are older than those of browsers: it does not normalize or reorder the newest characters.
    old = normalizers.NFKC().normalize_str
    orders = ((letter, f"\u0315{letter}\u0334") for letter in known)
    characters = [letter for letter, order in orders if old(order) == unicodedata.normalize("NFKC", order)]
    blocks = [characters[start : start + 200] for start in range(0, len(characters), 200)]
    parts = [*SAMPLE_TEXTS, *ODD_TEXTS[1:], *"abcXYZ.,'<>/[]\n\t  ▁", "<user>", "</s>", "<0x41>", "'LL", " 12 "]
    texts = list(ODD_TEXTS)
    while len(texts) < count:
        block = chance.choice(blocks[:60] if chance.random() < 0.7 else blocks)
        pieces = [*chance.choices(parts, k=chance.randrange(4)), *chance.choices(block, k=chance.randrange(12))]
        chance.shuffle(pieces)
        texts.append("".join(pieces))
    return texts


def ids(ask: Ask, model: Exported) -> str:
    """Compare the ids of texts with those of the tokenizer."""
    texts = random_texts(TEXTS)
    (answer,) = ask(model.page("float32"), [("encode", texts)])
    expected = tokenizers.encode_batch(model.model.checkpoint.tokenizer, texts)
    wrong = [text for text, one, other in zip(texts, answer, expected, strict=True) if one != other]
    return f"{len(wrong)} of {len(texts)} texts: {wrong[:3]!r}" if wrong else ""


def greedy(ask: Ask, model: Exported) -> str:
    """Compare greedy samples and logits in float32 with those of generate.py and the model."""
    prompts = model.prompts(SAMPLES)
    options = {"temperature": "0", "maxNewTokens": str(TOKENS)}
    checkpoint = model.model.checkpoint
    rows = [tokenizers.encode(checkpoint.tokenizer, text)[:64] for text in model.prompts(5)]
    rows = [row for row in rows if row]
    answers = ask(model.page("float32"), [("text", p, options) for p in prompts] + [("logits", row) for row in rows])
    texts, logits = answers[: len(prompts)], answers[len(prompts) :]
    problems = []
    for prompt, text in zip(prompts, texts, strict=True):
        own = model.model.generate(prompt, temperature=0, max_new_tokens=TOKENS)
        if text != own:
            problems.append(f"{prompt!r}: {text!r}, not {own!r}")
    for row, values in zip(rows, logits, strict=True):
        largest = np.abs(np.array(values) - huggingface.compute_logits(checkpoint.model, row).numpy()).max()
        if not largest < 1e-3:
            problems.append(f"logits differ by {largest}")
    return "; ".join(problems)


def rounding(ask: Ask, model: Exported) -> str:
    """Compare the bits per byte of a text in a page with weights in int8 with those of test.py."""
    source = model.text.read_text(encoding="utf-8")
    text = source[-20_000:]
    (model.work / "text.txt").write_text(text, encoding="utf-8")
    arguments = ["--files", "text.txt", "--reader.document", "file", "--json_output", "test.json"]
    model.call("test", model.run, *arguments)
    result = json.loads((model.work / "test.json").read_text())
    expected = find_number(result, "bits_per_byte")
    problems = []
    for dtype, allowed in {"float32": 1e-4, "int8": 5e-3}.items():
        (score,) = ask(model.page(dtype), [("score", text)])
        cost = score["nats"] / np.log(2) / score["bytes"] / expected - 1
        print(
            f"{model.kind}, {dtype}: bits per byte {expected:.4f} in test.py, {cost:+.3%} in the page", file=sys.stderr
        )
        if not abs(cost) <= allowed:
            problems.append(f"{dtype}: bits per byte differ by {cost:.3%}")
    return "; ".join(problems)


def find_number(value: Any, name: str) -> float:
    """Return the first number of this name in nested JSON."""
    if isinstance(value, dict) and isinstance(value.get(name), (int, float)):
        return float(value[name])
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        number = find_number(part, name)
        if number == number:
            return number
    return float("nan")


def hostile(ask: Ask, model: Exported) -> str:
    """Look for scripts that a hostile title or prompt runs, and for requests."""
    file = model.page("int8", f"--html_title={HOSTILE}", "--license=other")
    (text,) = ask(file, [("text", HOSTILE, {"maxNewTokens": "20"})])
    return "" if text.startswith(HOSTILE) else f"the page shows {text!r}"


def attempt(proof: Callable[[Ask, Exported], str], ask: Ask, model: Exported) -> str:
    """Return what is wrong, also if a program fails."""
    try:
        return proof(ask, model)
    except Exception as error:  # playwright raises its own
        return str(error)


def install() -> None:
    """Install the client of Firefox, unless it is there."""
    name, version = NODE_PACKAGE.split("@")
    package = CLIENTS / "node_modules" / name / "package.json"
    if not package.exists() or json.loads(package.read_text())["version"] != version:
        CLIENTS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(CLIENTS), NODE_PACKAGE], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="run the proofs whose name contains this")
    only = options.parse_args().only
    browsers: dict[str, Ask] = {"Chromium": chromium}
    if firefox_path():
        install()
        browsers["Firefox"] = firefox
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
        text.write_text("\n".join([*pages, *SAMPLE_TEXTS]), encoding="utf-8")
        models = [Exported(kind, text) for kind in KINDS]
        tests = {"ids of 5,000 texts": ids, "50 greedy samples": greedy, "bits per byte": rounding}
        proofs = {
            f"{name}, {browser}, {model.kind}": functools.partial(attempt, test, ask, model)
            for browser, ask in browsers.items()
            for model in models
            for name, test in tests.items()
        }
        for browser, ask in browsers.items():
            proofs[f"hostile title, {browser}"] = functools.partial(attempt, hostile, ask, models[0])
        failed = run_proofs(proofs, only)
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
