"""Implements `gpt2kit tokenize`: train or adopt a tokenizer, report how it fits a text, compare several."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gpt2kit.cli.other_names import RENAMED_KINDS, Rename, log_renames, new_kind
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import UserError
from gpt2kit.text.reader import Reader, Selection, batched
from gpt2kit.text.sources import find_files
from gpt2kit.tokenization import report as reports
from gpt2kit.tokenization import train as training
from gpt2kit.tokenization.existing import adopt
from gpt2kit.tokenization.options import UNKNOWN, TokenizerSpec, check
from gpt2kit.tokenization.sampling import Sample
from gpt2kit.tokenization.tokenizer import load, save
from gpt2kit.tokenization.train import LARGEST_SAMPLE, REPORT_BYTES, TRAINERS

logger = logging.getLogger(__name__)

LOSSES = (
    "wordpiece loses text: {spaces} become one space or none, control characters vanish, and a "
    f"word with an unknown character becomes {UNKNOWN}. All other kinds are lossless"
)


def train_tokenizer(
    files: Positional[list[str]] = [],  # noqa: B006
    output_dir: Path | None = None,
    spec: TokenizerSpec = TokenizerSpec(),
    reader: Reader | None = None,
    report: Path | None = None,
    compare: list[str] = [],  # noqa: B006
) -> None:
    """Train a tokenizer on text files and write it as a folder that `transformers.AutoTokenizer` can load.

    Args:
        files: Text files, folders or patterns.
        output_dir: The folder to write; a tokenizer in it is replaced.
        reader: How files become documents, such as `--reader.document file`.
        report: Train nothing; report how well the tokenizer in this folder fits the --files.
        compare: Print a table of several sizes, kinds, kind:size, or tokenizer folders, such as `--compare 4096 8192
            char spm-unigram:8192`, measured on held-out text. No tokenizer is written.
    """
    check(spec)
    if reader and reader.drop_near_duplicates:
        logger.info("--reader.drop_near_duplicates: no effect here, since a tokenizer may see all text")
    if report is not None:
        texts = _sample(files, reader, 10 * REPORT_BYTES, spec.seed)
        print(reports.describe(reports.measure(load(report), texts), report))
        print(_suggest(texts.seen))
        return
    if compare:
        print(_compare(compare, spec, _documents(files, reader)))
        return
    if output_dir is None:
        raise UserError("--output_dir: missing. Name the folder to write")
    if spec.vocab is not None:
        tokenizer = adopt(spec)
        measured_on = _sample(files, reader, REPORT_BYTES, spec.seed) if files else None
    else:
        tokenizer, measured_on = training.train(spec, _documents(files, reader))
    save(training.with_special_tokens(tokenizer, spec), output_dir)
    tokenizer = load(output_dir)
    size = tokenizer.get_vocab_size()
    largest = None if spec.vocab is not None else spec.max_size
    fewer = f" (the text yields no more; --vocab_size is {largest:,})" if largest and size < largest else ""
    print(f"{output_dir}: {size:,} tokens{fewer}")
    if spec.kind == "wordpiece":
        print(LOSSES.format(spaces="runs of spaces" if spec.newline else "runs of spaces and line ends"))
    if measured_on is not None:
        measured_on.shrink(REPORT_BYTES)
        print(reports.describe(reports.measure(tokenizer, measured_on), output_dir))
        print(_suggest(measured_on.seen))


def _suggest(size: int) -> str:
    """Return the tokenizer that trainer.py trains by default on a text of this size."""
    spec = training.default_spec(size)
    return (
        f"default of trainer.py for {reports.format_bytes(size)} of text: {spec.kind}, vocab_size {spec.vocab_size:,}"
    )


def _documents(files: Sequence[str], reader: Reader | None) -> Iterator[str]:
    if not files:
        raise UserError("--files: missing. Name text files, folders or patterns")
    return training.read_documents(Selection(find_files(list(files)), reader or Reader()))


def _sample(files: Sequence[str], reader: Reader | None, size: int, seed: int) -> Sample:
    return Sample(size, seed).fill(_documents(files, reader))


def _compare(candidates: Sequence[str], spec: TokenizerSpec, documents: Iterator[str]) -> str:
    """Return a table of tokenizers that are trained on the same text and measured on the same held-out text."""
    old_kinds = (candidate.partition(":")[0] for candidate in candidates)
    renames = [Rename("--compare", kind, new_kind(kind)) for kind in old_kinds if kind in RENAMED_KINDS]
    log_renames(renames)
    specs = dict(_candidate(candidate, spec) for candidate in candidates)
    train_texts, held_out = Sample(spec.max_train_bytes or LARGEST_SAMPLE, spec.seed), Sample(REPORT_BYTES, spec.seed)
    for number, passage in enumerate(_passages(documents)):
        (held_out if number % 10 == 9 else train_texts).offer(passage)
    sizes = (training.sample_size(candidate.kind, train_texts.spaceless_fraction) for candidate in specs.values())
    train_texts.shrink(spec.max_train_bytes or min(sizes))
    held_out.shrink(REPORT_BYTES)
    measured_on = held_out if len(held_out) else train_texts
    measured = {}
    for name, candidate in specs.items():
        tokenizer = load(name) if candidate.kind == "existing" else TRAINERS[candidate.kind](train_texts, candidate)
        tokenizer.encode_special_tokens = True
        measured[name] = reports.measure(tokenizer, measured_on)
    where = (
        f"measured on {reports.format_bytes(len(held_out))} of held-out text"
        if len(held_out)
        else "measured on it as well"
    )
    trained_on = f"each trained on the same {reports.format_bytes(len(train_texts))} and {where}"
    return f"{reports.table(measured)}\n{trained_on}\n{reports.suggest(measured)}"


def _passages(documents: Iterator[str]) -> Iterator[str]:
    """Cut documents at line ends into passages of about 1,024 characters, so that part of a long one is held out."""
    for document in documents:
        for lines in batched(document.splitlines(keepends=True), 1024):
            yield "".join(lines)


def _candidate(candidate: str, spec: TokenizerSpec) -> tuple[str, TokenizerSpec]:
    """Return the name and the options of one argument after --compare."""
    kind, _, size = candidate.rpartition(":") if ":" in candidate else (candidate, "", "")
    kind = new_kind(kind)
    if candidate.isdecimal():
        kind, size = spec.kind, candidate
    if kind in TRAINERS and (not size or size.isdecimal()):
        spec = replace(spec, kind=kind, vocab_size=int(size) if size else spec.vocab_size)
        check(spec)
        return f"{kind}:{spec.max_size}" if spec.max_size else kind, spec
    if Path(candidate).exists():
        return candidate, replace(spec, kind="existing")
    raise UserError(
        f"--compare {candidate}: not a size, kind, kind:size or tokenizer folder. Kinds: {', '.join(TRAINERS)}"
    )
