"""`train_tokenizer.py`: train a tokenizer on text, or take one over; report on it; compare several."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from gpt2kit.errors import DataError, UserError, problems_of, refuse
from gpt2kit.text.reader import Reader, Share
from gpt2kit.text.sources import Place, Report, find_files
from gpt2kit.tokenization import report as reports
from gpt2kit.tokenization import trainers as kinds
from gpt2kit.tokenization.sampling import Sample
from gpt2kit.tokenization.tokenizer import from_plain_json, load, save, to_json
from gpt2kit.tokenization.trainers import EOS, Options

Kind = Literal["bytebpe", "char", "bytefallback", "unigram", "wordpiece", "words", "existing"]
TRAINERS: dict[str, Callable[[Iterable[str], Options], Tokenizer]] = {
    "bytebpe": kinds.train_bytebpe,
    "char": kinds.train_char,
    "bytefallback": kinds.train_sentencepiece("bpe"),
    "unigram": kinds.train_sentencepiece("unigram"),
    "wordpiece": kinds.train_wordpiece,
    "words": kinds.train_words,
}
LOSSES = (
    "wordpiece loses text: runs of spaces and line ends become one space or none, control characters vanish, and a "
    f"word with an unknown character becomes {kinds.UNKNOWN}. Every other kind gives a text back as it was"
)
_MB = 1_000_000
_REPORT_BYTES = 2 * _MB
_LARGEST = 200 * _MB


def train(
    files: list[str] = [],  # noqa: B006
    output_dir: Path | None = None,
    kind: Kind = "bytebpe",
    vocab_size: int | None = None,
    vocab: str | None = None,
    special_tokens: list[str] = [],  # noqa: B006
    parse_special: bool = False,
    min_count: int | None = None,
    max_token_length: int = 24,
    normalizer: Literal["none", "nfc", "nfkc", "lowercase"] = "none",
    sample: int | None = None,
    seed: int = 0,
    reader: Reader | None = None,
    report: Path | None = None,
    compare: list[str] = [],  # noqa: B006
) -> None:
    """Train a tokenizer on text files and write it as a folder that `transformers.AutoTokenizer` loads, too.

    Args:
        files: text files, folders or patterns.
        output_dir: the folder to write; an older tokenizer in it is replaced.
        kind: bytebpe: byte-level byte-pair encoding as in GPT-2. char: one token a character. bytefallback and
            unigram: SentencePiece's two, with byte fallback. wordpiece: as in BERT. words: a text whose words are
            already cut by spaces. existing: one that is there, see --vocab. All that are trained but wordpiece
            hold any text in any language and give it back as it was; what the vocabulary lacks is written as bytes.
            docs/tokenizers.md says what to choose.
        vocab_size: the number of tokens at most; special tokens and the 256 bytes are among them. Default: 8192; for
            char and words as many as the text has.
        vocab: a vocabulary that exists, instead of training. For wordpiece and words: a text file, one token a line.
            For existing: a folder, a tokenizer.json, or a name on the Hugging Face hub. Ids stay as they are;
            `<|endoftext|>` is added after them if it is not there.
        special_tokens: more tokens besides `<|endoftext|>`, such as `<user>`.
        parse_special: a special token's name in a text means the token. Default: it is text like any other.
            `<|endoftext|>` is always text: to end documents there, make it the reader's separator.
        min_count: what occurs less often gets no token. For bytebpe and wordpiece this is about pairs, for char and
            words about characters and words.
        max_token_length: the longest token, for bytebpe in bytes, for bytefallback and unigram in characters.
        normalizer: change text before it is encoded: nfc and nfkc are Unicode's forms. Text then comes
            back changed.
        sample: bytes of text to learn from, drawn evenly over all documents. Default: what about 2 GB of memory
            allow: 200 MB, down to 17 MB the more of it is Chinese, Japanese or Thai; 20 MB for unigram; char: all.
        seed: decides the draw of the sample.
        reader: how the files become documents, such as `--reader.document file`.
        report: train nothing; say how well the tokenizer in this folder fits the --files.
        compare: train nothing that stays; one table for several sizes, kinds, kind:size, or tokenizer folders, such
            as `--compare 4096 8192 char unigram:8192`, measured on text that was held out.
    """
    options = Options(vocab_size, tuple(special_tokens), min_count, max_token_length, normalizer)
    _check(kind, vocab, options, sample, parse_special)
    kinds.check(kind, options)
    if report is not None:
        print(reports.describe(reports.measure(load(report), _drawn(files, reader, 10 * _REPORT_BYTES, seed)), report))
        return
    if compare:
        print(_compared(compare, kind, options, files, reader, sample, seed))
        return
    if output_dir is None:
        raise UserError("--output_dir: missing. Name the folder to write")
    if vocab is not None:
        tokenizer = adopted(kind, vocab, options)
        texts = _drawn(files, reader, _REPORT_BYTES, seed) if files else None
    else:
        tokenizer, texts = trained(kind, options, _documents(files, reader), sample, seed)
    save(finished(tokenizer, parse_special, options.specials), output_dir)
    tokenizer = load(output_dir)
    many = tokenizer.get_vocab_size()
    asked = None if vocab is not None else _sized(kind, options).vocab_size
    fewer = f" (the text yields no more than that; asked for {asked:,})" if asked and many < asked else ""
    print(f"{output_dir}: {many:,} tokens{fewer}")
    if kind == "wordpiece":
        print(LOSSES)
    if texts is not None:
        texts.shrink(_REPORT_BYTES)
        print(reports.describe(reports.measure(tokenizer, texts), output_dir))


def _check(kind: str, vocab: str | None, options: Options, sample: int | None, parse_special: bool) -> None:
    tokens = list(options.special_tokens)
    rules = {
        f"--kind {kind}: has no --vocab; wordpiece, words and existing have": vocab is not None
        and kind not in ("wordpiece", "words", "existing"),
        "--kind existing: give --vocab, a folder, a tokenizer.json or a name on the hub": vocab is None
        and kind == "existing",
        "--vocab: nothing is trained with it; leave --vocab_size, --min_count and --sample out": vocab is not None
        and (options.vocab_size or options.min_count or sample) is not None,
        "--special_tokens: a token is empty or stands twice": "" in tokens or len({EOS, *tokens}) <= len(tokens),
        "--normalizer: an existing tokenizer has its own. Leave it out": kind == "existing"
        and options.normalizer != "none",
        "--parse_special: words has none; a word in the text is a word of the vocabulary": parse_special
        and kind == "words",
        f"--min_count {options.min_count}: must be at least 1": options.min_count is not None and options.min_count < 1,
        f"--max_token_length {options.max_token_length}: must be at least 2": options.max_token_length < 2,
        f"--sample {sample}: must be at least 1": sample is not None and sample < 1,
    }
    refuse(problems_of(rules))


def _documents(files: list[str], reader: Reader | None) -> Iterator[str]:
    if not files:
        raise UserError("--files: missing. Name text files, folders or patterns")
    return read_documents(find_files(files), reader or Reader())


def read_documents(paths: Sequence[Place], reader: Reader, share: Share | None = None) -> Iterator[str]:
    """The documents of all files; an error if there is none."""
    report, empty = Report(), True
    for document in reader.read(paths, report, share):
        empty = False
        yield document
    if empty:
        raise DataError(f"{paths[0]}{' and the others' if paths[1:] else ''}: no text in it. Name files that hold text")
    for line in report.lines():
        print(f"note   {line}", file=sys.stderr)


def _drawn(files: list[str], reader: Reader | None, budget: int, seed: int) -> Sample:
    return Sample(budget, seed).fill(_documents(files, reader))


def trained(
    kind: str, options: Options, documents: Iterator[str], sample: int | None, seed: int
) -> tuple[Tokenizer, Sample]:
    """A new tokenizer, and some of the text to measure it by."""
    if kind == "char" and sample is None:
        some = Sample(_REPORT_BYTES, seed)
        return TRAINERS[kind](some.watch(documents), options), some
    texts = Sample(sample or _LARGEST, seed).fill(documents)
    if sample is None:
        texts.shrink(_budget(kind, texts.unspaced))
    if len(texts) < texts.seen:
        print(
            f"learning from {reports.amount(len(texts))} of the text's {reports.amount(texts.seen)}, drawn evenly; "
            "--sample BYTES decides otherwise"
        )
    return TRAINERS[kind](texts, _sized(kind, options)), texts


def _budget(kind: str, unspaced: float) -> int:
    """Bytes to learn from, so that about 2 GB of memory and a minute or so are enough.

    Where no spaces part the words, a pair encoder keeps nearly each stretch between two marks as a word of its own:
    100 MB of memory for 1 MB of Chinese, but 3.5 MB for 1 MB of English or Python, were measured for bytebpe.
    """
    if kind in ("bytebpe", "bytefallback"):
        return int(1700 * _MB / (100 * unspaced + 3.5 * (1 - unspaced)))
    return 20 * _MB if kind == "unigram" else _LARGEST


def _sized(kind: str, options: Options) -> Options:
    """The options with the kind's own default of vocab_size."""
    return options if options.vocab_size or kind in ("char", "words") else replace(options, vocab_size=kinds.VOCAB_SIZE)


