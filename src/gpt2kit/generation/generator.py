"""A checkpoint that writes: prompts and wishes to pieces of text. What generate.py and the web demo share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from gpt2kit.checkpoint.checkpoint import Opened
from gpt2kit.errors import UserError
from gpt2kit.generation import text_stream
from gpt2kit.generation.constraints import Ban, Constraint
from gpt2kit.generation.decoder import Chosen, Text, Writer
from gpt2kit.generation.options import Precision, Wish
from gpt2kit.generation.verse import Verse
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.tokenizer import added_ids, token_bytes


@dataclass(frozen=True)
class Piece:
    """Some characters more of a text; with its last piece comes why it ends: document, length, stop or form.

    Args:
        prompt: the prompt's place.
        sample: which of the prompt's texts.
        text: the new characters; may be empty.
        end: empty until the last piece.
        tokens: how many tokens the text has by now.
        chosen: the token that brought them.
    """

    prompt: int
    sample: int
    text: str
    end: str
    tokens: int
    chosen: Chosen | None = None


class Author:
    """A model and its tokenizer, ready to write.

    Args:
        opened: the checkpoint.
        precision: of the weights and the arithmetic.
        note: told what the user should know; each note once.
    """

    def __init__(
        self, opened: Opened, precision: Precision = "auto", note: Callable[[str], None] | None = None
    ) -> None:
        self.tokenizer = opened.tokenizer
        self.gpt2 = InferenceGPT2(opened.shape, opened.state, *device_and_dtype(precision))
        self.eos = tokenizers.eos_id(self.tokenizer)
        self._tokens = token_bytes(self.tokenizer)
        self._added = added_ids(self.tokenizer)
        self._say = note or (lambda text: print(f"note: {text}", file=sys.stderr, flush=True))
        self._said: set[str] = set()

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text."""
        return self._tokens[token] if token < len(self._tokens) else b""

    def write(self, prompts: Sequence[str], wish: Wish, first_sample: int = 0) -> Iterator[Piece]:
        """Write `num_samples` texts a prompt, `batch_size` at a time, and yield them as they grow.

        A text depends on its prompt, the seed, its sample number and the wish, not on the prompts beside it.
        """
        starts = [self.start(prompt) for prompt in prompts]
        constrain = self._constraints(wish, prompts)
        jobs = [(i, sample) for i in range(len(prompts)) for sample in range(wish.num_samples)]
        for at in range(0, len(jobs), wish.batch_size):
            batch = jobs[at : at + wish.batch_size]
            texts = [Text(starts[i], first_sample + sample, constrain(prompts[i])) for i, sample in batch]
            yield from self._batch(batch, texts, wish)

    def start(self, prompt: str) -> list[int]:
        """The prompt's ids after an end of document: the model has learnt that a text begins there."""
        try:
            ids = self.encode(prompt)
        except (UnicodeEncodeError, TypeError):
            raise UserError(f"prompt {prompt!r}: holds bytes that are no text. Give it in UTF-8") from None
        back = self.tokenizer.decode(ids, skip_special_tokens=False)
        if back != prompt:
            self.note(f"the tokenizer cannot hold the prompt {_short(prompt)}: the model reads {_short(back)}")
        context = int(self.gpt2.shape["n_positions"])
        if len(ids) + 1 > context:
            self.note(f"a prompt has {len(ids):,} tokens: the model sees the newest {context} of them")
        return [self.eos, *ids]

    def note(self, text: str) -> None:
        """Tell it, unless it was told before."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _batch(self, jobs: list[tuple[int, int]], texts: list[Text], wish: Wish) -> Iterator[Piece]:
        writer = Writer(self.gpt2, texts, wish.rules, self.eos, wish.alternatives)
        streams = [text_stream.Stream(self.tokenizer, text.prompt[1:]) for text in texts]
        stops = [text_stream.Stops(wish.stop) for _ in texts]
        place = {id(text): i for i, text in enumerate(texts)}
        for length in count(1):
            if wish.form is None and length > wish.max_new_tokens:
                break
            if not writer.texts:
                return
            for chosen in writer.step():
                i = place[id(chosen.text)]
                if chosen.token == self.eos:
                    end = "form" if wish.form else "document"
                    given = stops[i].push(_complete(streams[i].flush())) + stops[i].flush()
                else:
                    given, end = stops[i].push(streams[i].push(chosen.token)), ""
                if stops[i].met:
                    writer.drop([chosen.text])
                    end = "stop"
                yield Piece(*jobs[i], given, end, len(chosen.text.new), chosen)
            self._told_of_context(writer.reader.slid)
        for text in writer.texts:
            i = place[id(text)]
            given = stops[i].push(_complete(streams[i].flush())) + stops[i].flush()
            yield Piece(*jobs[i], given, "length", len(text.new))

    def _told_of_context(self, slid: bool) -> None:
        if slid:
            context = self.gpt2.shape["n_positions"]
            self.note(f"longer than the model's context of {context} tokens: each time it is full, half is forgotten")

    def _constraints(self, wish: Wish, prompts: Sequence[str]) -> Callable[[str], tuple[Constraint, ...]]:
        """From a prompt to the constraints on what follows it."""
        words = [*wish.banned_words, *(["\n" * (wish.max_newlines + 1)] if wish.max_newlines is not None else [])]
        never = self._added if wish.strip_special else set[int]()
        made: list[Callable[[str], Constraint]] = []
        if wish.form:
            verse = Verse(wish.form, self._tokens, self._added, self.eos, self.encode)
            if any(map(verse.counted, prompts)):
                self.note("the prompt fits the form and is counted in as the verse's beginning")
            made.append(verse.after)
        if words or never:
            made.append(Ban(words, self._tokens, never, self.eos).after)
        return lambda prompt: tuple(make(prompt) for make in made)


def device_and_dtype(precision: Precision) -> tuple[str, torch.dtype]:
    """Return the device to generate on, and the precision; auto: float32 on a CPU, 16 bits on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "32" if device == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "16"
    if precision == "16" and device == "cpu":
        raise UserError("--precision 16: a CPU computes it a thousand times slower. Use 32 or bf16")
    return device, {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}[precision]


def _complete(text: str) -> str:
    """Without the beginning of a character that the end of the text has cut off."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
