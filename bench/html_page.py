"""Speed of the page that export.py --html writes, in headless Chromium: sizes of models, types of weights, engines.

    python bench/html_page.py [--tokens 100] [--size 26M] [--dtype int8] [--engine webassembly]

Weights are random. A line says the size of the file, the milliseconds to the first paint and until the model is ready,
and tokens per second of greedy generation from the start of a text. On a machine that other programs use, too, the last
column tells more: tokens per second of processor time that the browser takes (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.export import html
from gpt2kit.model.config import parameter_count, tensor_sizes
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.options import TokenizerSpec

SIZES = {
    "3M": {"n_layer": 4, "n_head": 4, "n_embd": 192, "n_positions": 256, "vocab_size": 8192},
    "26M": {"n_layer": 12, "n_head": 6, "n_embd": 384, "n_positions": 512, "vocab_size": 12_000},
}


def random_model(size: str) -> LoadedCheckpoint:
    """Return a model with random weights, whose text never ends."""
    documents = [" ".join(f"{n:b} {n * n:x}" for n in range(start, start + 100)) for start in range(0, 20_000, 100)]
    tokenizer = trainers.train_bpe(documents, TokenizerSpec(vocab_size=8000))
    shape = {
        **SIZES[size],
        **{"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
        **{"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    }
    torch.manual_seed(1)
    state = {name: torch.randn(shape_) / 20 for name, shape_ in tensor_sizes(shape).items()}
    state["transformer.wte.weight"][tokenizers.eos_id(tokenizer)] = 0
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return LoadedCheckpoint(Path(size), shape, tokenizer, {}, state=state)


def processor_seconds() -> float:
    """Return the processor time of the programs that this one has started, and that these have started."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(process, 0) for process in family - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


def measure(browser: Browser, url: str, tokens: int) -> str:
    """Return the columns of the table that the browser decides."""
    page = browser.new_page()
    page.goto(url)
    page.locator("#loading").wait_for(state="hidden", timeout=300_000)
    paint, ready = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now()]"
    )
    generate = "n => gpt2kit.request('generate', '', {temperature: 0, maxNewTokens: n})"
    page.evaluate(generate, 20)
    start = processor_seconds()
    seconds = page.evaluate(generate, tokens)["seconds"]
    processor = processor_seconds() - start
    page.close()
    return f"{paint:.0f} | {ready:.0f} | {tokens / seconds:.0f} | {tokens / processor:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtype", nargs="+", default=["int8", "float16", "float32"])
    parser.add_argument("--engine", nargs="+", default=["webassembly", "javascript"])
    options = parser.parse_args()
    print("| parameters | weights | engine | MB | first paint, ms | ready, ms | tokens/s | per CPU second |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size in options.size:
            model = random_model(size)
            parameters = f"{parameter_count(model.shape) / 1e6:.1f} M"
            for dtype in options.dtype:
                file = Path(folder, f"{size}-{dtype}.html")
                megabytes = html.write(file, model, dtype, size) / 1e6
                for engine in options.engine:
                    columns = measure(browser, f"{file.as_uri()}?engine={engine}", options.tokens)
                    print(f"| {parameters} | {dtype} | {engine} | {megabytes:.1f} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
