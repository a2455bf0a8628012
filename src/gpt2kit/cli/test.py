"""Implements `gpt2kit test`: loss, perplexity and bits per byte of checkpoints on text."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import Problems, UserError, refuse
from gpt2kit.evaluation.options import EvaluationOptions, evaluation_problems
from gpt2kit.files import write_text
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import find_files

logger = logging.getLogger(__name__)


def test(
    ckpt_path: Positional[list[str]],
    files: list[str] | None = None,
    reader: Reader | None = None,
    options: EvaluationOptions = EvaluationOptions(),
    json_output: str | None = None,
    config: list[str] | None = None,
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Print loss, perplexity and bits per byte of a checkpoint on text, or compare several.

    Args:
        ckpt_path: `last` (the newest run), names or folders of runs (their best checkpoint), .ckpt files, Hugging Face
            GPT-2 folders, adapters, hf://OWNER/NAME, or checkpoints of nanoGPT with --tokenizer. Several are compared
            on the same documents, even if their tokenizers differ.
        files: Text files, folders, patterns or URLs. Default: the run's own test text, or texts.
        reader: How files become documents. Default: as in training.
        json_output: Write every figure with full precision to this file; -: to standard output, instead of the table.
        config: Accepted but not needed: a checkpoint holds its settings.
    """
    json_path = None if json_output in (None, "-") else Path(str(json_output))
    outputs = {"json_output": json_path, "html": options.html, "surprisal": options.surprisal}
    problems = Problems(evaluation_problems(options))
    problems.check(
        len(ckpt_path) == 1 or not options.surprisal, "--surprisal: takes one checkpoint. Test them one by one"
    )
    for (name, path), (other, other_path) in itertools.combinations(outputs.items(), 2):
        is_same = path is not None and path == other_path
        problems.check(not is_same, f"--{name} {path}, --{other} {path}: must not be the same file")
    for name, path in outputs.items():
        reason = "" if path is None else why_not_writable(path)
        problems.check(not reason, f"--{name} {path}: {reason}")
    refuse(problems.messages)
    if reader and reader.drop_near_duplicates:
        logger.info("--reader.drop_near_duplicates: no effect here, since only training text is left out")
    if options.train_files:
        find_files(list(options.train_files))  # report a wrong name before the test, not after it
    from gpt2kit.evaluation import summary
    from gpt2kit.evaluation.evaluate import evaluate  # here, so that --help does not import torch
    from gpt2kit.evaluation.report import Report
    from gpt2kit.evaluation.scoring import join_ranks
    from gpt2kit.evaluation.test_set import open_candidates, open_test_sets

    with join_ranks() as ranks:
        if config:
            logger.info("--config is not needed: a checkpoint holds its model, tokenizer and reader")
        candidates = open_candidates(ckpt_path, reader is not None, options.stride, foreign)
        test_sets = open_test_sets(candidates, files, reader, options)
        if options.surprisal and len(test_sets) > 1:
            raise UserError("--surprisal: takes one text, and the run has several. Name the files of one with --files")
        reports = {}
        for test_set in test_sets:
            label = f"{test_set.name}: " if test_set.name else ""
            for note in test_set.stores[0].notes:
                logger.info(f"test text: {label}{note}")
            results, stats = evaluate(candidates, test_set, options, ranks)
            if not ranks.rank:
                reports[test_set.name] = Report(results, test_set, stats, options, ranks)
                for note in reports[test_set.name].notes:
                    logger.info(label + note)
        if ranks.rank:
            return
        print(summary.to_json(reports) if json_output == "-" else summary.to_text(reports) + "\n", end="")
        if json_path:
            write_text(json_path, summary.to_json(reports))
        summary.write_to_runs(reports)
        if options.html:
            write_text(options.html, summary.to_page(reports))


def why_not_writable(path: Path) -> str:
    """Return why a file cannot be written; empty if it can. Checked before a test, which may take hours."""
    if path.is_dir():
        return "is a folder. Name a file"
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        return f"{parent} is not a folder"
    return "" if os.access(parent, os.W_OK) else f"{parent} is not writable"
