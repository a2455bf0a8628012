"""Beam search: the likeliest texts rather than drawn ones. Deterministic, and for few beams not the very likeliest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gpt2kit.generation import sampling as choosing
from gpt2kit.generation.decoder import Reader, Text, constrained, told
from gpt2kit.generation.sampling import Rules
from gpt2kit.model.gpt2 import GPT2


@dataclass(frozen=True)
class Found:
    """A text, its mean log probability a token (its end counts as one), and whether its document has ended."""

    text: Text
    score: float
    ended: bool


@torch.inference_mode()
def search(
    gpt2: GPT2, text: Text, num_beams: int, rules: Rules, eos: int, max_new_tokens: int
) -> tuple[list[Found], bool]:
    """The `num_beams` best texts found, best first, and whether the context was outgrown.

    At each step the likeliest 2 x num_beams continuations are looked at: those that end are kept apart, of the others
    the first num_beams go on. It is over when no text under way is better than the worst of num_beams ended ones.
    """
    reader = Reader(gpt2)
    under_way, sums = [text], torch.zeros(1, device=gpt2.device)
    ended: list[Found] = []
    for length in range(1, max_new_tokens + 1):
        logits = constrained(reader.logits([beam.ids for beam in under_way]), under_way)
        logits = choosing.restrained(logits, rules, [told(beam, eos) for beam in under_way])
        totals = logits.log_softmax(-1) + sums[:, None]
        best = totals.flatten().topk(min(2 * num_beams, totals.numel()))
        rows, tokens, kept = list[int](), list[int](), list[int]()
        for rank, (place, total) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            row, token = divmod(place, logits.shape[-1])
            if total == -torch.inf:
                break
            if token == eos:
                if rank < num_beams:
                    ended.append(Found(under_way[row], total / length, True))
            elif len(rows) < num_beams:
                rows.append(row)
                tokens.append(token)
                kept.append(rank)
        ended = sorted(ended, key=lambda found: -found.score)[:num_beams]
        under_way = [
            replace(under_way[row], new=[*under_way[row].new, token]) for row, token in zip(rows, tokens, strict=True)
        ]
        if not rows:
            break
        sums = best.values[kept]
        if len(ended) == num_beams and float(sums[0]) / length <= ended[-1].score:
            break
        reader.select(rows)
    open_ = [
        Found(beam, float(total) / max(len(beam.new), 1), False) for beam, total in zip(under_way, sums, strict=False)
    ]
    return sorted(ended + open_, key=lambda found: -found.score)[:num_beams], reader.slid
