"""A build of a token store that is killed with SIGKILL goes on, and ends with the very same files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, SENTENCE

KILLS = int(os.environ.get("GPT2KIT_BUILD_KILLS", "10"))
PROGRAM = """
import sys
from pathlib import Path
from gpt2kit.data import build as shards
from gpt2kit.data.build import Corpus
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer

text, trained, cache = sys.argv[1:]
shards.BATCH = 4000
real = shards._write_shard
def told(*args):
    shard = real(*args)
    print("shard", flush=True)
    return shard
shards._write_shard = told
print("begins", flush=True)
store = shards.open_or_build(Corpus([Path(text)], tokenizer.load(trained), Reader(), shard_tokens=4000), Path(cache))
print(store.folder, flush=True)
"""


@contextlib.contextmanager
def build(text: Path, corpus: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", PROGRAM, str(text), str(corpus / "tokenizer"), str(cache)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        yield process


def content(cache: Path) -> dict[str, str]:
    (folder,) = cache.glob("*/")
    files = [*folder.glob("0*"), folder / "index.json", folder / "journal.jsonl"]
    assert not [path.name for path in folder.iterdir() if path not in files and path.name != "verified.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(SENTENCE.format(n) for n in range(20_000)), encoding="utf-8")
    return path


def test_killed_at_random_moments(text: Path, corpus: Path, tmp_path: Path) -> None:
    begins = time.time()
    with build(text, corpus, tmp_path / "straight") as straight:
        told = straight.communicate()[0]
    took = time.time() - begins
    assert straight.returncode == 0 and told.count("shard") > 20
    draw = random.Random(4)
    done = 0
    for _ in range(KILLS):
        with build(text, corpus, tmp_path / "killed") as killed:
            assert killed.stdout is not None
            for _ in range(draw.randrange(4)):  # "begins", then so many finished files
                killed.stdout.readline()
            time.sleep(draw.random() * took / 100)
            killed.send_signal(signal.SIGKILL)
        done += killed.returncode == -signal.SIGKILL
    assert done >= KILLS // 2, "most are killed before they end"
    with build(text, corpus, tmp_path / "killed") as last:
        assert last.communicate() and last.returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "straight")


def test_two_at_once_build_one_store(text: Path, corpus: Path, tmp_path: Path) -> None:
    with build(text, corpus, tmp_path) as first, build(text, corpus, tmp_path) as second:
        told = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert told[0][-1] == told[1][-1], "the same folder"
    (folder,) = tmp_path.glob("*/")
    files = len(json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"])
    assert sum(line == "shard" for lines in told for line in lines) == files + 1, "one of them waited"


def test_a_waiting_process_takes_over_from_one_that_is_killed(text: Path, corpus: Path, tmp_path: Path) -> None:
    with build(text, corpus, tmp_path) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "shard\n":
            pass
        first.send_signal(signal.SIGSTOP)  # it holds the lock, and is at work on the second file
        with build(text, corpus, tmp_path) as second:
            assert second.stdout is not None and second.stdout.readline() == "begins\n"
            time.sleep(0.3)
            assert second.poll() is None
            first.send_signal(signal.SIGKILL)
            second.communicate(timeout=60)
    assert second.returncode == 0
    (folder,) = tmp_path.glob("*/")
    assert (folder / "index.json").is_file()