def _compared(
    candidates: list[str],
    kind: str,
    options: Options,
    files: list[str],
    reader: Reader | None,
    sample: int | None,
    seed: int,
) -> str:
    """A table of several tokenizers that learn from the same text and are measured on the same other text."""
    plans = [_plan(candidate, kind, options) for candidate in candidates]
    learn, held = Sample(sample or _LARGEST, seed), Sample(_REPORT_BYTES, seed)
    for number, document in enumerate(_documents(files, reader)):
        (held if number % 10 == 9 else learn).offer(document)
    apart = len(held) > 0
    learn.shrink(sample or min(_budget(other, learn.unspaced) for _, other, _ in plans))
    held.shrink(_REPORT_BYTES)
    measured = {}
    for name, other, wanted in plans:
        found = load(name) if other == "existing" else TRAINERS[other](learn, wanted)
        found.encode_special_tokens = True
        measured[name] = reports.measure(found, held if apart else learn)
    learnt = f"each learnt from the same {reports.amount(len(learn))}"
    where = f"measured on {reports.amount(len(held))} that none had seen" if apart else "and was measured on them"
    return f"{reports.table(measured)}\n{learnt}, {where}\n{reports.suggest(measured)}"


def _plan(candidate: str, kind: str, options: Options) -> tuple[str, str, Options]:
    """The name, the kind and the options of one word after --compare."""
    other, _, count = candidate.rpartition(":") if ":" in candidate else (candidate, "", "")
    if candidate.isdecimal():
        other, count = kind, candidate
    if other in TRAINERS and (not count or count.isdecimal()):
        wanted = replace(options, vocab_size=int(count)) if count else options
        wanted = _sized(other, wanted)
        kinds.check(other, wanted)
        return f"{other}:{wanted.vocab_size}" if wanted.vocab_size else other, other, wanted
    if Path(candidate).exists():
        return candidate, "existing", options
    raise UserError(
        f"--compare {candidate}: no size, kind, kind:size or tokenizer folder. Kinds: {', '.join(TRAINERS)}"
    )


