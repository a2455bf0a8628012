"""generate.py and `Generator` on a trained model: prompts in, text out, and nothing else on stdout."""

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
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.generation import verse
from gpt2kit.generation.decoder import Decoder, SampledToken
from gpt2kit.generation.generator import Generator, TextChunk
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.tokenization.tokenizer import EOS

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def opened(run: Run) -> LoadedCheckpoint:
    return checkpoint.open(run.folder)


@pytest.fixture
def run_generate(run: Run, call: Call, inside: Path) -> Call:
    def outcome(*arguments: object) -> Outcome:
        return call(lambda args: parser.run(generate.generate, args), "--ckpt_path", run.folder, *arguments)

    return outcome


def generate_chunks(
    generator: Generator, prompts: list[str], options: GenerationOptions
) -> dict[tuple[int, int], list[TextChunk]]:
    chunks: dict[tuple[int, int], list[TextChunk]] = {}
    for chunk in generator.generate(prompts, options):
        chunks.setdefault((chunk.prompt, chunk.sample), []).append(chunk)
    return chunks


def generate_text(generator: Generator, prompt: str, options: GenerationOptions) -> tuple[str, str]:
    """Return the text that continues a prompt, and why it ends."""
    chunks = generate_chunks(generator, [prompt], options)[0, 0]
    return "".join(chunk.text for chunk in chunks), chunks[-1].end


