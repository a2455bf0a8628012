"""Implements `generate.py`: text generated from prompts, or in a session."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2kit import files
from gpt2kit.errors import problems_of, refuse
from gpt2kit.generation import prompts
from gpt2kit.generation.options import Precision, Rules, Wish, problems
from gpt2kit.generation.prompts import Prompt
from gpt2kit.generation.verse import LINE_ENDS, Form


def write(
    ckpt_path: str,
    prompt: list[str] = [],  # noqa: B006
    prompts_file: Path | None = None,
    field: str = "prompt",
    interactive: bool = False,
    num_samples: int = 1,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    stop: list[str] = [],  # noqa: B006
    banned_words: list[str] = [],  # noqa: B006
    max_newlines: int | None = None,
    strip_special: bool = False,
    lines: int | None = None,
    chars_per_line: int | None = None,
    line_ends: list[str] = [],  # noqa: B006
    rhyme: list[str] = [],  # noqa: B006
    seed: int = 1,
    batch_size: int = 16,
    precision: Precision = "auto",
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Continue each prompt with the text that a trained model makes of it; the text alone goes to stdout.

    Args:
        ckpt_path: a run folder (its best checkpoint), a .ckpt file, or a Hugging Face folder; nothing else is needed.
        prompt: where to begin; may be given several times; -: standard input. Default: the start of a document.
        prompts_file: a prompt a line; .jsonl: an object a line, whose other fields come back with --json.
        field: of a .jsonl file, the field that holds the prompt.
        interactive: a session: write a line, read how it goes on; Ctrl-C stops the text, Ctrl-D leaves.
        num_samples: texts for each prompt.
        max_new_tokens: tokens to write, unless the document ends before. Default 200.
        temperature: below 1 bolder towards the likely, above 1 wilder, 0 always the likeliest.
        top_k: draw from the k likeliest tokens only; 0: from all.
        top_p: draw from the likeliest tokens that together have this probability; 1: from all.
        min_p: draw from tokens with at least this share of the likeliest one's probability; 0: from all.
        typical_p: draw from the tokens nearest to the expected surprise that together have this probability.
        repetition_penalty: above 1, what the text has already becomes less likely; 1: as the model has it.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, while anything else may come; 0: off.
        stop: end before this text; may be given several times; \\n is a line break.
        banned_words: never write this; may be given several times; \\n is a line break.
        max_newlines: no more line breaks than this in a row.
        strip_special: never write the tokenizer's special tokens.
        lines: verse of so many lines; the form always holds.
        chars_per_line: letters in each line of the verse, such as 5 or 7. Default 7.
        line_ends: what follows the first line, the second, and so on, over again; \\n is a line break. Default ， 。\\n
        rhyme: letters that rhyme, a group a word: every second line ends in a different one of one group.
        seed: the same seed writes the same text, whatever other prompts there are.
        batch_size: texts written at a time; changes the speed, not the texts.
        precision: 32, bf16, 16; auto: 32 on a CPU, 16 bits on a GPU.
        output: write to this file instead of stdout.
        json: one JSON object a text: prompt, sample, text, tokens, why it ended, and the fields of a .jsonl prompt.
    """
    length = 7 if chars_per_line is None else chars_per_line
    form = Form(lines, length, tuple(map(_typed, line_ends)) or LINE_ENDS, tuple(rhyme)) if lines is not None else None
    wish = Wish(
        Rules(temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram_size, seed),
        num_samples=num_samples,
        max_new_tokens=200 if max_new_tokens is None else max_new_tokens,
        stop=tuple(map(_typed, stop)),
        banned_words=tuple(map(_typed, banned_words)),
        max_newlines=max_newlines,
        strip_special=strip_special,
        form=form,
        batch_size=batch_size,
    )
    broken = {
        "--max_new_tokens: the form says how long a verse is. Leave one of them out": form
        and max_new_tokens is not None,
        "--chars_per_line, --line_ends, --rhyme: say how many --lines": form is None
        and (chars_per_line is not None or line_ends or rhyme),
        "--interactive: takes prompts as you type them. Leave out --prompt and --prompts_file": interactive
        and (prompt or prompts_file),
        "--interactive: shows its text. Leave out --output and --json": interactive and (output or json),
    }
    refuse(problems(wish) + problems_of(broken))
    given = [Prompt("")] if interactive else prompts.gather(prompt, prompts_file, field)
    from gpt2kit.checkpoint import checkpoint  # here, so that --help need not wait for torch
    from gpt2kit.generation.console import session, told
    from gpt2kit.generation.generator import Author

    author = Author(checkpoint.open(ckpt_path), precision)
    if interactive:
        session(author, wish)
    elif output is None:
        for text in told(author, given, wish, json):
            print(text, end="", flush=True)
    else:
        files.write_text(output, "".join(told(author, given, wish, json)))
        texts = len(given) * num_samples
        print(f"{output}: {texts} text{'s'[: texts != 1]} written", file=sys.stderr)


def _typed(text: str) -> str:
    """Text as typed in a shell: \\n is a line break, \\t a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
