"""Implements `gpt2kit generate`: continue prompts from the command line, a file, standard input or a session."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit import files
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.failures import print_error
from gpt2kit.cli.parser import Positional, Repeated
from gpt2kit.errors import DataError, Problems, UserError, refuse
from gpt2kit.generation.options import GenerationOptions, Precision, generation_problems, is_text

if TYPE_CHECKING:
    from gpt2kit.generation.generator import Generator, TextChunk


# The line between two texts.
SEPARATOR = "---\n"
# Maximum number of characters of a file of prompts; a device may be endless.
_MAX_PROMPTS = 1 << 26


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the other fields of its record in a file, which --json prints with the text."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def generate(
    ckpt_path: Positional[str],
    prompt: Repeated[str] = [],  # noqa: B006
    prompts_file: Path | None = None,
    field: str = "prompt",
    newline_after_prompt: bool = False,
    interactive: bool = False,
    options: GenerationOptions = GenerationOptions(),
    precision: Precision = "auto",
    output: Path | None = None,
    json: bool = False,
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Continue each prompt with a trained model. Only the text goes to standard output.

    Args:
        ckpt_path: `last` (the newest run), a run's name or folder (its best checkpoint), a .ckpt file, a Hugging Face
            folder, an adapter, hf://OWNER/NAME, or a checkpoint of nanoGPT with --tokenizer.
        prompt: Text to continue; \\n is a line break, \\\\ a backslash. May be given several times, with one text each.
            -: read standard input as it is. Default: the start of a document; a model without an end-of-text token
            needs a prompt.
        prompts_file: A file with one prompt per line, or a .jsonl file with one object per line.
        field: The field of a .jsonl file that holds the prompt; --json prints the other fields with the text.
        newline_after_prompt: End each prompt with a line break, so that the text begins on the next line.
        interactive: Read prompts line by line. Ctrl-C stops a text, Ctrl-D ends the session.
        precision: Precision of weights and arithmetic: 32, bf16 or 16. auto: 32 on a CPU, 16 bits on a GPU.
        output: Write to this file instead of standard output. Several texts are separated by a line with `---`.
        json: Print one JSON object per text: prompt, sample, text, tokens, why it ended.
    """
    options = dataclasses.replace(
        options,
        stop=list(map(unescape, options.stop)),
        bad_words=list(map(unescape, options.bad_words)),
        line_ends=list(map(unescape, options.line_ends)),
    )
    problems = Problems(generation_problems(options))
    problems.check(
        not (interactive and (prompt or prompts_file)),
        "--interactive: reads prompts from the terminal. Leave out --prompt and --prompts_file",
    )
    problems.check(
        not (interactive and (output or json)), "--interactive: prints to the terminal. Leave out --output and --json"
    )
    refuse(problems.messages)
    end = "\n" if newline_after_prompt else ""
    prompts = [] if interactive else read_prompts(prompt, prompts_file, field, end)
    from gpt2kit.checkpoint import checkpoint  # here, so that --help does not import torch
    from gpt2kit.generation.generator import Generator

    generator = Generator(checkpoint.open(ckpt_path, options=foreign), precision)
    if interactive:
        run_session(generator, options, end)
    elif output is None:
        for text in format_texts(generator, prompts, options, json):
            print(text, end="", flush=True)
    else:
        files.write_text(output, "".join(format_texts(generator, prompts, options, json)))
        print(f"wrote {len(prompts) * options.num_samples} texts to {output}", file=sys.stderr)


def unescape(text: str) -> str:
    """Return the text with \\n as a line break and \\\\ as a backslash, as typed in a shell; `\\theta` stays."""
    return re.sub(r"\\([n\\])", lambda match: {"n": "\n", "\\": "\\"}[match[1]], text)


def read_prompts(arguments: Sequence[str], file: Path | None, field: str, end: str = "") -> list[Prompt]:
    """Return all prompts, each followed by `end`; an empty one, the start of a document, if there are none.

    `-` is standard input.
    """
    if arguments.count("-") > 1:
        raise UserError("--prompt -: standard input can be read only once. Give it once")
    prompts = [Prompt(read_standard_input() if argument == "-" else unescape(argument)) for argument in arguments]
    prompts += read_prompts_file(file, field) if file else []
    return [dataclasses.replace(prompt, text=prompt.text + end) for prompt in prompts] or [Prompt("")]