def test_an_incomplete_character_at_the_end_is_left_out(
    opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(opened)
    ids = generator.encode("ab🙂")
    remaining = iter(ids)

    def step(self: Decoder) -> list[SampledToken]:
        sequence = self.active[0]
        sequence.new.append(next(remaining))
        return [SampledToken(sequence, sequence.new[-1])]

    monkeypatch.setattr(Decoder, "step", step)
    assert generate_text(generator, "", GenerationOptions(max_new_tokens=len(ids) - 1)) == ("ab", "length")


def test_a_text_does_not_depend_on_its_batch(opened: LoadedCheckpoint) -> None:
    options = GenerationOptions(temperature=1.0, top_p=1.0, seed=5, num_samples=3, max_new_tokens=40)
    prompts = ["the", "the quick brown fox jumps over the lazy", "", "good morning"]
    one = generate_chunks(Generator(opened), prompts, options)
    other = generate_chunks(Generator(opened), prompts[::-1], replace(options, batch_size=5))
    for (prompt, sample), chunks in one.items():
        text = "".join(chunk.text for chunk in chunks)
        assert text == "".join(chunk.text for chunk in other[3 - prompt, sample])
        assert [bool(chunk.end) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_stop_strings_banned_words_and_line_breaks(opened: LoadedCheckpoint) -> None:
    generator = Generator(opened)
    greedy = GenerationOptions(temperature=0, max_new_tokens=40)
    unlimited, _ = generate_text(generator, "the", greedy)
    assert "fox" in unlimited
    assert generate_text(generator, "the", replace(greedy, stop=["zzz", "fox"])) == (unlimited.split("fox")[0], "stop")
    banned = replace(greedy, bad_words=["fox", "the"], max_newlines=0, no_special_tokens=True)
    text, _ = generate_text(generator, "the", banned)
    assert not any(word in text for word in ("fox", "the", "\n"))


@pytest.mark.parametrize("prompt", ["the quick ", "the quick bro", "the quick brown fox ju"])
def test_a_prompt_may_end_inside_a_word(run_generate: Call, prompt: str) -> None:
    arguments = ("--prompt", prompt, "--temperature", 0, "--max_new_tokens", 10)
    assert run_generate(*arguments)[1].startswith("the quick brown fox jumps")
    code, out, _ = run_generate(*arguments, "--no_token_healing")
    assert code == 0 and out.startswith(prompt) and "the quick brown fox jumps" not in out
    record = json.loads(run_generate(*arguments, "--json")[1])
    assert record["prompt"] == prompt and record["tokens"] == 10 and "the quick brown fox" in prompt + record["text"]


def test_verse_from_a_model_that_was_not_trained_on_any(opened: LoadedCheckpoint) -> None:
    form = verse.VerseForm(4, 5, rhyme=("abcde",))
    options = GenerationOptions(lines=4, chars_per_line=5, rhyme=["abcde"], bad_words=["q", "mn"])
    options = replace(options, temperature=1.5, top_p=1.0, no_repeat_ngram_size=1, repetition_penalty=1.2)
    for seed in range(3):
        text, end = generate_text(Generator(opened), "Spring\n", replace(options, seed=seed))
        assert end == "form" and len(text) == len(form.template)
        assert [c if not verse.is_letter(c) else "\0" for c in text] == list(form.template)


def test_notes_are_reported_once(opened: LoadedCheckpoint) -> None:
    notes: list[str] = []
    generator = Generator(opened, note=notes.append)
    generate_chunks(generator, ["the", "a"], GenerationOptions(max_new_tokens=60))
    assert len(notes) == 1 and "context of 16 tokens" in notes[0]
    generator.prompt_ids("x" * 100)
    assert len(notes) == 2 and "last 16" in notes[1]
    with pytest.raises(UserError, match="not UTF-8"):
        generator.prompt_ids("a\udcff")


def test_a_prompt_that_the_tokenizer_changes_is_reported(opened: LoadedCheckpoint) -> None:
    from tokenizers import normalizers

    notes: list[str] = []
    generator = Generator(opened, note=notes.append)
    generator.tokenizer.normalizer = normalizers.Lowercase()
    generator.prompt_ids("Quick")
    generator.tokenizer.normalizer = None
    assert notes == ["the tokenizer cannot encode the prompt 'Quick': the model reads 'quick'"]


def test_special_tokens_of_a_prompt_are_parsed_on_request(opened: LoadedCheckpoint, run_generate: Call) -> None:
    generator = Generator(opened)
    prompt, end = f"the quick{EOS}", generator.eos
    assert generator.prompt_ids(prompt, parse_special=True) == [end, *generator.encode("the quick"), end]
    assert generator.prompt_ids(prompt).count(end) == 1
    greedy = ("--prompt", prompt, "--max_new_tokens", 8, "--temperature", 0)
    texts = [run_generate(*greedy, *more)[1] for more in ((), ("--parse_special",))]
    assert texts[0] != texts[1] and all(text.startswith(prompt) for text in texts)


def test_only_texts_are_printed(run_generate: Call, inside: Path) -> None:
    arguments = ("--prompt", "the quick", "--prompt", "a", "--max_new_tokens", 5)
    code, out, err = run_generate(*arguments)
    assert code == 0 and out.startswith("the quick") and "\n---\na" in out and out.count("---") == 1 and not err
    assert run_generate(*arguments, "--output", "out.txt")[0] == 0
    assert (inside / "out.txt").read_text() == out
    assert run_generate("--max_new_tokens", 3)[0] == 0
    assert run_generate("--max_new_tokens", 0, "--prompt", "x")[1] == "x\n"
    assert run_generate("--lines", 2, "--chars_per_line", 5, "--line_ends", "\\n")[1].count("\n") == 2


def test_prompts_from_files_and_json(run_generate: Call, inside: Path) -> None:
    (inside / "p.txt").write_text("the\n\nquick brown\n")
    (inside / "p.jsonl").write_text('{"start": "the", "id": 7}\n"fox"\n')
    code, out, _ = run_generate("--prompts_file", "p.txt", "--max_new_tokens", 4, "--num_samples", 2)
    texts = out.removesuffix("\n").split("\n---\n")
    assert code == 0 and [text[:5] for text in texts] == [texts[0][:5], texts[1][:5], "quick", "quick"]
    assert texts[0].startswith("the") and texts[1].startswith("the")
    code, out, _ = run_generate("--prompts_file", "p.txt", "--newline_after_prompt", "--json", "--max_new_tokens", 1)
    assert code == 0 and all(json.loads(line)["prompt"].endswith("\n") for line in out.splitlines())
    out = run_generate("--prompt", r"a\nb\\n", "--json", "--max_new_tokens", 1)[1]
    assert json.loads(out)["prompt"] == "a\nb\\n", "a line break, then a backslash"
    out = run_generate("--prompt", r"\theta", "--json", "--max_new_tokens", 1)[1]
    assert json.loads(out)["prompt"] == r"\theta", "no tab"
    arguments = ("--prompts_file", "p.jsonl", "--field", "start", "--json", "--max_new_tokens", 4, "--prompt", "a")
    records = [json.loads(line) for line in run_generate(*arguments)[1].splitlines()]
    assert [record["prompt"] for record in records] == ["a", "the", "fox"] and records[1]["id"] == 7
    assert records[0]["tokens"] == 4 and records[0]["end"] == "length"
    (inside / "half.jsonl").write_text('{"prompt": "fox", "id": "\\ud83d"}\n')  # half an emoji
    out = run_generate("--prompts_file", "half.jsonl", "--json", "--max_new_tokens", 1)[1]
    assert json.loads(out)["id"] == "\ud83d"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": 1}', "line 1: has no text 'prompt'"),
        ("\n", "empty"),
        ("\xff", "not UTF-8"),
    ],
)
def test_invalid_prompt_files_are_refused(content: str, message: str, run_generate: Call, inside: Path) -> None:
    (inside / "p.jsonl").write_bytes(content.encode("latin-1"))
    code, out, err = run_generate("--prompts_file", "p.jsonl")
    assert code == 3 and message in err and not out and err.count("\n") == 1


