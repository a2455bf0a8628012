"""`test.py`: what checkpoints make of a text. Every token is predicted exactly once; figures are ratios of sums."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit import files as durable
from gpt2kit.data import build
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, UserError, problems_of, refuse
from gpt2kit.evaluation import heatmap, report, scoring, test_set
from gpt2kit.evaluation.heatmap import Passage
from gpt2kit.evaluation.memorization import Copies, compare, describe
from gpt2kit.evaluation.options import Options
from gpt2kit.evaluation.report import Result
from gpt2kit.evaluation.scoring import Ranks, Windows
from gpt2kit.evaluation.statistics import Sums
from gpt2kit.evaluation.test_set import Subject, Text
from gpt2kit.evaluation.text_stats import Reading, RoundTrip, read
from gpt2kit.model.config import parameter_count
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runs import folder, lifecycle
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import find_files

Pages = dict[str, list[Passage]]
"""The passages that a page shows, by the names of the checkpoints."""


def evaluate(
    options: Options,
    ckpt_path: list[str],
    files: list[str] | None,
    reader: Reader | None,
    json: str | None,
    config: list[str] | None,
) -> None:
    """Evaluate checkpoints on text, print or write the figures, and keep them in the run's folder."""
    refuse(_problems(options, json))
    if options.train_files:
        find_files(options.train_files)  # a wrong name is better told now
    with scoring.ranks() as group, _only_first(group):
        if config:
            print("note   --config is not needed: a checkpoint holds its model, tokenizer and reader", file=sys.stderr)
        them = test_set.open_all(ckpt_path, with_reader=reader is None)
        refuse(_too_long(options, them))
        text = test_set.text_of(them, files, reader, options.cache_dir)
        for note in text.stores[0].notes:
            print(f"note   test text: {note}", file=sys.stderr)
        results, pages, told = _tested(them, text, options, group)
        if group.rank == 0:
            _tell(results, pages, told, options, json)


def _problems(options: Options, json: str | None) -> list[str]:
    rules = {
        f"--batch_size {options.batch_size}: must be at least 1": options.batch_size < 1,
        f"--seed {options.seed}: must be from 0 to 2^63 - 1": not 0 <= options.seed < 1 << 63,
        f"--json {json}, --html {options.html}: one file for both": json is not None
        and options.html is not None
        and Path(json) == options.html,
        f"--stride {options.stride}: must be at least 1": options.stride is not None and options.stride < 1,
        f"--max_tokens {options.max_tokens}: must be at least 1": options.max_tokens is not None
        and options.max_tokens < 1,
        "--copies: needs the text that the model was trained on. Give it as --train_files": options.copies
        and not options.train_files,
        "--train_files: is for --copies. Name that, too, or leave it out": bool(options.train_files)
        and not options.copies,
    }
    outputs = {"--html": options.html, "--json": None if json in (None, "-") else Path(str(json))}
    found = [f"{name} {path}: {why}" for name, path in outputs.items() if path and (why := _unwritable(path))]
    return problems_of(rules) + found


def _unwritable(path: Path) -> str:
    """Why nothing can be written there; better said before hours of testing than after."""
    if path.is_dir():
        return "is a folder. Name a file"
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        return f"{above} is no folder"
    return "" if os.access(above, os.W_OK) else f"nothing can be written to {above}"


def _too_long(options: Options, them: list[Subject]) -> list[str]:
    stride = options.stride or 1
    return [
        f"--stride {stride}: more than the context of {one.name}, {one.context}" for one in them if stride > one.context
    ]


@contextlib.contextmanager
def _only_first(group: Ranks) -> Iterator[None]:
    """Other ranks than the first say nothing."""
    with contextlib.ExitStack() as stack:
        if group.rank:
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            yield
        except UserError as error:
            if group.rank:
                time.sleep(5)  # torchrun ends all ranks when one ends; the first is to tell what is wrong
                sys.exit(error.exit_code)
            raise


def _tested(
    them: list[Subject], text: Text, options: Options, group: Ranks
) -> tuple[list[Result], Pages, dict[str, Any]]:
    """What each subject makes of the text, the passages for the page, and what the text is."""
    documents, tokens, partial = test_set.limited(text.stores, options.max_tokens)
    reading = Reading()
    if group.rank == 0:
        first = text.corpora[0]
        pieces = first.reader.read(first.paths, hash_range=first.share)
        reading = read(pieces, [one.tokenizer for one in them], documents)
    results: list[Result] = []
    pages: Pages = {}
    shown: list[tuple[int, str]] = []
    for number, (one, store) in enumerate(zip(them, text.stores, strict=True)):
        gpt2 = scoring.prepare(one.model(), group.device(), options.precision)
        if tokens[number] < 2:
            raise DataError(
                f"{text.files[0]}: the tokenizer of {one.name} makes no token of this text. Take another one"
            )
        windows = Windows(tokens[number], one.context, options.stride or one.context)
        nll = scoring.score(gpt2, store, windows, options.batch_size, options.precision, group)[:documents]
        if group.rank:
            continue
        sums = _sums(nll, store, windows, reading)
        result = _result(one, gpt2, sums, windows, reading.trips[number])
        results.append(result)
        shown = shown or heatmap.chosen(sums, one.name if len(them) > 1 else "")
        pages[one.name] = [
            heatmap.passage(gpt2, one.tokenizer, store, windows, sums, options.precision, *which) for which in shown
        ]
        if options.copies:
            result.copies = _copies(gpt2, one, store, text, options)
    return results, pages, _told(text, results[0].sums, reading, partial, options, group) if results else {}


