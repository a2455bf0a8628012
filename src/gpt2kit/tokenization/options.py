"""The options of a tokenizer: what train_tokenizer.py and `data.tokenizer` accept."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import Problems, refuse
from gpt2kit.ranges import RANGES
from gpt2kit.tokenization.tokenizer import EOS

UNKNOWN = "[UNK]"
# Default vocab_size, except for the kinds that take all tokens of the text.
VOCAB_SIZE = 8192

_SENTENCEPIECE = ("spm-bpe", "spm-unigram")
# The number of tokens that a kind needs besides special tokens. Default: the 256 bytes.
_SMALLEST = {"wordpiece": (2, f"{UNKNOWN}, a character")}
_SMALLEST |= dict.fromkeys(_SENTENCEPIECE, (273, "256 bytes, 17 more"))
# The kinds that do not support an option.
_UNSUPPORTED = {
    "min_frequency": _SENTENCEPIECE,
    "max_token_length": ("char", "words", "wordpiece"),
    "normalizer": ("words", "existing"),
    "parse_special": ("words",),
}
# The kinds that can be made from an existing vocabulary.
_ADOPTABLE = ("wordpiece", "words", "char", "existing")

Kind = Literal["bpe", "spm-bpe", "spm-unigram", "char", "words", "wordpiece", "existing"]


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer to train on text or to adopt. Options of train_tokenizer.py and of `data.tokenizer`."""

    kind: Kind = "bpe"
    """bpe: byte-level byte-pair encoding, as in GPT-2. spm-bpe, spm-unigram: SentencePiece's two models, with byte
    fallback. char: one token per character. words: one token per word, for text whose words are separated by spaces.
    wordpiece: as in BERT. existing: an existing tokenizer, see vocab. Every kind that is trained, except wordpiece,
    encodes any text in any language without loss. docs/tokenizers.md says which to choose."""
    vocab_size: int | None = None
    """Maximum number of tokens, including special tokens and the 256 bytes. Default: 8192; for char and words as many
    as the text has."""
    vocab: str | None = None
    """An existing vocabulary, instead of training. For wordpiece and words: a text file with one token per line. For
    char: a list of characters in JSON or a text file, or nanoGPT's meta.pkl. For existing: a folder, a tokenizer.json,
    a SentencePiece .model, or a name on the Hugging Face hub. Ids are kept; `<|endoftext|>` is added after them if it
    is missing."""
    special_tokens: Sequence[str] = ()
    """Special tokens besides `<|endoftext|>`, such as `<user>`."""
    parse_special: bool = False
    """Encode the name of a special token in a text as that token. Default: as ordinary text. `<|endoftext|>` is always
    ordinary text: to end documents there, make it the reader's separator."""
    min_frequency: int | None = None
    """Minimum number of occurrences: of a pair for bpe and wordpiece, a character for char, a word for words."""
    max_token_length: int = 24
    """Length of the longest token: in bytes for bpe, in characters for spm-bpe and spm-unigram."""
    normalizer: Literal["none", "nfc", "nfkc", "lowercase"] = "none"
    """Change text before it is encoded: nfc and nfkc are Unicode's normal forms. Decoded text is then changed, too."""
    lower: bool | Literal["auto"] = "auto"
    """Convert text to lowercase, for an existing vocabulary of wordpiece. auto: unless one of its words has a capital
    letter."""
    newline: str | None = None
    """The token of an existing vocabulary of wordpiece that stands for a line break, such as `[SEP]`. Default: line
    breaks become spaces."""
    max_train_bytes: int | None = None
    """Maximum bytes of text to train on; a larger text is sampled evenly over its documents. Default: as many as fit
    into about 2 GB of memory: 200 MB, or less for text in Chinese, Japanese or Thai, down to 17 MB; 20 MB for
    spm-unigram; all text for char."""
    seed: int = 1
    """Random seed of the sample."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, the end of document first."""
        return [EOS, *self.special_tokens]

    @property
    def max_size(self) -> int | None:
        """The maximum number of tokens; None for as many as the text has."""
        return VOCAB_SIZE if self.vocab_size is None and self.kind not in ("char", "words") else self.vocab_size


def check(spec: TokenizerSpec) -> None:
    """Raise if an option is invalid or does not fit the kind, before any text is read."""
    kind, problems = spec.kind, Problems()
    has_vocab = spec.vocab is not None
    problems.check(
        not has_vocab or kind in _ADOPTABLE, f"--kind {kind}: does not take --vocab; {', '.join(_ADOPTABLE)} do"
    )
    problems.check(
        has_vocab or kind != "existing", "--kind existing: needs --vocab, a folder, a tokenizer.json or a hub name"
    )
    problems.check(
        not has_vocab or (spec.vocab_size, spec.min_frequency, spec.max_train_bytes) == (None, None, None),
        "--vocab: nothing is trained with it. Omit --vocab_size, --min_frequency and --max_train_bytes",
    )
    problems.check(
        (kind == "wordpiece" and has_vocab) or (spec.lower, spec.newline) == ("auto", None),
        "--lower, --newline: only for --kind wordpiece with --vocab. Omit them",
    )
    special = spec.all_special_tokens
    problems.check(
        "" not in special and len(set(special)) == len(special),
        "--special_tokens: a token is empty or appears twice. Remove it",
    )
    least, parts = _SMALLEST.get(kind, (256, "256 bytes"))
    least += len(special)
    problems.check(
        spec.vocab_size is None or spec.vocab_size >= least,
        f"--vocab_size {spec.vocab_size}: {kind} needs at least {least} ({', '.join([parts, *special])})",
    )
    for option in ("vocab_size", "min_frequency", "max_token_length", "max_train_bytes", "seed"):
        value = getattr(spec, option)
        if value is not None and (option != "vocab_size" or value >= least):
            problem = RANGES[f"data.tokenizer.{option}"].problem(value)
            problems.check(not problem, f"--{option} {value}: {problem}")
    problems.check(
        kind not in _SENTENCEPIECE or spec.max_token_length <= 512,
        f"--max_token_length {spec.max_token_length}: {kind} takes at most 512 characters",
    )
    for option, kinds in _UNSUPPORTED.items():
        value = getattr(spec, option)
        is_default = value == getattr(TokenizerSpec, option)
        problems.check(kind not in kinds or is_default, f"--{option} {value}: not available for {kind}. Omit it")
    problems.check(
        kind not in _SENTENCEPIECE or importlib.util.find_spec("sentencepiece"),
        f"--kind {kind}: needs SentencePiece. Run: pip install 'sentencepiece>=0.2'",
    )
    refuse(problems.messages)
