"""The command: prompts in, text out, and nothing else on stdout."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, Outcome, Run

from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.cli import generate, parser
from gpt2kit.errors import UserError
from gpt2kit.generation import generator, verse
from gpt2kit.generation.generator import Generator, TextChunk
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.generation.text_stream import TextStream

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def opened(run: Run) -> LoadedCheckpoint:
    return checkpoint.open(run.folder)


@pytest.fixture
def writes(run: Run, call: Call, inside: Path) -> Call:
    def outcome(*words: object) -> Outcome:
        return call(lambda args: parser.run(generate.generate, args), "--ckpt_path", run.folder, *words)

    return outcome


def whole(writer: Generator, prompts: list[str], options: GenerationOptions) -> dict[tuple[int, int], list[TextChunk]]:
    chunks: dict[tuple[int, int], list[TextChunk]] = {}
    for chunk in writer.generate(prompts, options):
        chunks.setdefault((chunk.prompt, chunk.sample), []).append(chunk)
    return chunks


def streamed(opened: LoadedCheckpoint, ids: list[int]) -> list[str]:
    stream = TextStream(opened.tokenizer)
    return [*map(stream.push, ids), stream.flush()]


def test_only_whole_characters_are_given_out(opened: LoadedCheckpoint) -> None:
    text = "é日本🙂 abc"
    ids = opened.tokenizer.encode(text).ids
    chunks = streamed(opened, ids)
    assert "".join(chunks) == text and "🙂" in chunks
    assert "".join(streamed(opened, ids[:-5])).endswith("\N{REPLACEMENT CHARACTER}")


def test_a_character_cut_off_by_the_end_is_left_out(opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Generator(opened)
    ids = iter(writer.encode("ab🙂"))
    monkeypatch.setattr(generator.Decoder, "step", forced(ids))
    parts = whole(writer, [""], GenerationOptions(max_new_tokens=len(writer.encode("ab🙂")) - 1))[0, 0]
    assert "".join(part.text for part in parts) == "ab" and parts[-1].end == "length"


def forced(ids: object) -> Callable[[object], object]:
    """A decoder's step that samples these tokens."""

    def step(self: generator.Decoder) -> list[generator.SampledToken]:
        sequence = self.active[0]
        sequence.new.append(next(ids))  # type: ignore[call-overload]
        return [generator.SampledToken(sequence, sequence.new[-1])]

    return step


def test_the_same_text_alone_and_in_any_batch(opened: LoadedCheckpoint) -> None:
    options = GenerationOptions(temperature=1.0, top_p=1.0, seed=5, num_samples=3, max_new_tokens=40)
    given = ["the", "the quick brown fox jumps over the lazy", "", "good morning"]
    one = whole(Generator(opened), given, options)
    other = whole(Generator(opened), given[::-1], replace(options, batch_size=5))
    for (prompt, sample), parts in one.items():
        text = "".join(part.text for part in parts)
        assert text == "".join(part.text for part in other[3 - prompt, sample])
        assert [bool(part.end) for part in parts] == [False] * (len(parts) - 1) + [True]


def test_stops_bans_and_line_breaks(opened: LoadedCheckpoint) -> None:
    writer = Generator(opened)
    greedy = GenerationOptions(temperature=0, max_new_tokens=40)
    plain = "".join(p.text for p in whole(writer, ["the"], greedy)[0, 0])
    assert "fox" in plain
    parts = whole(writer, ["the"], replace(greedy, stop=["zzz", "fox"]))[0, 0]
    assert "".join(p.text for p in parts) == plain.split("fox")[0] and parts[-1].end == "stop"
    banned = replace(greedy, bad_words=["fox", "the"], max_newlines=0, no_special_tokens=True)
    text = "".join(p.text for p in whole(writer, ["the"], banned)[0, 0])
    assert not any(word in text for word in ("fox", "the", "\n"))


def test_verse_by_a_model_that_has_never_seen_any(opened: LoadedCheckpoint) -> None:
    form = verse.VerseForm(4, 5, rhyme=("abcde",))
    options = GenerationOptions(lines=4, chars_per_line=5, rhyme=["abcde"], bad_words=["q", "mn"])
    options = replace(options, temperature=1.5, top_p=1.0, no_repeat_ngram_size=1, repetition_penalty=1.2)
    for seed in range(3):
        parts = whole(Generator(opened), ["Spring\n"], replace(options, seed=seed))[0, 0]
        text = "".join(part.text for part in parts)
        assert parts[-1].end == "form" and len(text) == len(form.template)
        assert [c if not verse.is_letter(c) else "\0" for c in text] == list(form.template)


def test_what_the_user_should_know_is_said_once(opened: LoadedCheckpoint) -> None:
    told: list[str] = []
    writer = Generator(opened, note=told.append)
    whole(writer, ["the", "a"], GenerationOptions(max_new_tokens=60))
    assert len(told) == 1 and "context of 16 tokens" in told[0]
    writer.prompt_ids("x" * 100)
    assert len(told) == 2 and "last 16" in told[1]
    with pytest.raises(UserError, match="not UTF-8"):
        writer.prompt_ids("a\udcff")


