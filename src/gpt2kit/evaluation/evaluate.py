"""Scores each candidate on the test set: from checkpoints and documents to results, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.data.build import open_with_bar
from gpt2kit.errors import DataError
from gpt2kit.evaluation import heatmap, scoring
from gpt2kit.evaluation.memorization import Memorization, measure_memorization
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.evaluation.ranks import Ranks
from gpt2kit.evaluation.report import Result
from gpt2kit.evaluation.scoring import Scorer, Windows
from gpt2kit.evaluation.statistics import DocumentScores
from gpt2kit.evaluation.test_set import Candidate, TestSet
from gpt2kit.evaluation.text_stats import TextStats, measure_text
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.sources import find_files


def evaluate(
    candidates: Sequence[Candidate], test_set: TestSet, options: EvaluationOptions, ranks: Ranks
) -> tuple[list[Result], TextStats]:
    """Return each candidate's result, and what the text consists of; on other ranks than the first, neither."""
    stats, results = TextStats(), list[Result]()
    if not ranks.rank:
        corpus = test_set.corpora[0]
        pieces = corpus.reader.read(corpus.paths, hash_range=corpus.share)
        stats = measure_text(pieces, [candidate.info.tokenizer for candidate in candidates], test_set.documents)
    passages: list[tuple[int, str]] = []
    for number, (candidate, store) in enumerate(zip(candidates, test_set.stores, strict=True)):
        gpt2 = scoring.prepare(candidate.load_model(), ranks.device(), options.precision)
        tokens = int(scoring.boundaries(store)[test_set.documents])
        if tokens < 2:
            raise DataError(
                f"{test_set.files[0]}: the tokenizer of {candidate.name} makes no token of this text. Use another text"
            )
        windows = Windows(tokens, candidate.context, options.stride or candidate.context)
        scorer = Scorer(gpt2, store, windows, options.precision)
        nll = scorer.score(options.batch_size, ranks)[: test_set.documents]
        if ranks.rank:
            continue
        sizes = np.column_stack([store.lengths()[: len(nll)], np.array(stats.words, np.int64)])
        scores = DocumentScores(nll, *(sizes + (1 if store.ends else 0)).T)  # a document's end counts as 1 of each
        result = Result(candidate, scores, windows, stats.round_trips[number])
        passages = passages or heatmap.select_documents(scores, candidate.name if len(candidates) > 1 else "")
        tokenizer = candidate.info.tokenizer
        result.passages = [heatmap.make_passage(scorer, tokenizer, scores, *which) for which in passages]
        if options.memorization:
            result.memorization = _measure_memorization(candidate, gpt2, test_set, number, options)
        results.append(result)
    return results, stats


def _measure_memorization(
    candidate: Candidate, gpt2: GPT2, test_set: TestSet, number: int, options: EvaluationOptions
) -> Memorization:
    """Compare with the training text, read as the test text is, without documents that were kept out of training."""
    paths = find_files(list(options.train_files))
    corpus = candidate.corpus(paths, test_set.corpora[0].reader, candidate.train_split)
    training = open_with_bar(corpus, options.cache_dir, "training text")
    tokenizer, fingerprint = candidate.info.tokenizer, candidate.text_fingerprint
    return measure_memorization(gpt2, tokenizer, training, test_set.stores[number], options.seed, fingerprint)