def adopted(kind: str, vocab: str, options: Options) -> Tokenizer:
    """A tokenizer that exists already, or one of a vocabulary that does."""
    if kind == "existing":
        found = json.loads(to_json(from_plain_json(kinds.existing_json(vocab), vocab)))
        # A GPT-2 reads the ids of the text alone: no [CLS] and [SEP] around it, nothing cut off or filled up.
        found |= {"post_processor": None, "truncation": None, "padding": None}
        tokenizer = from_plain_json(json.dumps(found), vocab)
        tokenizer.add_special_tokens(kinds.added(options.specials))
        return tokenizer
    return {"wordpiece": kinds.wordpiece, "words": kinds.words}[kind](kinds.read_vocabulary(vocab), options)


def finished(tokenizer: Tokenizer, parse_special: bool, specials: list[str]) -> Tokenizer:
    """With special tokens that a text can name, if that is wanted; refuse one that would not come back."""
    for token in specials:
        if tokenizer.decode([tokenizer.token_to_id(token) or 0], skip_special_tokens=False).strip() != token.strip():
            raise UserError(f"--special_tokens {token}: would not decode to itself. Use ASCII signs, such as <user>")
    parts = json.loads(to_json(tokenizer))
    for added in parts["added_tokens"]:
        added["special"] = added["content"] == EOS or (added["special"] and not parse_special)
    return Tokenizer.from_str(json.dumps(parts))
