"""Train a tokenizer on text."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tokenizers import Tokenizer

from gpt2kit.errors import UserError
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Selection
from gpt2kit.tokenization import report as reports
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.sampling import Sample
from gpt2kit.tokenization.tokenizer import EOS, encode, to_json

logger = logging.getLogger(__name__)

TRAINERS: dict[str, Callable[[Iterable[str], TokenizerSpec], Tokenizer]] = {
    "bpe": trainers.train_bpe,
    "char": trainers.train_char,
    "spm-bpe": partial(trainers.train_sentencepiece, "bpe"),
    "spm-unigram": partial(trainers.train_sentencepiece, "unigram"),
    "wordpiece": trainers.train_wordpiece,
    "words": trainers.train_words,
}
_MB = 1_000_000
REPORT_BYTES = 2 * _MB
LARGEST_SAMPLE = 200 * _MB


def train(spec: TokenizerSpec, documents: Iterator[str]) -> tuple[Tokenizer, Sample]:
    """Train a tokenizer; return it and a sample of the text to measure it on."""
    if spec.kind == "char" and spec.max_train_bytes is None:
        texts = Sample(REPORT_BYTES, spec.seed)
        return TRAINERS[spec.kind](texts.watch(documents), spec), texts
    texts = Sample(spec.max_train_bytes or LARGEST_SAMPLE, spec.seed).fill(documents)
    if spec.max_train_bytes is None:
        texts.shrink(sample_size(spec.kind, texts.spaceless_fraction))
    if len(texts) < texts.seen:
        logger.info(
            f"training on a sample of {reports.format_bytes(len(texts))} of {reports.format_bytes(texts.seen)} "
            "of text; --max_train_bytes BYTES sets its size"
        )
    return TRAINERS[spec.kind](texts, spec), texts


def sample_size(kind: str, spaceless: float) -> int:
    """Return how many bytes can be trained on with about 2 GB of memory and in about a minute.

    `spaceless` is `Sample.spaceless_fraction`. Without spaces, nearly every run of text between two punctuation marks
    is a different word. So bpe takes 100 MB of memory for 1 MB of Chinese, but 3.5 MB for 1 MB of English or Python.
    """
    if kind in ("bpe", "spm-bpe"):
        return int(1700 * _MB / (100 * spaceless + 3.5 * (1 - spaceless)))
    return 20 * _MB if kind == "spm-unigram" else LARGEST_SAMPLE


def default_spec(size: int) -> TokenizerSpec:
    """Return the tokenizer to train on a text of `size` bytes, unless the user chooses one.

    Byte-level BPE loses no text in any language. The vocabulary grows with the square root of the text, rounded to a
    power of two, so that each token occurs often enough to be learned.
    """
    exponent = round(math.log2(4096 * math.sqrt(max(size, 1) / (3 * _MB))))
    return TokenizerSpec(kind="bpe", vocab_size=min(max(1 << max(exponent, 0), 512), 32768))


def with_special_tokens(tokenizer: Tokenizer, spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer with `parse_special` applied; raise if a special token does not differ from text."""
    tokenizer.encode_special_tokens = True
    for token in spec.all_special_tokens:
        token_id = tokenizer.token_to_id(token) or 0
        if tokenizer.decode([token_id], skip_special_tokens=False).strip() != token.strip():
            raise UserError(f"--special_tokens {token}: would not decode to itself. Use ASCII characters, as in <user>")
        if token_id in encode(tokenizer, token):
            raise UserError(f"--special_tokens {token}: text is encoded to this token, too. Use a name such as <user>")
    raw = json.loads(to_json(tokenizer))
    for added in raw["added_tokens"]:
        added["special"] = added["content"] == EOS or (added["special"] and not spec.parse_special)
    return Tokenizer.from_str(json.dumps(raw))


def read_documents(text: Selection) -> Iterator[str]:
    """Yield the documents of a text; raise if it has none."""
    report, is_empty = ReadReport(), True
    for document in text.read(report):
        is_empty = False
        yield document
    if is_empty:
        raise report.no_text(text.paths)
    for line in report.lines():
        logger.info(line)
