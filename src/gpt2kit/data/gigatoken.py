"""gigatoken, an optional package that encodes many times faster: used if it gives the tokenizer's own ids.

It is compared on the corpus's first texts and on strings that tell encoders apart, then on one text of each CHECKED.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization import tokenizer as tokenizers

CHECKED = 256
_SAMPLE = 1000
_TRICKY = (
    *("", " ", "\r\n", " " * 70 + "x", "a\u00a0b\u3000c\u2028d\u200b", "\x00\x7f\ufffe\U0010ffff", "e\u0301 ﬁ İ ß"),
    *("👩\u200d👩\u200d👧 🇩🇪", "don't I'LL 3.14e-5 １２３ ²³", "白日依山盡，한국어 日本語", "สวัสดี हिन्दी"),
    *("a" * 5000, "<unk> [CLS] ##y ▁x"),
)


class WrongIds(DataError):
    """gigatoken's ids differ from the tokenizer's. Ids given before may be wrong, too: whatever holds them must go."""

    def __init__(self, text: str) -> None:
        why = f"its ids of {text[:40]!r} are not the tokenizer's"
        super().__init__(f"gigatoken: {why}. pip uninstall gigatoken, and run the same command again")


def gigatoken_encoder(
    tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger], head: list[list[str]], note: Callable[[str], None]
) -> Callable[[list[str]], list[NDArray[np.unsignedinteger]]] | None:
    """Return gigatoken's encoder; None if it is not installed or not right, and `note` is called with the reason."""
    try:
        import awkward  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import gigatoken  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    seen = 0

    def encode(texts: list[str], every: int = CHECKED) -> list[NDArray[np.unsignedinteger]]:
        nonlocal seen
        checked, seen = range(-seen % every, len(texts), every), seen + len(texts)
        rows = encoder.encode_batch(texts)
        flat, ends = np.asarray(awkward.flatten(rows)).astype(dtype), itertools.accumulate(awkward.num(rows), initial=0)
        ids = [flat[start:end] for start, end in itertools.pairwise(ends)]
        right = tokenizer.encode_batch_fast([texts[at] for at in checked], add_special_tokens=False)
        for at, expected in zip(checked, right, strict=True):
            if ids[at].tolist() != expected.ids:
                raise WrongIds(texts[at])
        return ids

    try:
        plain = json.loads(tokenizers.to_json(tokenizer))  # a special token's text in a document is text
        plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["special"]]
        encoder = gigatoken.Tokenizer.from_json(json.dumps(plain))
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        encode([*itertools.islice(itertools.chain(*head), _SAMPLE), *_TRICKY, *added, *(f"a {x}b" for x in added)], 1)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        note(f"gigatoken is not used: {first_line(error)}")
        return None
    return encode