def test_standard_input_is_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("two\r\nlines 日\n".encode())))
    assert generate.read_prompts(["a", "-"], None, "prompt")[1].text == "two\nlines 日"


def test_all_invalid_options_are_reported_together(run_generate: Call) -> None:
    arguments = "--num_samples 0 --max_new_tokens -1 --temperature -1 --top_k -1 --top_p 0 --min_p 2 --typical_p 0"
    arguments += " --repetition_penalty 0 --no_repeat_ngram_size -1 --max_newlines -1 --batch_size 0"
    arguments += " --chars_per_line 5 --interactive --json --stop= --bad_words="
    code, out, err = run_generate(*arguments.split())
    assert code == 2 and not out and err.count("\n") == 1 and err.count(";") == 14


@pytest.mark.parametrize(
    "choice",
    [
        GenerationOptions(),
        GenerationOptions(temperature=0),
        GenerationOptions(token_healing=False, bad_words=["x"], num_samples=3),
        GenerationOptions(lines=2, chars_per_line=3, line_ends=["\n"]),
    ],
)
def test_a_model_whose_output_is_not_finite_generates_nothing(
    opened: LoadedCheckpoint, choice: GenerationOptions
) -> None:
    """The weights are finite, but their products overflow."""
    huge = {name: tensor * 1e37 for name, tensor in opened.state.items()}
    with pytest.raises(CheckpointError, match=r"\.ckpt: the output of the model is NaN or infinite"):
        list(Generator(replace(opened, state=huge)).generate(["the quick "], choice))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num_samples", 2, "--temperature", 0),
        ("--lines", 4, "--max_new_tokens", 5),
        ("--lines", 4, "--rhyme", "ab", "--chars_per_line", 0, "--stop", "x"),
        ("--interactive", "--prompt", "x"),
        ("--prompt", "-", "--prompt", "-"),
        ("--precision", "16"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: tuple[object, ...], run_generate: Call) -> None:
    assert run_generate(*arguments)[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--stop", "\udcff"),
        ("--bad_words", "a\udcff"),
        ("--lines", 2, "--line_ends", "\udcff"),
        ("--lines", 2, "--rhyme", "\udcffab"),
        ("--lines", 10**9),
        ("--num_samples", 10**9),
        ("--batch_size", 10**9),
        ("--temperature", "1e-40"),
        ("--temperature", "1e30"),
        ("--repetition_penalty", "1e-300"),
    ],
)
def test_invalid_texts_and_sizes_are_refused(arguments: tuple[object, ...], run_generate: Call) -> None:
    code, _, err = run_generate(*arguments)
    assert code == 2 and err.count("\n") == 1
    assert any(reason in err for reason in ("not UTF-8", "Use fewer", "must be from", "must be 0"))


def test_an_interactive_session(run: Run) -> None:
    """On a terminal the arrow key recalls a line, Ctrl-C stops the text, and Ctrl-D ends the session."""
    arguments = ["generate.py", "--ckpt_path", str(run.folder), "--interactive", "--max_new_tokens", "4000"]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ.update(OMP_NUM_THREADS="1", TERM="xterm", INPUTRC="/dev/null")
        os.execv(sys.executable, [sys.executable, *arguments])
    read_until(terminal, "> ")
    os.write(terminal, b"the quick\n")
    read_until(terminal, "brown")
    os.write(terminal, b"\x03")
    read_until(terminal, "> ")
    os.write(terminal, b"\x1b[A fox\n")
    output = read_until(terminal, "the quick fox", 2)  # the echo of the typed line, and the beginning of the text
    os.write(terminal, b"\x03")
    read_until(terminal, "> ")
    os.write(terminal, b"\x04")
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0 and "Traceback" not in output


def read_until(terminal: int, expected: str, times: int = 1) -> str:
    output, end = "", time.monotonic() + 60
    while output.count(expected) < times:
        assert time.monotonic() < end, f"{expected!r} was not printed: {output!r}"
        if select.select([terminal], [], [], 1)[0]:
            output += os.read(terminal, 4096).decode(errors="replace")
    return output


def test_an_interrupt_ends_the_command(run: Run) -> None:
    arguments = [sys.executable, "generate.py", "--ckpt_path", str(run.folder), "--max_new_tokens", "100000"]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout and process.stdout.read(5), "the text is printed while it is generated"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