def _sums(nll: NDArray[np.float64], store: TokenStore, windows: Windows, reading: Reading) -> Sums:
    """Nats and sizes of the tested documents, each with its end; of one that is cut, in proportion to its tokens."""
    end = 1 if store.ends else 0
    sizes = np.concatenate([store.lengths()[: len(nll)], reading.words[:, None]], 1) + end
    predicted = windows.tokens - 1
    if len(nll) == 1 and predicted < sizes[0, 0]:
        sizes = np.round(sizes * (predicted / sizes[0, 0])).astype(np.int64)
    return Sums(nll, *sizes.T)


def _result(one: Subject, gpt2: GPT2, sums: Sums, windows: Windows, trip: RoundTrip) -> Result:
    return Result(
        one.name,
        str(one.file),
        sums,
        (windows.least_context, windows.context),
        windows.stride,
        int(gpt2.shape["vocab_size"]),
        parameter_count(gpt2.shape),
        trip,
        one.append_eos,
        gpt2.document_start is not None,
    )


def _copies(gpt2: GPT2, one: Subject, store: TokenStore, text: Text, options: Options) -> Copies:
    """The training text is read as the test text is; shares of it that it was not trained on are left out."""
    corpus = text.corpora[0]
    training = test_set.corpus_of(one, find_files(options.train_files), one.reader or corpus.reader, one.train_share)
    found = build.open_with_bar(training, options.cache_dir, "training text")
    return compare(gpt2, one.tokenizer, found, store, options.seed, one.fingerprint)


def _told(text: Text, sums: Sums, reading: Reading, partial: str, options: Options, group: Ranks) -> dict[str, Any]:
    """What the text is, and how it was read; ends of documents are not among its bytes, characters and words."""
    end = 1 if text.stores[0].ends else 0
    cut = len(sums.nll) == 1 and int(sums.tokens[0]) < int(text.stores[0].lengths()[0, 0]) + end
    ends = len(sums.nll) if text.stores[0].ends and not cut else 0
    return {
        "files": text.files,
        "share": text.share.high - text.share.low if text.share else 1.0,
        "reader": text.corpora[0].reader.identity(),
        "hash": text.hash,
        "documents": len(sums.nll),
        "bytes": int(sums.bytes.sum()) - ends,
        "characters": int(sums.characters.sum()) - ends,
        "words": int(sums.words.sum()) - ends,
        "word_unit": reading.unit,
        "partial": partial,
        "precision": options.precision,
        "device": group.device(),
        "ranks": group.world_size,
    }


def _tell(results: list[Result], pages: Pages, text: dict[str, Any], options: Options, json: str | None) -> None:
    rows = report.figures(results, options.seed)
    notes = report.notes(rows, text)
    for note in notes:
        print(f"note   {note}", file=sys.stderr)
    written = report.as_json(rows, text, notes, dataclasses.asdict(options))
    if json == "-":
        print(written, end="")
    else:
        print(report.of_one(rows[0], text) if len(rows) == 1 else report.of_many(rows, text))
        for result in report.ranked(results):
            if result.copies:
                print(f"\n{result.name}\n{describe(result.copies)}")
        if json is not None:
            durable.write_text(Path(json), written)
    for row, result in zip(rows, [*report.ranked(results)], strict=True):
        _keep(row, Path(result.file), pages[result.name], text, notes, options)
    if options.html:
        sections = [(row["checkpoint"], report.of_one(row, text), pages[row["checkpoint"]]) for row in rows]
        durable.write_text(options.html, heatmap.page(sections))


def _keep(
    row: dict[str, Any],
    file: Path,
    passages: list[Passage],
    text: dict[str, Any],
    notes: list[str],
    options: Options,
) -> None:
    """Leave the figures of a run's checkpoint in the run's folder, for plot.py's report; not those of a quick look."""
    run = lifecycle.run_of(file)
    if text["partial"] or run is None or not (run / folder.METRICS).is_file():
        return
    shown = [dataclasses.asdict(passage) for passage in passages]
    with contextlib.suppress(OSError):  # someone else's run
        found = report.as_json([row], text, notes, dataclasses.asdict(options), passages=shown)
        durable.write_text(run / folder.TEST, found)
