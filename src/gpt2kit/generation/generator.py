"""Text generation from a checkpoint: prompts and options to chunks of text. Shared by generate.py and the web demo."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.generation.constraints import BannedWords, Constraint
from gpt2kit.generation.decoder import Decoder, SampledToken, TokenSequence
from gpt2kit.generation.healing import HealedPrompt, TokenHealing
from gpt2kit.generation.options import GenerationOptions, Precision
from gpt2kit.generation.text_stream import StopStrings, TextStream
from gpt2kit.generation.verse import VerseConstraint
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.tokenizer import added_ids, token_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextChunk:
    """The next characters of a text."""

    prompt: int  # index of the prompt
    sample: int  # number among the samples of the prompt
    text: str  # the new characters; may be empty
    end: str  # empty until the last chunk, then why the text ends: document, length, stop or form
    tokens: int  # number of tokens generated so far
    sampled: SampledToken | None = None  # the token that completes the characters


class Generator:
    """A model and its tokenizer, ready to generate text.

    Args:
        checkpoint: the open checkpoint.
        precision: precision of weights and arithmetic.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        note: called once with each note to the user. Default: log it.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        precision: Precision = "auto",
        note: Callable[[str], None] | None = None,
        device: str = "auto",
    ) -> None:
        self._path = checkpoint.path
        self.tokenizer = checkpoint.tokenizer
        self.gpt2 = InferenceGPT2(checkpoint.shape, checkpoint.state, *device_and_dtype(precision, device))
        self.eos = tokenizers.eos_id(self.tokenizer)
        self._token_bytes = token_bytes(self.tokenizer)
        self._added_ids = added_ids(self.tokenizer)
        self._healing = TokenHealing(self.tokenizer, self._token_bytes, self._added_ids)
        self._note = note or logger.info
        self._notes: set[str] = set()

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the ids of a text, in which the names of special tokens are text unless `parse_special`."""
        return tokenizers.encode(self._parsing_tokenizer if parse_special else self.tokenizer, text)

    @functools.cached_property
    def _parsing_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(tokenizers.to_json(self.tokenizer))
        tokenizer.encode_special_tokens = False
        return tokenizer

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text."""
        return self._token_bytes[token] if token < len(self._token_bytes) else b""

    def generate(
        self, prompts: Sequence[str], options: GenerationOptions, first_sample: int = 0, alternatives: int = 0
    ) -> Iterator[TextChunk]:
        """Generate `num_samples` texts per prompt, `batch_size` at a time, and yield chunks as they grow.

        A text depends on its prompt, its sample number and the options, not on the other prompts.
        """
        is_healed = options.token_healing and not options.form  # the form decides the tokens of a verse
        parse_special = options.parse_special
        healed = [
            self._heal(prompt, parse_special) if is_healed else HealedPrompt(self.prompt_ids(prompt, parse_special))
            for prompt in prompts
        ]
        constraints = self._constraints(options, prompts)
        jobs = ((i, sample) for i in range(len(prompts)) for sample in range(options.num_samples))
        while rows := list(itertools.islice(jobs, options.batch_size)):
            batch = {}
            for i, sample in rows:
                prompt = healed[i]
                before = constraints(prompts[i].removesuffix(prompt.end))
                sequence = TokenSequence(prompt.ids, first_sample + sample, before, prompt.steps)
                batch[sequence] = (i, sample, _Text(self.tokenizer, prompt, options.stop))
            try:
                yield from self._generate_batch(batch, options, alternatives)
            except CheckpointError as error:
                raise CheckpointError(f"{self._path}: {error}") from None

    def prompt_ids(self, prompt: str, parse_special: bool = False) -> list[int]:
        """Return the ids of a prompt after an end-of-document token, as documents begin in training."""
        try:
            ids = self.encode(prompt, parse_special)
        except (UnicodeEncodeError, TypeError):
            raise UserError(f"prompt {prompt!r}: contains bytes that are not UTF-8. Encode it as UTF-8") from None
        decoded = tokenizers.decode(self.tokenizer, ids)
        if decoded != prompt:
            self.note(f"the tokenizer cannot encode the prompt {_shorten(prompt)}: the model reads {_shorten(decoded)}")
        context = int(self.gpt2.shape["n_positions"])
        if len(ids) + 1 > context:
            self.note(f"a prompt has {len(ids):,} tokens: the model sees the last {context} of them")
        return [self.eos, *ids]

    def _heal(self, prompt: str, parse_special: bool) -> HealedPrompt:
        encode = functools.partial(self.encode, parse_special=parse_special)
        healed = self._healing.heal(prompt, self.prompt_ids(prompt, parse_special)[1:], encode)
        return dataclasses.replace(healed, ids=[self.eos, *healed.ids])

    def note(self, text: str) -> None:
        """Report a note to the user, unless it was reported before."""
        if text not in self._notes:
            self._notes.add(text)
            self._note(text)

    def _generate_batch(
        self, batch: dict[TokenSequence, tuple[int, int, _Text]], options: GenerationOptions, alternatives: int
    ) -> Iterator[TextChunk]:
        decoder, limit = Decoder(self.gpt2, list(batch), options, self.eos, alternatives), options.token_limit
        while True:
            complete = [s for s in decoder.active if limit is not None and max(s.position, 0) >= limit]
            decoder.drop(complete)
            for sequence in complete:
                prompt, sample, text = batch[sequence]
                yield TextChunk(prompt, sample, text.flush(), "length", limit or 0)
            if not decoder.active:
                return
            for sampled in decoder.step():
                sequence, end = sampled.sequence, ""
                prompt, sample, text = batch[sequence]
                if sampled.token == self.eos:
                    end = "form" if options.form else "document"
                    chunk = text.flush()
                else:
                    chunk = text.push(sampled.token)
                if text.stop.is_reached:
                    decoder.drop([sequence])
                    end = "stop"
                yield TextChunk(prompt, sample, chunk, end, max(sequence.position, 0), sampled)
            if decoder.reader.has_outgrown_context:
                context = self.gpt2.shape["n_positions"]
                self.note(
                    f"a text is longer than the model's context of {context} tokens: the model sees the newest "
                    f"{context // 2} to {context} of them"
                )

    def _constraints(
        self, options: GenerationOptions, prompts: Sequence[str]
    ) -> Callable[[str], tuple[Constraint, ...]]:
        """Return a function from a prompt to the constraints on what follows it."""
        factories: list[Callable[[str], Constraint]] = []
        if options.form:
            verse = VerseConstraint(options.form, self._token_bytes, self._added_ids, self.eos, self.encode)
            if any(map(verse.beginning, prompts)):
                self.note("the prompt fits the form and counts as the beginning of the verse")
            factories.append(verse.after)
        words = list(options.bad_words)
        if options.max_newlines is not None:
            words.append("\n" * (options.max_newlines + 1))
        banned_ids = self._added_ids if options.no_special_tokens else set[int]()
        if words or banned_ids:
            factories.append(BannedWords(words, self._token_bytes, banned_ids, self.eos).after)
        return lambda prompt: tuple(factory(prompt) for factory in factories)


