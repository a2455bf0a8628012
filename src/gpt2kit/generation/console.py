"""Generated text on its way to a terminal or a file: as it grows, as lines of JSON, or in a session."""

from __future__ import annotations

import contextlib
import json as jsons
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

from gpt2kit.errors import UserError
from gpt2kit.generation.generator import Author, Piece
from gpt2kit.generation.options import Wish
from gpt2kit.generation.prompts import Prompt


def told(author: Author, given: list[Prompt], wish: Wish, json: bool, first_sample: int = 0) -> Iterator[str]:
    """What goes to stdout, bit by bit: each text with its prompt and a line break after it, or a line of JSON.

    The texts of a batch grow together, but come one after another: the first one as it grows.
    """
    whole: dict[tuple[int, int], list[Piece]] = {}
    order = iter([(i, sample) for i in range(len(given)) for sample in range(wish.num_samples)])
    current: tuple[int, int] | None = next(order)
    shown = 0  # pieces of the current text that are out
    for piece in author.write([prompt.text for prompt in given], wish, first_sample):
        whole.setdefault((piece.prompt, piece.sample), []).append(piece)
        while current in whole:
            parts = whole[current]
            ended = bool(parts[-1].end)
            if json and ended:
                yield record(given[current[0]], parts)
            elif not json:
                yield given[current[0]].text * (not shown) + "".join(part.text for part in parts[shown:]) + "\n" * ended
            shown = len(parts)
            if not ended:
                break
            del whole[current]
            current, shown = next(order, None), 0


def record(prompt: Prompt, parts: list[Piece]) -> str:
    """One text as a line of JSON."""
    last = parts[-1]
    found: dict[str, Any] = {
        **prompt.fields,
        "prompt": prompt.text,
        "sample": last.sample,
        "text": "".join(part.text for part in parts),
        "tokens": last.tokens,
        "end": last.end,
    }
    return jsons.dumps(found, ensure_ascii=False) + "\n"


def session(author: Author, wish: Wish) -> None:
    """Lines in, texts out, until the input ends. The n-th line of a session with a seed gives the n-th draw."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # Windows: its console edits lines by itself
            import readline  # noqa: F401  lines can be edited and called back
    for turn in count(step=wish.num_samples):
        try:
            line = input("> " if terminal else "")
            for text in told(author, [Prompt(line)], wish, False, turn):
                print(text, end="", flush=True)
        except EOFError:
            print("\n" * terminal, end="", flush=True)
            return
        except KeyboardInterrupt:
            print(flush=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
