"""`make prove`: the files of a Space run as they are, inside a frame of another site, on a phone.

    python tests/proofs/prove_space.py [--only NAME] [--screenshots FOLDER]

A small model with each kind of tokenizer is trained on the documentation and exported with --space. What its
requirements.txt names is installed in a fresh environment, .cache/space, once (about 2 GB), and app.py is started as
the hub starts it. Chromium opens a page that shows it in a frame; the text must be that of generate.py. Results are
kept, as by prove_resume.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from helpers import TOKENIZER_KINDS
from proofs.journal import ROOT, run_proofs
from proofs.prove_clients import TOKENS, Exported, run, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SPACE = ROOT / ".cache" / "space"
# How long to wait for the page. It takes seconds, but minutes beside other programs.
SECONDS = 180
PHONE = {"width": 390, "height": 844}
FRAME = '<!doctype html><meta name="viewport" content="width=device-width"><style>body {{ margin: 0 }}</style>' + (
    '<iframe src="{url}" style="border: 0; width: 100%; height: 100vh" allow="clipboard-write"></iframe>'
)


class Exporter(Exported):
    """A small model and its Space."""

    @functools.cached_property
    def space(self) -> Path:
        """The folder that export.py --space wrote."""
        self.train()
        self.python("export.py", "last", "--output_dir", "model", "--space", "me/prose", "--language", "en")
        return self.work / "model-space"


def python_for(requirements: Path) -> Path:
    """Return the interpreter of an environment in which the requirements of the Space are installed."""
    python, done = SPACE / "bin" / "python", SPACE / "installed"
    if not done.exists() or done.read_text() != requirements.read_text():
        shutil.rmtree(SPACE, ignore_errors=True)
        venv.create(SPACE, with_pip=True)
        run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], SPACE)
        done.write_text(requirements.read_text())
    return python


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Start app.py as the hub does, and yield its address."""
    port = free_port()
    variables = {"SYSTEM": "spaces", "SPACE_ID": "me/prose", "GRADIO_SERVER_NAME": "0.0.0.0"}
    environment = {**os.environ, **variables, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    command = [python_for(folder / "requirements.txt"), "app.py"]
    with (folder.parent / "space.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def framed(url: str) -> Iterator[str]:
    """Serve a page of another origin that shows the address in a frame, and yield its own address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FRAME.format(url=url).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


def show(model: Exporter, screenshots: Path | None) -> str:
    """Use the page in a frame, and return what is wrong."""
    from playwright.sync_api import sync_playwright

    space, prompt = model.space, "The model"
    options = ["--prompt", prompt, "--temperature", 0, "--max_new_tokens", TOKENS, "--no_token_healing", "--json"]
    expected = prompt + json.loads(model.python("generate.py", "last", *options))["text"].removeprefix(prompt)
    requests: list[str] = []
    problems: list[str] = []
    with serving(space) as url, framed(url) as outer, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True).new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(f"error in the page: {error}"))
        page.goto(outer)
        frame = page.frame_locator("iframe")
        generate = frame.get_by_role("button", name="Generate", exact=True)
        generate.wait_for()
        box, text = frame.get_by_role("textbox", name="Prompt"), frame.locator("#text textarea")
        if screenshots:
            page.screenshot(path=screenshots / f"space_{model.kind}_begin.png")
        frame.get_by_text("Settings").tap()
        for name, value in {"Max new tokens": TOKENS, "Temperature": 0}.items():
            number = frame.get_by_label(f"number input for {name}")
            number.fill(str(value))
            number.blur()
        box.fill(prompt)
        generate.tap()
        deadline = time.monotonic() + SECONDS
        while text.input_value() != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        if text.input_value() != expected:
            problems.append(f"{text.input_value()!r}, not {expected!r}")
        if screenshots:
            page.screenshot(path=screenshots / f"space_{model.kind}_end.png")
        inner = page.frames[1]
        if inner.evaluate("document.documentElement.scrollWidth - innerWidth") > 0:
            problems.append("the page is wider than a phone")
        browser.close()
        own = (url, outer, url.replace("http", "ws"), "data:", "blob:")
        problems += [f"a request to {other}" for other in dict.fromkeys(requests) if not other.startswith(own)]
    return "; ".join(problems)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="run the proofs whose name contains this")
    options.add_argument("--screenshots", type=Path, help="write a picture of each page to this folder")
    arguments = options.parse_args()
    if CHROMIUM is None:
        sys.exit("error: no Chromium. Install chromium or google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
        proofs = {
            f"Space, {kind}": functools.partial(show, Exporter(kind, text), arguments.screenshots)
            for kind in TOKENIZER_KINDS
        }
        failed = run_proofs(proofs, arguments.only)
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PIP_RETRIES", "0")  # where PyTorch's index is out of reach, pip leaves it out at once
    main()
