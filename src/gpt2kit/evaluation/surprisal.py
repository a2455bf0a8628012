"""Surprisal as data: the nats, rank and entropy of each token of a text, with its place in the text, and sums per word.

A document's tokens come from a `Scorer` or from `scoring.predict_texts`; nothing is computed here.
"""

from __future__ import annotations

import csv
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit import files
from gpt2kit.errors import UserError
from gpt2kit.evaluation.statistics import WORD
from gpt2kit.text.reader import read_rest
from gpt2kit.tokenization.tokenizer import refuse_unencodable

Span = tuple[int, int]

# Characters that would end a field or a line of a table. The backslash comes first.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class TokenSurprisal(NamedTuple):
    """How well a model predicts a token from those before it."""

    token: str  # text[start:end]
    start: int  # offset of its first character in the text
    end: int  # offset after its last character
    nats: float  # -ln p(token)
    bits: float  # the same in bits
    rank: int  # 1: the model's most likely token
    entropy: float  # of the predicted distribution, in bits


class WordSurprisal(NamedTuple):
    """The sum over the tokens of a word."""

    word: str
    start: int
    end: int
    tokens: int  # number of tokens
    nats: float
    bits: float


Row = TypeVar("Row", TokenSurprisal, WordSurprisal)


class Table(list[Row]):
    """A list of rows, which are named tuples."""

    columns: tuple[str, ...] = WordSurprisal._fields

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with one column per field."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: needs the package pandas. Run: pip install pandas") from None
        return pandas.DataFrame(list(self), columns=self.columns)


class Surprisal(Table[TokenSurprisal]):
    """The tokens of a text: a list of `TokenSurprisal`.

    Args:
        text: the text.
        rows: its tokens.
    """

    columns = TokenSurprisal._fields

    def __init__(self, text: str, rows: Iterable[TokenSurprisal]) -> None:
        super().__init__(rows)
        self.text = text

    def words(self) -> Table[WordSurprisal]:
        """Return the words: text between whitespace; in scripts without spaces, each character.

        A space belongs to the word after it, as in GPT-2's tokens. Words that share a token are one row. The sums over
        words and over tokens are equal.
        """
        ends = [match.end() for match in WORD.finditer(self.text)][:-1]  # text after the last word belongs to it
        crossed = {end for row in self for end in ends[bisect_right(ends, row.start) : bisect_left(ends, row.end)]}
        cuts = [0, *(end for end in ends if end not in crossed), len(self.text)]
        words = Table[WordSurprisal]()
        for number, rows in itertools.groupby(self, lambda row: bisect_right(cuts, row.start, hi=len(cuts) - 1)):
            first, last = cuts[number - 1 : number + 1]
            word = self.text[first:last].strip()
            start = self.text.index(word, first)
            nats = [row.nats for row in rows]
            total = math.fsum(nats)
            words.append(WordSurprisal(word, start, start + len(word), len(nats), total, total / math.log(2)))
        return words


def encode(pieces: Iterable[str], tokenizer: Tokenizer) -> tuple[list[int], list[Span]]:
    """Return the ids of a document, and the characters of each: a part of a character has all of it.

    A reader yields a long document in pieces; each is encoded separately, as in a token store.
    """
    ids: list[int] = []
    spans: list[Span] = []
    offset = 0
    for piece in pieces:
        with refuse_unencodable():
            encoding = tokenizer.encode(piece, add_special_tokens=False)
        ids += encoding.ids
        spans += [(offset + start, offset + end) for start, end in encoding.offsets]
        offset += len(piece)
    return ids, spans


def make_rows(text: str, spans: Iterable[Span], statistics: NDArray[np.float64]) -> Surprisal:
    """Return the tokens of a text from their nats, ranks and entropies, `[3, tokens]`."""
    rows = zip(spans, statistics.T.tolist(), strict=True)
    return Surprisal(
        text,
        (
            TokenSurprisal(text[start:end], start, end, nats, nats / math.log(2), int(rank), entropy / math.log(2))
            for (start, end), (nats, rank, entropy) in rows
            if not math.isnan(nats)  # a first token that is not predicted
        ),
    )


def read_documents(
    pieces: Iterator[str], documents: int, tokenizer: Tokenizer, statistics: Iterator[NDArray[np.float64]], ends: bool
) -> Iterator[Surprisal]:
    """Yield the tokens of the first documents of a text, without the ends of documents.

    Args:
        pieces: what a reader yields.
        documents: number of documents.
        tokenizer: encodes the pieces.
        statistics: of the same tokens, from `Scorer.statistics`.
        ends: whether they include an end of each document.
    """
    rest = np.empty((3, 0))
    for first in itertools.islice(pieces, documents):
        document = [first, *read_rest(first, pieces)]
        ids, spans = encode(document, tokenizer)
        parts, size = [rest], len(ids) + ends
        while sum(part.shape[1] for part in parts) < size:
            parts.append(next(statistics))
        joined = np.concatenate(parts, 1)
        yield make_rows("".join(document), spans, joined[:, : len(ids)])
        rest = joined[:, size:]


def write_table(path: Path, documents: Iterable[Surprisal]) -> None:
    """Write tab-separated rows, with the number of each document from 1 on.

    Fields with a quote are quoted; backslash, tab and line ends are escaped. So R and pandas can read it.
    """
    with files.replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["document", *TokenSurprisal._fields])
        for number, document in enumerate(documents, 1):
            for row in document:
                values = (f"{value:.6f}" if isinstance(value, float) else value for value in row[1:])
                writer.writerow([number, row.token.translate(_ESCAPES), *values])