def read_standard_input() -> str:
    """Return all of standard input without its last line break."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 (byte {error.start}). Convert it to UTF-8") from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def read_prompts_file(file: Path, field: str) -> list[Prompt]:
    """Return one prompt per line, blank lines left out; see `generate`."""
    if files.is_named_pipe(file):
        raise DataError(f"--prompts_file {file}: a named pipe, which may wait forever. Name a file")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_PROMPTS + 1)
    except FileNotFoundError:
        raise DataError(f"--prompts_file {file}: no such file (looked from {Path.cwd()}). Check the path") from None
    except IsADirectoryError:
        raise DataError(f"--prompts_file {file}: a folder. Name a file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts_file {file}: not UTF-8 (byte {error.start}). Convert it to UTF-8") from None
    if len(text) > _MAX_PROMPTS:
        raise DataError(f"--prompts_file {file}: more than {_MAX_PROMPTS:,} characters. Split it")
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise DataError(f"--prompts_file {file}: empty. Give one prompt per line")
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return [Prompt(line) for _, line in numbered]
    return [_prompt_of_record(line, field, f"--prompts_file {file} line {number}") for number, line in numbered]


def _prompt_of_record(line: str, field: str, where: str) -> Prompt:
    try:
        record = files.parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Give one JSON object per line") from None
    fields = record if isinstance(record, dict) else {field: record}
    if not isinstance(fields.get(field), str):
        raise DataError(f"{where}: has no text {field!r}. Name the field with --field")
    return Prompt(fields[field], {name: value for name, value in fields.items() if name != field})


def format_texts(
    generator: Generator, prompts: Sequence[Prompt], options: GenerationOptions, json: bool, first_sample: int = 0
) -> Iterator[str]:
    """Yield the output: each text with its prompt before it and a line break after it, or as a line of JSON.

    A line between two texts separates them, unless they are JSON.
    The texts of a batch grow together but are printed one after another: the first one while it grows.
    """
    chunks: dict[tuple[int, int], list[TextChunk]] = {}
    order = ((i, sample) for i in range(len(prompts)) for sample in range(options.num_samples))
    current: tuple[int, int] | None = next(order)
    printed_chunks = 0  # of the current text
    for chunk in generator.generate([prompt.text for prompt in prompts], options, first_sample):
        chunks.setdefault((chunk.prompt, chunk.sample), []).append(chunk)
        while current in chunks:
            text = chunks[current]
            is_ended = bool(text[-1].end)
            prompt = prompts[current[0]]
            if json and is_ended:
                yield json_line(prompt, text)
            elif not json:
                separator = "" if current == (0, 0) else SEPARATOR
                start = "" if printed_chunks else separator + prompt.text
                end = "\n" if is_ended else ""
                yield start + "".join(chunk.text for chunk in text[printed_chunks:]) + end
            printed_chunks = len(text)
            if not is_ended:
                break
            del chunks[current]
            current, printed_chunks = next(order, None), 0


def json_line(prompt: Prompt, chunks: Sequence[TextChunk]) -> str:
    """Return one text as a line of JSON."""
    last = chunks[-1]
    record: dict[str, Any] = {
        **prompt.fields,
        "prompt": prompt.text,
        "sample": last.sample,
        "text": "".join(chunk.text for chunk in chunks),
        "tokens": last.tokens,
        "end": last.end,
    }
    line = json_format.dumps(record, ensure_ascii=False)
    return (line if is_text(line) else json_format.dumps(record)) + "\n"  # half a surrogate pair must be escaped


def run_session(generator: Generator, options: GenerationOptions, end: str = "") -> None:
    """Read prompts, which `end` follows, and print texts until the input ends. Each prompt gets new random draws."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # Windows, whose console edits lines by itself
            import readline  # noqa: F401  makes input() edit and recall lines
    for first_sample in count(step=options.num_samples):
        try:
            prompt = Prompt(input("> " if is_terminal else "") + end)
            for text in format_texts(generator, [prompt], options, False, first_sample):
                print(text, end="", flush=True)
        except EOFError:
            if is_terminal:
                print(flush=True)
            return
        except KeyboardInterrupt:
            print(flush=True)
        except UserError as error:
            print_error(error)
