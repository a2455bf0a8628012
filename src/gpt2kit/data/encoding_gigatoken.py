"""gigatoken, an optional package that encodes many times faster: used if it is right about this very text.

It has to give the tokenizer's ids for the corpus's first texts and for such strings as tell encoders apart. After that
one text of each `_CHECKED` is compared.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization import tokenizer as tokenizers

_SAMPLE = 1000, 1 << 20
"""Texts and characters of the corpus by which it is tried."""
_CHECKED = 256
_TRICKY = [
    *("", " ", "\n", "\r\n", "\t \n  x", " " * 70 + "x", "\n" * 50, "a\u00a0b\u3000c\u2028d\u200b", "\ufeffa"),
    *("\x00", "a\x01b\x07\x7f\x85", "\ufffd\ufffe\U0010ffff\ue000\u0378", "e\u0301 a\u0308\u0323", "\u0301", "ﬁ İ ß Å"),
    *(
        "🙂🙂",
        "👩\u200d👩\u200d👧\u200d👦 🇩🇪🏽",
        "don't I'LL we've 'S",
        "x1234567890 3.14e-5 １２３ ²³ ٣",
        "Ġword Ċ ▁ ▁▁x▁ ##y",
    ),
    *("白日依山盡，黃河入海流。", "日本語テキスト한국어", "Широкая ü ñ", "สวัสดีชาวโลก हिन्दी", "aяα白אع🙂b"),
    *("a" * 5000, "白" * 3000, "-=" * 600, "ab1 " * 900, "<unk>", "<0x41><0xE7>", "[UNK] [CLS]", "a,b;c(d)[e]{f}//"),
]


class WrongIds(DataError):
    """Ids given before this error may be wrong, too: whatever was made of them has to go."""

    def __init__(self, text: str) -> None:
        self.why = f"its ids of {text[:40]!r} are not the tokenizer's"
        super().__init__(f"gigatoken: {self.why}. pip uninstall gigatoken, and run the same command again")


@dataclass
class Gigatoken:
    """gigatoken's encoder, and the tokenizer that tells whether it is right."""

    encoder: Any
    tokenizer: Tokenizer
    dtype: np.dtype[np.unsignedinteger]
    seen: int = 0

    def encode(self, texts: list[str]) -> tuple[NDArray[np.unsignedinteger], list[int]]:
        """All ids in one array, and how many each text has; one text of `_CHECKED` is compared."""
        chosen = range(-self.seen % _CHECKED, len(texts), _CHECKED)
        self.seen += len(texts)
        return self.compared(texts, chosen)

    def compared(self, texts: list[str], chosen: range) -> tuple[NDArray[np.unsignedinteger], list[int]]:
        """As `encode`, with these texts compared."""
        import awkward  # type: ignore[import-not-found, import-untyped, unused-ignore]

        rows = self.encoder.encode_batch(texts)
        ids = np.asarray(awkward.flatten(rows)).astype(self.dtype)
        lengths: list[int] = awkward.num(rows).tolist()
        ends = list(itertools.accumulate(lengths, initial=0))
        right = self.tokenizer.encode_batch_fast([texts[at] for at in chosen], add_special_tokens=False)
        for at, encoding in zip(chosen, right, strict=True):
            if ids[ends[at] : ends[at + 1]].tolist() != encoding.ids:
                raise WrongIds(texts[at])
        return ids, lengths


def gigatoken_if_right(
    tokenizer: Tokenizer,
    dtype: np.dtype[np.unsignedinteger],
    head: list[list[str]],
    note: Callable[[str], None],
) -> Gigatoken | None:
    """gigatoken, if it is installed and gives the tokenizer's ids; otherwise `note` is told why not."""
    try:
        import gigatoken  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    try:
        found = Gigatoken(gigatoken.Tokenizer.from_json(_without_special(tokenizer)), tokenizer, dtype)
        sample = _sample(head, tokenizer)
        found.compared(sample, range(len(sample)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        why = error.why if isinstance(error, WrongIds) else f"it does not take this tokenizer ({first_line(error)})"
        note(f"gigatoken is not used: {why}")
        return None
    return found


def _without_special(tokenizer: Tokenizer) -> str:
    """The tokenizer without special tokens: so gigatoken, too, takes a special token's text for the text it is."""
    told = json.loads(tokenizers.to_json(tokenizer))
    told["added_tokens"] = [token for token in told["added_tokens"] if not token["special"]]
    return json.dumps(told)


def _sample(head: list[list[str]], tokenizer: Tokenizer) -> list[str]:
    """The corpus's first texts; strings that tell encoders apart; the added tokens' own texts."""
    most, room = _SAMPLE
    chosen = []
    for text in itertools.islice(itertools.chain.from_iterable(head), most):
        chosen.append(text[:room])
        room -= len(chosen[-1])
        if room == 0:
            break
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return [*chosen, *_TRICKY, *added, *(f"a {token}b {token} {token[:-1]}" for token in added)]
