"""Constants and functions that several test files share. Fixtures are in conftest.py."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import export, generate, plot, test, train, train_cli, web_demo
from gpt2kit.cli import train_tokenizer as tokenizer_command
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.training.module import GPT2Module

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SENTENCE = "the quick brown fox jumps over the lazy dog and number {} says good morning\n"
Outcome = tuple[int, str, str]  # exit code, stdout, stderr
SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 40, "n_positions": 16}
SMALL_SHAPE = GPT2Module(**SMALL, dropout=0.1).shape

COMMANDS: dict[str, Callable[..., object]] = {
    "train_tokenizer.py": tokenizer_command.train_tokenizer,
    "test.py": test.test,
    "generate.py": generate.generate,
    "export.py": export.export,
    "plot.py": plot.plot,
    "web_demo.py": web_demo.serve,
}

TOKENIZER_KINDS = ["bpe", "spm-bpe", "spm-unigram", "char", "words", "wordpiece"]
SAMPLE_TEXTS = [
    *(SENTENCE.format(n).strip() for n in range(40)),
    *(f"    if x_{n} == {n * 7}:  return  None" for n in range(40)),
    *[
        "白日依山盡，黃河入海流。",
        "Широкая электрификация южных губерний",
        "สวัสดีชาวโลก",
        "emoji 🙂🙂 and ▁ and \t tab",
        "«ü»",
    ]
    * 8,
]
ODD_TEXTS = [
    *(
        "",
        " ",
        "  a",
        "a  ",
        "\n",
        "\n\n  \t\r\n x \n",
        "a\nb",
        "\x00\x07\x7f",
        "\ufffd",
        "é e\u0301",
        "日本語 ßø 🙂\u200d",
    ),
    *(f"x {tokenizer.EOS}y", tokenizer.EOS, "<unk>", "<0x41><0xE7>", "<0x0A", "[UNK] [CLS]", "▁ ▁▁x▁", "\u2585"),
    *("\U0010ffff\u0378\ue000", "Ġword Ċ", "a" * 300, "白" * 60, " " * 70 + "x", "-" * 61, "<user>a <user>", "ﬁ İ"),
]
HOSTILE_PROMPTS = [
    "<img src=x onerror=alert(1)>",
    "\x00\x07\x1b[31m",
    "\u202eright to left\u202c",
    "</textarea><script>alert(1)</script>",
]
GRADIO_WARNINGS = [  # Gradio leaves event loops to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@dataclass(frozen=True)
class Run:
    """A small finished run: its folder, and the options that made it."""

    folder: Path
    options: list[str]
    work: Path


class PageText(html.parser.HTMLParser):
    """The tags, the text and the links to other files of an HTML page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith("#"):
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


class Parsed(Exception):
    """The command line of trainer.py is valid."""


class ParseOnly(train_cli.TrainCLI):
    """trainer.py up to the point where it has parsed its options; raises `Parsed`."""

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        raise Parsed


def train_tokenizer(
    files: Sequence[str] = (),
    output_dir: Path | None = None,
    kind: Any = "bpe",
    size: int | None = None,
    **more: Any,
) -> None:
    """Run `train_tokenizer.py` with these options; each line of a text is a document."""
    spec = TokenizerSpec(kind, more.pop("vocab_size", size), **more)
    tokenizer_command.train_tokenizer(list(files), output_dir, spec, Reader("line"))


def train_each_kind(folder: Path) -> None:
    """Train a tokenizer of every kind on SAMPLE_TEXTS, each in a folder of its name."""
    (folder / "text.txt").write_text("\n".join(SAMPLE_TEXTS) + "\n", encoding="utf-8")
    for kind in TOKENIZER_KINDS:
        train_tokenizer([str(folder / "text.txt")], folder / kind, kind, 480, special_tokens=["<user>"])


def varied_texts(count: int, source: str) -> list[str]:
    """Return texts to compare tokenizers on: odd ones, and mixtures of the source, repetitions and Unicode."""
    chance = random.Random(1)
    ranges = [(1, 0x7F), (0xA0, 0x24F), (0x400, 0x52F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF)]
    texts = [*ODD_TEXTS, *SAMPLE_TEXTS]
    while len(texts) < count:
        start = chance.randrange(len(source))
        low, high = chance.choice(ranges)
        parts = [
            source[start : start + chance.randrange(1, 80)],
            "".join(chr(chance.randint(low, high)) for _ in range(chance.randrange(1, 12))),
            chance.choice([" ", "-", "a", "ab", "the ", "\n", "\t", "=", "é", "白"]) * chance.randrange(1, 30),
            chance.choice(ODD_TEXTS),
        ]
        texts.append("".join(chance.sample(parts, chance.choice([1, 1, 2, 3]))))
    return texts[:count]


def train_run(work: Path, options: list[str], *more: str) -> Path:
    """Run `trainer.py` and return the folder of the newest run."""
    train.main([*options, f"--trainer.default_root_dir={work}", *more])
    return max((work / "lightning_logs").glob("version_*"))


def write_metrics(folder: Path, steps: int) -> Path:
    """Write the metrics.csv of a run of some steps that is validated every tenth, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["epoch,grad_norm,hours,lr,step,tokens_per_s,tokens_seen,train_loss,val_bpb,val_loss\n"]
    for step in range(1, steps + 1):
        loss = 2 + 3 * math.exp(-step / steps * 5)
        lines.append(f"{step / 50},{0.5 + step % 7 / 10},{step / 3600},0.01,{step},1000,{step * 128},{loss},,\n")
        if step % 10 == 0:
            lines.append(f"{step / 50},,{step / 3600},,{step},,,,{loss / 3},{loss + 0.1}\n")
    (folder / "metrics.csv").write_text("".join(lines))
    return folder


def logged_rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a run's newest checkpoint."""
    return checkpoint.read(paths.checkpoints(run)[0])["state_dict"]


def tensors(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested containers with their paths."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{name}/{key}")


def run_python(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` as a user does; the process must succeed."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.returncode == 0, process.stderr
    return process


class Finished(NamedTuple):
    """What a script gave: exit code, output, and the top-level modules that are loaded after it."""

    code: int
    out: str
    err: str
    modules: list[str]


_RUN_SCRIPTS = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, "")
for sys.argv in json.loads(sys.argv[1]):
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue(), [name for name in sys.modules if "." not in name]]))
"""


def run_scripts(folder: Path, *commands: Sequence[str], **environment: str) -> list[Finished]:
    """Run scripts of this project one after another in one new process, as each would spend seconds on imports."""
    own = [[str(ROOT / script), *arguments] for script, *arguments in commands]
    process = run_python(folder, "-c", _RUN_SCRIPTS, json.dumps(own), **environment)
    return [Finished(*json.loads(line)) for line in process.stdout.splitlines()]


def run_script(path: Path, *arguments: object) -> None:
    """Run a script in this process, as `python PATH ARGUMENTS` does in one that spends seconds on imports.

    It must succeed.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.syspath_prepend(path.parent)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, stop.code


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether the weights are bit-identical."""
    return all(torch.equal(one[name], other[name]) for name in one)


def save_huggingface_model(tokenizer_folder: Path, folder: Path, vocab_size: int = 320) -> Path:
    """Write a GPT-2 with random weights and a tokenizer, as transformers does, and return their folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "vocab_size": vocab_size}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer.save(tokenizer.load(tokenizer_folder), folder)
    return folder
