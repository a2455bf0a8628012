"""`generate.py`: text that goes on from a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import checkpoint, files
from gpt2kit import tokenizer as tokenizers
from gpt2kit.errors import UserError
from gpt2kit.module import GPT2Module

_HELD = 16
"""Tokens that may wait for a character's last byte; a model that has not learnt to write may never send it."""


def write(
    ckpt_path: str,
    prompt: list[str] = [],  # noqa: B006
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 1,
    output: Path | None = None,
) -> None:
    """Continue each prompt with the text that a trained model makes of it; the text alone goes to stdout.

    Args:
        ckpt_path: a run folder (its best checkpoint) or a .ckpt file; nothing else is needed.
        prompt: where to begin; may be given several times. Default: at the start of a document.
        max_new_tokens: tokens to write, unless the document ends before.
        temperature: below 1 bolder towards the likely, above 1 wilder, 0 always the likeliest.
        top_k: draw from the k likeliest tokens only; 0: from all.
        top_p: draw from the likeliest tokens that together have this probability; 1: from all.
        seed: the same seed writes the same text.
        output: write to this file instead of stdout.
    """
    rules = {
        f"--max_new_tokens {max_new_tokens}: must not be negative": max_new_tokens < 0,
        f"--temperature {temperature}: must not be negative": temperature < 0,
        f"--top_k {top_k}: must not be negative": top_k < 0,
        f"--top_p {top_p}: must be above 0 and at most 1": not 0 < top_p <= 1,
    }
    if problems := [problem for problem, broken in rules.items() if broken]:
        raise UserError("; ".join(problems))
    opened = checkpoint.open(ckpt_path)
    gpt2 = opened.module.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = []
    for start in prompt or [""]:
        generator = torch.Generator(gpt2.device).manual_seed(seed)
        ids = encode_prompt(opened.tokenizer, start)
        new = sample(
            gpt2, ids, tokenizers.eos_id(opened.tokenizer), max_new_tokens, temperature, top_k, top_p, generator
        )
        text = start
        if output is None:
            print(start, end="", flush=True)
            for piece in whole_characters(opened.tokenizer, new, ids[1:]):
                print(piece, end="", flush=True)
            print(flush=True)
        else:
            text += "".join(whole_characters(opened.tokenizer, new, ids[1:]))
        texts.append(text)
    if output is not None:
        files.write_text(output, "\n".join(texts) + "\n")
        print(f"{output}: {len(texts)} text{'s'[: len(texts) != 1]} written", file=sys.stderr)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids after an end of document: the model has learnt that a text begins there."""
    return [tokenizers.eos_id(tokenizer), *tokenizer.encode(prompt, add_special_tokens=False).ids]


@torch.inference_mode()
def sample(
    gpt2: GPT2Module,
    ids: list[int],
    eos: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield new token ids until the document ends. Beyond the context the older half is forgotten."""
    context = int(gpt2.shape["n_positions"])
    past = None
    ids = ids[-context:]
    new = ids  # what the model has not seen yet
    for _ in range(max_new_tokens):
        if len(ids) > context:
            ids = ids[-max(context // 2, 1) :]
            new, past = ids, None
        found = gpt2.model(torch.tensor([new], device=gpt2.device), past_key_values=past, use_cache=True)
        past = found.past_key_values
        token = int(
            choose(found.logits[0, -1, : gpt2.shape["vocab_size"]].float(), temperature, top_k, top_p, generator)
        )
        if token == eos:
            return
        yield token
        new = [token]
        ids = [*ids, token]


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw one token id from logits `[vocab_size]`."""
    if temperature == 0:
        return logits.argmax()
    logits = logits / temperature
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # the likeliest token always stays
        probabilities = probabilities.index_fill(0, order[before >= top_p], 0.0)
    return torch.multinomial(probabilities, 1, generator=generator)


def whole_characters(tokenizer: Tokenizer, ids: Iterable[int], before: list[int] | None = None) -> Iterator[str]:
    """Text as it comes, in whole characters; joined, it is what decoding all of `ids` after `before` gives.

    A token may be part of a character, and in some kinds the space before a word shows only when something stands
    before it. So each piece is what the text of a few tokens gains by the next ones.

    Args:
        tokenizer: decodes the ids.
        ids: what is written.
        before: the ids in front of them, whose text is not written again.
    """
    context, held = list(before or []), list[int]()
    known = tokenizer.decode(context, skip_special_tokens=False)
    for token in ids:
        held.append(token)
        text = tokenizer.decode(context + held, skip_special_tokens=False)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(held) >= _HELD:
            yield text[len(known) :]
            context, held = held, []
            known = tokenizer.decode(context, skip_special_tokens=False)
    if held:
        yield tokenizer.decode(context + held, skip_special_tokens=False)[len(known) :]
