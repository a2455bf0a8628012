"""Score each candidate on the test set: checkpoints and documents to results, with one model in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.data.build import open_with_bar
from gpt2kit.errors import DataError, UserError
from gpt2kit.evaluation import blocks, scoring
from gpt2kit.evaluation.memorization import Memorization, measure_memorization
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.evaluation.scoring import DocumentScorer, Ranks, Scorer, Windows
from gpt2kit.evaluation.statistics import RoundTripCheck, TextStats, UnitScores, measure_text
from gpt2kit.evaluation.surprisal import read_documents, write_table
from gpt2kit.evaluation.test_set import Candidate, TestSet
from gpt2kit.generation.text_stream import TextStream
from gpt2kit.metrics import Score
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.sources import find_files

# Passages: the first documents of the text, and the hardest ones.
FIRST, HARDEST = 3, 10
# Maximum number of tokens of a passage.
MAX_TOKENS = 1000
# The bits per byte of a shorter document are mostly chance.
_MIN_BYTES = 32

# A piece of text, and the nats of its tokens.
Box = tuple[str, list[float]]


@dataclass(frozen=True)
class Passage:
    """A document, or the beginning of a long one, with the nats of each token."""

    number: int  # index of the document in the text
    why: str  # reason for its selection
    bits_per_byte: float  # of the whole document
    boxes: list[Box]
    more: int  # number of tokens that are left out


@dataclass
class Result:
    """The measurements of one candidate."""

    candidate: Candidate
    scores: UnitScores  # of the documents
    units: UnitScores | None  # of what intervals are computed from
    windows: Windows
    round_trip: RoundTripCheck
    passages: list[Passage] = field(default_factory=list)
    memorization: Memorization | None = None

    @functools.cached_property
    def score(self) -> Score:
        """The score of the whole text."""
        return self.scores.total()


def evaluate(
    candidates: Sequence[Candidate], test_set: TestSet, options: EvaluationOptions, ranks: Ranks
) -> tuple[list[Result], TextStats]:
    """Return the result of each candidate and the statistics of the text; both are empty on ranks other than 0."""
    for candidate in candidates:
        lacks_end = f"the end-of-text token, which the vocabulary of {candidate.name} lacks. Omit it"
        if options.memorization and not candidate.has_end:
            raise UserError(f"--memorization: generates text from {lacks_end}")
        if test_set.corpora[0].reader.loss_on and not candidate.has_end:
            raise UserError(f"--reader.loss_on: needs {lacks_end}")
    stats, results = TextStats(), list[Result]()
    if not ranks.rank:
        pieces = test_set.corpora[0].pieces()
        encoders = [candidate.info.tokenizer for candidate in candidates]
        stats = measure_text(pieces, encoders, test_set.documents, test_set.sampling.edges)
    selected: list[tuple[int, str]] = []
    for number, (candidate, store) in enumerate(zip(candidates, test_set.stores, strict=True)):
        gpt2 = scoring.prepare(candidate.load_model(), ranks.device(), options.precision)
        tokens = int(scoring.boundaries(store)[test_set.documents])
        lengths = store.lengths()[: test_set.documents, 0]
        if not (tokens - 1 if candidate.has_end else (lengths - 1).clip(0).sum()):
            raise DataError(
                f"{test_set.files[0]}: the tokenizer of {candidate.name} encodes it to no tokens. Use a different text"
            )
        windows = Windows(tokens, candidate.context, options.stride or candidate.context)
        scorer = (Scorer if candidate.has_end else DocumentScorer)(gpt2, store, windows, options.precision)
        documents = scorer.boundaries[: test_set.documents + 1]
        sampling, tokenizer = test_set.sampling, candidate.info.tokenizer
        edges = blocks.find_boundaries(store, tokenizer, tokens, sampling)
        parts = np.union1d(documents, edges)  # each is in one document and in one block
        nll = scorer.score(options.batch_size, ranks, parts)
        if ranks.rank:
            continue
        counted = store.counted()[: test_set.documents]
        words = np.array(stats.words, np.int64) + counted[:, 3]  # the end of a document counts as one
        if not candidate.has_end:
            words[:] = 0  # the first word is predicted in part
        sizes = np.column_stack([scorer.sizes(tokenizer)[: test_set.documents], words])
        scores = UnitScores(_add_up(nll, parts, documents), *sizes.T)
        units = scores if sampling.unit == "documents" else None
        if sampling.unit == "blocks":
            # The end of a document counts as one token, byte, character and word of the block that it is in.
            ends = np.histogram(documents[1:] - 1, edges)[0] if store.ends else np.zeros(len(edges) - 1, np.int64)
            sizes = np.column_stack([np.diff(edges), stats.blocks + ends[:, None]])
            units = UnitScores(_add_up(nll, parts, edges), *sizes.T)
        result = Result(candidate, scores, units, windows, stats.round_trips[number])
        selected = selected or select_documents(scores, candidate.name if len(candidates) > 1 else "")
        result.passages = [make_passage(scorer, tokenizer, scores, document, why) for document, why in selected]
        if options.surprisal:
            pieces = test_set.corpora[number].pieces()
            statistics = scorer.statistics(options.batch_size)
            rows = read_documents(pieces, test_set.documents, tokenizer, statistics, bool(store.ends))
            write_table(options.surprisal, rows)
        if options.memorization:
            result.memorization = _measure_memorization(candidate, gpt2, test_set, number, options)
        results.append(result)
    return results, stats


def _add_up(nll: NDArray[np.float64], parts: NDArray[np.int64], boundaries: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the nats of documents or blocks, whose first tokens are `boundaries`, from those of the parts in them."""
    units = np.searchsorted(boundaries, parts[:-1], side="right") - 1
    return np.bincount(units, nll, len(boundaries) - 1).astype(np.float64)