def test_a_prompt_that_the_tokenizer_changes_is_said(opened: LoadedCheckpoint) -> None:
    from tokenizers import normalizers

    told: list[str] = []
    writer = Generator(opened, note=told.append)
    writer.tokenizer.normalizer = normalizers.Lowercase()
    writer.prompt_ids("Quick")
    writer.tokenizer.normalizer = None
    assert told == ["the tokenizer cannot encode the prompt 'Quick': the model reads 'quick'"]


def test_the_command(writes: Call, run: Run, inside: Path) -> None:
    words = ("--prompt", "the quick", "--prompt", "a", "--max_new_tokens", 5)
    code, out, err = writes(*words)
    assert code == 0 and out.startswith("the quick") and "\na" in out and not err
    assert writes(*words, "--output", "out.txt")[0] == 0
    assert (inside / "out.txt").read_text() == out
    assert writes("--max_new_tokens", 3)[0] == 0
    assert writes("--max_new_tokens", 0, "--prompt", "x")[1] == "x\n"
    assert writes("--lines", 2, "--chars_per_line", 5, "--line_ends", "\\n")[1].count("\n") == 2


def test_prompts_from_files_and_json(writes: Call, inside: Path) -> None:
    (inside / "p.txt").write_text("the\n\nquick brown\n")
    (inside / "p.jsonl").write_text('{"start": "the", "id": 7}\n"fox"\n')
    code, out, _ = writes("--prompts_file", "p.txt", "--max_new_tokens", 4, "--num_samples", 2)
    assert code == 0 and out.startswith("the") and "\nquick brown" in out
    words = ("--prompts_file", "p.jsonl", "--field", "start", "--json", "--max_new_tokens", 4, "--prompt", "a")
    records = [json.loads(line) for line in writes(*words)[1].splitlines()]
    assert [found["prompt"] for found in records] == ["a", "the", "fox"] and records[1]["id"] == 7
    assert records[0]["tokens"] == 4 and records[0]["end"] == "length"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": 1}', "line 1: has no text 'prompt'"),
        ("\n", "empty"),
        ("\xff", "not UTF-8"),
    ],
)
def test_prompt_files_that_cannot_be(content: str, message: str, writes: Call, inside: Path) -> None:
    (inside / "p.jsonl").write_bytes(content.encode("latin-1"))
    code, out, err = writes("--prompts_file", "p.jsonl")
    assert code == 3 and message in err and not out and err.count("\n") == 1


def test_standard_input_is_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("two\r\nlines 日\n".encode())))
    assert generate.read_prompts(["a", "-"], None, "prompt")[1].text == "two\nlines 日"


def test_everything_wrong_is_said_at_once(writes: Call) -> None:
    words = "--num_samples 0 --max_new_tokens -1 --temperature -1 --top_k -1 --top_p 0 --min_p 2 --typical_p 0"
    words += " --repetition_penalty 0 --no_repeat_ngram_size -1 --max_newlines -1 --batch_size 0"
    words += " --chars_per_line 5 --interactive --json --stop= --bad_words="
    code, out, err = writes(*words.split())
    assert code == 2 and not out and err.count("\n") == 1 and err.count(";") == 14
    for words in (
        ("--num_samples", 2, "--temperature", 0),
        ("--lines", 4, "--max_new_tokens", 5),
        ("--lines", 4, "--rhyme", "ab", "--chars_per_line", 0, "--stop", "x"),
        ("--interactive", "--prompt", "x"),
        ("--prompt", "-", "-"),
        ("--precision", "16"),
    ):
        assert writes(*words)[0] == 2, words
    for words in (
        ("--stop", "\udcff"),
        ("--bad_words", "a\udcff"),
        ("--lines", 2, "--line_ends", "\udcff"),
        ("--lines", 2, "--rhyme", "\udcffab"),
        ("--lines", 10**9),
    ):
        code, _, err = writes(*words)
        assert code == 2 and err.count("\n") == 1 and ("not UTF-8" in err or "Use fewer" in err), words


def test_a_session(run: Run, tmp_path: Path) -> None:
    """On a terminal: history by the arrow key, Ctrl-C stops the text, Ctrl-D leaves."""
    words = ["generate.py", "--ckpt_path", str(run.folder), "--interactive", "--max_new_tokens", "4000"]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ.update(OMP_NUM_THREADS="1", TERM="xterm", INPUTRC="/dev/null")
        os.execv(sys.executable, [sys.executable, *words])
    shown = read_until(terminal, "> ")
    os.write(terminal, b"the quick\n")
    shown = read_until(terminal, "brown")
    os.write(terminal, b"\x03")
    shown = read_until(terminal, "> ")
    os.write(terminal, b"\x1b[A fox\n")
    shown = read_until(terminal, "the quick fox", 2)  # as it is typed, and as the text begins
    os.write(terminal, b"\x03")
    read_until(terminal, "> ")
    os.write(terminal, b"\x04")
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0 and "Traceback" not in shown


def read_until(terminal: int, wanted: str, times: int = 1) -> str:
    shown, end = "", time.monotonic() + 60
    while shown.count(wanted) < times:
        assert time.monotonic() < end, f"{wanted!r} did not come: {shown!r}"
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_an_interrupt_ends_the_command(run: Run) -> None:
    words = [sys.executable, "generate.py", "--ckpt_path", str(run.folder), "--max_new_tokens", "100000"]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout and process.stdout.read(5), "streamed while it writes"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
