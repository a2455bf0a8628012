"""A build or a merge of token stores that is killed with SIGKILL continues, and ends with the same files."""

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

from gpt2kit.data import build, parallel_build
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import TokenStore
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer

KILLS = int(os.environ.get("GPT2KIT_BUILD_KILLS", "10"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
# With shard_tokens=1 each batch is a shard, and progress is reported once per batch.
BUILD = """
import sys
from pathlib import Path
from gpt2kit.data import build
from gpt2kit.data.build import Corpus
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer

text, trained, cache = sys.argv[1:]
build.BATCH = 20_000
corpus = Corpus([Path(text)], tokenizer.load(trained), Reader("line"), shard_tokens=1)
print("start", flush=True)
store = build.open_or_build(corpus, Path(cache), lambda done, total: print("shard", flush=True))
print(store.folder, flush=True)
"""
MERGE = """
import os, shutil, signal, sys
from pathlib import Path
from gpt2kit.data import parallel_build
from gpt2kit.data.build import Corpus
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer

text, trained, parts, work = map(Path, sys.argv[1:])
corpus = Corpus(sorted(text.glob("*.txt")), tokenizer.load(trained), Reader("line"), shard_tokens=90)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
number, status = 0, 1
while status:
    cache = work / str(number)
    shutil.copytree(parts, cache)
    if not (child := os.fork()):
        left = number

        def kill(event, args):
            global left
            if event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        parallel_build.merge(corpus, 3, cache)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or not status, status
    parallel_build.merge(corpus, 3, cache)
    number += 1
print(number)
"""


@contextlib.contextmanager
def build_in_process(text: Path, corpus: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BUILD, str(text), str(corpus / "tokenizer"), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        yield process


def content(cache: Path) -> dict[str, str]:
    """Return the hashes of a store's files, and check that there are no others."""
    (folder,) = cache.glob("*/")
    files = [*folder.glob("0*"), folder / "index.json", folder / "journal.jsonl"]
    assert not [path.name for path in folder.iterdir() if path not in files and path.name != "verified.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(SENTENCE.format(n) for n in range(20_000)), encoding="utf-8")
    return path


def test_a_build_that_is_killed_at_random_moments_ends_with_the_same_files(
    text: Path, corpus: Path, tmp_path: Path
) -> None:
    start = time.time()
    with build_in_process(text, corpus, tmp_path / "uninterrupted") as uninterrupted:
        output = uninterrupted.communicate()[0]
    seconds = time.time() - start
    assert uninterrupted.returncode == 0 and output.count("shard") > 60
    random_numbers = random.Random(4)
    killed_builds = 0
    for _ in range(KILLS):
        with build_in_process(text, corpus, tmp_path / "killed") as killed:
            assert killed.stdout is not None
            for _ in range(random_numbers.randrange(4)):  # "start", then one line per finished shard
                killed.stdout.readline()
            time.sleep(random_numbers.random() * seconds / 100)
            killed.send_signal(signal.SIGKILL)
        killed_builds += killed.returncode == -signal.SIGKILL
    assert killed_builds >= KILLS // 2, "most builds are killed before they end"
    with build_in_process(text, corpus, tmp_path / "killed") as last:
        assert last.communicate() and last.returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "uninterrupted")


def test_two_processes_build_one_store(text: Path, corpus: Path, tmp_path: Path) -> None:
    with build_in_process(text, corpus, tmp_path) as first, build_in_process(text, corpus, tmp_path) as second:
        outputs = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0][-1] == outputs[1][-1], "the same folder"
    (folder,) = tmp_path.glob("*/")
    shards = len(json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"])
    assert sum(line == "shard" for lines in outputs for line in lines) == shards, "one of them waited"


def test_a_waiting_process_takes_over_from_a_killed_one(text: Path, corpus: Path, tmp_path: Path) -> None:
    with build_in_process(text, corpus, tmp_path) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "shard\n":
            pass
        first.send_signal(signal.SIGSTOP)  # it holds the lock
        with build_in_process(text, corpus, tmp_path) as second:
            assert second.stdout is not None and second.stdout.readline() == "start\n"
            time.sleep(0.3)
            assert second.poll() is None
            first.send_signal(signal.SIGKILL)
            second.communicate(timeout=60)
    assert second.returncode == 0
    (folder,) = tmp_path.glob("*/")
    assert (folder / "index.json").is_file()


def test_a_merge_that_is_killed_before_any_change_to_the_disk_is_finished_by_the_next(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BATCH", 60)
    (tmp_path / "text").mkdir()
    for number, lines in enumerate([9, 30, 12]):
        (tmp_path / f"text/{number}.txt").write_text("".join(SENTENCE.format(n) for n in range(lines)))
    trained = tokenizer.load(corpus / "tokenizer")
    text = Corpus(sorted((tmp_path / "text").glob("*.txt")), trained, Reader("line"), shard_tokens=90)
    for part in parallel_build.split_corpus(text, 3).values():
        build.open_or_build(part, tmp_path / "parts")
    single = build.open_or_build(text, tmp_path / "single")
    arguments = [tmp_path / "text", corpus / "tokenizer", tmp_path / "parts", tmp_path / "work"]
    merge = subprocess.run(
        [sys.executable, "-c", MERGE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert merge.returncode == 0, merge.stderr
    kills = int(merge.stdout.split()[-1])
    assert kills > 20
    for number in range(kills):
        (folder,) = (tmp_path / "work" / str(number)).glob("*/")
        merged = TokenStore(folder)
        assert merged[0 : len(merged)].tolist() == single[0 : len(single)].tolist()
        assert (merged.fingerprint, merged.index.sources) == (single.fingerprint, single.index.sources)