def _measure_memorization(
    candidate: Candidate, gpt2: GPT2, test_set: TestSet, number: int, options: EvaluationOptions
) -> Memorization:
    """Search the training text, read as the test text is, without documents that were kept out of training."""
    paths, splits = find_files(list(options.train_files)), [text.split for text in candidate.training_texts]
    if any(split != splits[0] for split in splits):
        raise UserError(
            f"--train_files: {candidate.name} was trained on several texts, of which different parts were held out. "
            "Leave out --memorization"
        )
    corpus = candidate.corpus(paths, test_set.corpora[0].reader, splits[0])
    training = open_with_bar(corpus, options.cache_dir, "training text")
    tokenizer, fingerprint = candidate.info.tokenizer, candidate.text_fingerprint
    return measure_memorization(gpt2, tokenizer, training, test_set.stores[number], options.seed, fingerprint)


def select_documents(scores: UnitScores, checkpoint: str = "") -> list[tuple[int, str]]:
    """Return the numbers of the first documents and of those with the most bits per byte, and why each is selected.

    `checkpoint` is the name of the scored checkpoint if several are tested.
    """
    is_long = scores.bytes >= _MIN_BYTES
    bits = np.divide(scores.nll, scores.bytes * math.log(2), out=np.zeros(len(scores)), where=is_long)
    hardest = [int(number) for number in np.argsort(-bits, kind="stable")[:HARDEST] if bits[number] > 0]
    first = range(min(FIRST, len(scores)))
    why = f"among the hardest for {checkpoint}" if checkpoint else "among the hardest"
    return [(number, "at the beginning") for number in first] + [(n, why) for n in hardest if n not in first]


def make_passage(scorer: Scorer, tokenizer: Tokenizer, scores: UnitScores, number: int, why: str) -> Passage:
    """Return a document's tokens, including its end, with their nats as in the test."""
    start, end = scorer.boundaries[number : number + 2].tolist()
    stop = min(end, start + MAX_TOKENS)
    if stop <= start:  # a tokenizer that loses text may have no token for a document
        return Passage(number, why, 0.0, [], 0)
    nats = scorer.token_nats(start, stop).tolist()
    bits = float(scores.nll[number] / math.log(2) / max(scores.bytes[number], 1))
    return Passage(number, why, bits, make_boxes(tokenizer, scorer.store[start:stop].tolist(), nats), end - stop)


def make_boxes(tokenizer: Tokenizer, ids: Sequence[int], nats: Sequence[float]) -> list[Box]:
    """Return the text of tokens in whole characters, with the nats of the tokens of each."""
    stream = TextStream(tokenizer)
    boxes: list[Box] = []
    held: list[float] = []
    for token, value in zip(ids, nats, strict=True):
        held += [] if math.isnan(value) else [value]  # a first token that is not predicted
        if text := stream.push(token):
            boxes.append((text, held))
            held = []
    return [*boxes, (stream.flush(), held)] if held else boxes