class _Text:
    """The text of one sequence after its prompt: whole characters, up to a stop string.

    The first new tokens spell the end of the prompt, which is not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: HealedPrompt, stop: Sequence[str]) -> None:
        self.stream = TextStream(tokenizer, prompt.ids[1:])
        self.stop = StopStrings(stop)
        self._left = len(prompt.end)  # characters of the prompt that are not spelled yet

    def push(self, token: int) -> str:
        return self.stop.push(self._after_prompt(self.stream.push(token)))

    def flush(self) -> str:
        """Return the rest of the text, without an incomplete character at its end."""
        rest = self._after_prompt(self.stream.flush().rstrip("\N{REPLACEMENT CHARACTER}"))
        return self.stop.push(rest) + self.stop.flush()

    def _after_prompt(self, chunk: str) -> str:
        """Return a chunk without the characters that belong to the prompt."""
        left, self._left = self._left, max(self._left - len(chunk), 0)
        return chunk[left:]


def device_and_dtype(precision: Precision, device: str = "auto") -> tuple[str, torch.dtype]:
    """Return the device to generate on, and the dtype; auto: float32 on a CPU, 16 bits on a GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = precision.removesuffix("-true")
    if name == "auto" and device == "cpu":
        name = "32"
    elif name == "auto":
        name = "bf16" if torch.cuda.is_bf16_supported() else "16"
    if name == "16" and device == "cpu":
        raise UserError("--precision 16: about a thousand times slower on a CPU. Use 32 or bf16")
    return device, {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}[name]


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
