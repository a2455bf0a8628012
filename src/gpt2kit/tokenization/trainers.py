"""The kinds of tokenizer: each function makes one from documents, or from a vocabulary that is already there.

Every kind becomes one `tokenizers.Tokenizer`, so that one JSON holds all of it and encodes the same everywhere. All
but wordpiece are lossless: what a vocabulary lacks is written as bytes, and decoding gives back the very text.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gpt2kit.errors import DataError, UserError
from gpt2kit.tokenization.sampling import count_characters

EOS = "<|endoftext|>"
"""Ends each document; also where a text begins, as in GPT-2."""

UNKNOWN = "[UNK]"
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_LINE = 1 << 12
VOCAB_SIZE = 8192
"""Tokens, unless a number is asked for, of the kinds that do not take as many as the text has."""
_LONGEST_RUN = 256
_RUN = re.compile(rf"(?<!\S)\S{{{_LONGEST_RUN + 1},}}")
_HAN_AND_MARKS = r"^ (?=[\p{Han}\p{Hiragana}\p{Katakana}，。！？；：、）」』》〉…])"


Kind = Literal["bytebpe", "char", "bytefallback", "unigram", "wordpiece", "words", "existing"]


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer to train from text, or to adopt. The options of train_tokenizer.py, and of `data.tokenizer`."""

    kind: Kind = "bytebpe"
    """bytebpe: byte-level byte-pair encoding, as in GPT-2. char: one token per character. bytefallback, unigram:
    SentencePiece's two, with byte fallback. wordpiece: as in BERT. words: for text whose words are separated by spaces.
    existing: a tokenizer that exists, see vocab. Every kind that is trained, except wordpiece, encodes any text in any
    language without loss. docs/tokenizers.md says which to choose."""
    vocab_size: int | None = None
    """Maximum number of tokens, including special tokens and the 256 bytes. Default: 8192; for char and words as many
    as the text has."""
    vocab: str | None = None
    """An existing vocabulary, instead of training. For wordpiece and words: a text file with one token per line. For
    existing: a folder, a tokenizer.json, or a name on the Hugging Face hub. Ids are kept; `<|endoftext|>` is added
    after them if it is missing."""
    special_tokens: Sequence[str] = ()
    """More special tokens besides `<|endoftext|>`, such as `<user>`."""
    parse_special: bool = False
    """A special token's name in a text means the token. Default: it is encoded as ordinary text. `<|endoftext|>` is
    always ordinary text: to end documents there, make it the reader's separator."""
    min_count: int | None = None
    """Ignore what occurs less often: pairs for bytebpe and wordpiece, characters for char, words for words."""
    max_token_length: int = 24
    """Length of the longest token: in bytes for bytebpe, in characters for bytefallback and unigram."""
    normalizer: Literal["none", "nfc", "nfkc", "lowercase"] = "none"
    """Change text before it is encoded: nfc and nfkc are Unicode's normal forms. Decoded text is then changed, too."""
    sample: int | None = None
    """Bytes of text to train on, sampled evenly from all documents. Default: what about 2 GB of memory allow: 200 MB,
    down to 17 MB the more of it is Chinese, Japanese or Thai; 20 MB for unigram; all of it for char."""
    seed: int = 0
    """Random seed of the sample."""

    @property
    def specials(self) -> list[str]:
        """The special tokens, the end of document first."""
        return [EOS, *self.special_tokens]


def check(spec: TokenizerSpec) -> None:
    """Raise if this kind does not support an option, before any text is read."""
    kind = spec.kind
    more = {"wordpiece": (2, f"{UNKNOWN}, a character"), "bytefallback": (273, "256 bytes, 17 more")}
    count, what = {**more, "unigram": more["bytefallback"]}.get(kind, (256, "256 bytes"))
    least = count + len(spec.specials)
    if spec.vocab_size is not None and spec.vocab_size < least:
        what = ", ".join([what, *spec.specials])
        raise UserError(f"--vocab_size {spec.vocab_size}: {kind} needs at least {least} ({what})")
    if kind in ("bytefallback", "unigram"):
        if importlib.util.find_spec("sentencepiece") is None:
            raise UserError(f"--kind {kind}: needs SentencePiece. pip install 'sentencepiece>=0.2'")
        if spec.min_count is not None:
            raise UserError(f"--min_count: {kind} (SentencePiece) has no such limit. Leave it out")
    if kind in ("char", "words", "wordpiece") and spec.max_token_length != TokenizerSpec.max_token_length:
        raise UserError(f"--max_token_length: {kind} has no such limit. Leave it out")
    if kind == "words" and spec.normalizer != "none":
        raise UserError(f"--normalizer {spec.normalizer}: words encodes the text as it is. Leave it out")


def train_bytebpe(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Byte-level byte-pair encoding, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    _normalize(tokenizer, spec)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size or VOCAB_SIZE,
        special_tokens=added(spec.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=spec.min_count or 0,
        max_token_length=spec.max_token_length + 1,  # the library stays below it
        show_progress=False,
    )
    tokenizer.train_from_iterator(_broken(documents), trainer)
    return tokenizer


def train_char(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """One token a character, the most frequent first; any other character is written as its bytes."""
    first = [*spec.specials, *_BYTES]
    room = spec.vocab_size - len(first) if spec.vocab_size else None
    counts = count_characters(_normalized(documents, spec))
    tokens = [character for character, count in counts.items() if count >= (spec.min_count or 1)][:room]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*first, *tokens])}, [], byte_fallback=True))
    return _from_bytes(_normalize(tokenizer, spec), spec.specials)


def train_words(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """One token a word of a text whose words have spaces between them; any other word is written as its bytes."""
    first = len(spec.specials) + 256
    room = spec.vocab_size - first if spec.vocab_size else None
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document.split(" "))
    del counts[""]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return words([word for word in ordered if counts[word] >= (spec.min_count or 1)][:room], spec)


def words(vocabulary: list[str], spec: TokenizerSpec) -> Tokenizer:
    """A tokenizer of the words of a vocabulary, which keep their places in it as their ids."""
    # A word's token begins with the space before it; the text's first word gets one, which decoding takes off again.
    taken = {f" {word}": i for i, word in enumerate(vocabulary)}
    for token in [*spec.specials, *_BYTES]:
        taken.setdefault(token, len(taken))
    tokenizer = Tokenizer(models.BPE(taken, [], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    _from_bytes(tokenizer, spec.specials)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def train_wordpiece(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """BERT's WordPiece: words and marks apart, Han characters one by one, what is unknown as [UNK]."""
    first = [EOS, UNKNOWN, *spec.special_tokens]
    size = spec.vocab_size or VOCAB_SIZE
    tokenizer = _bert(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN), spec)
    counts = count_characters(tokenizer.normalizer.normalize_str(document) for document in documents)
    alphabet: list[str] = []
    inner: list[str] = []  # the trainer gives `##x` ids in the order of a hash, and knows no limit: we give them
    for character in counts:
        if character.isspace():
            continue
        whole = len(tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + character))) == 1
        if len(first) + len(alphabet) + len(inner) + 1 + whole > size:
            break
        alphabet.append(character)
        inner += [f"##{character}"] * whole
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*first, *sorted(inner)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        min_frequency=spec.min_count or 0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_broken(documents), trainer)
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in first]
    return Tokenizer.from_str(json.dumps(trained))


def wordpiece(vocabulary: list[str], spec: TokenizerSpec) -> Tokenizer:
    """BERT's tokenizer with an existing vocabulary (vocab.txt), whose places are the ids.

    A vocabulary without any capital letter is for text in lower case, as BERT's uncased ones are.
    """
    special = [token for token in vocabulary if re.fullmatch(r"\[[A-Za-z0-9_]+\]", token)]
    if UNKNOWN not in special:
        raise DataError(f"--vocab: no {UNKNOWN} in it, so it is no WordPiece vocabulary. Give one token a line")
    lower = not any(token != token.lower() for token in vocabulary if token not in special)
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = _bert(models.WordPiece(ids, unk_token=UNKNOWN), spec, lower)
    tokenizer.add_special_tokens(added([*special, *spec.specials]))
    return tokenizer


def train_sentencepiece(model_type: str) -> Callable[[Iterable[str], TokenizerSpec], Tokenizer]:
    """The trainer of SentencePiece's `bpe` or `unigram`, both with byte fallback."""

    def train(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
        return from_sentencepiece(model_type, sentencepiece_model(model_type, documents, spec), spec)

    return train


def sentencepiece_model(model_type: str, documents: Iterable[str], spec: TokenizerSpec) -> bytes:
    """Train SentencePiece (`bpe` or `unigram`); its model as bytes."""
    import sentencepiece

    # U+2581 is a space to SentencePiece, U+2585 the unknown, a tab its separator.
    first = 257 + len(spec.specials)
    size = spec.vocab_size or VOCAB_SIZE
    counts = count_characters(_normalized(documents, spec))
    # The alphabet is 99.95 % of the text, but at most half of the room; the rest is left to the bytes. SentencePiece's
    # own limit knows no number and refuses to leave out much, so the text is cut at what is left out.
    room, total, seen = (size - first) // 2, sum(counts.values()), 0
    left_out = dict.fromkeys(map(ord, "\t\0\u2581\u2585"), "\n")
    for rank, (character, count) in enumerate(counts.items()):
        if rank >= room or seen >= 0.9995 * total:
            left_out[ord(character)] = "\n"
        seen += count
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(_normalized(documents, spec), left_out),
            model_writer=written,
            model_type=model_type,
            vocab_size=size - len(spec.specials),
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=spec.max_token_length,
            max_sentence_length=8 * _LINE,
            hard_vocab_limit=False,
            num_threads=16,  # the sums of unigram depend on it, so it is the same on every machine
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"{model_type}: SentencePiece cannot learn from this text ({error}). Give more text") from None
    return written.getvalue()


def from_sentencepiece(model_type: str, model: bytes, spec: TokenizerSpec) -> Tokenizer:
    """The same tokenizer as a model of `sentencepiece_model`, id for id, with the special tokens after its pieces.

    Spaces are spaces instead of U+2581, so that a text may hold that sign, too. Text is cut where no piece can cross
    (before a space that follows something else), which changes no id and makes encoding fast.
    """
    import sentencepiece

    found = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [found.id_to_piece(i).replace("\u2581", " ") for i in range(found.get_piece_size())]
    plain = [i for i in range(len(pieces)) if not (found.is_byte(i) or found.is_unknown(i))]
    assert not any(re.search("[^ ] |[\n\t]", pieces[i]) for i in plain), "a piece would cross a cut"
    cut = pre_tokenizers.Split(Regex("[\n\t]| +[^ \n\t]*|[^ \n\t]+"), "isolated")
    if model_type == "bpe":
        ordered = [pieces[i] for i in sorted(plain, key=lambda i: (-found.get_score(i), i))]
        ids = {piece: i for i, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.BPE(ids, _merges(ordered), byte_fallback=True))
        tokenizer.pre_tokenizer = cut
    else:
        # Six decimals are what 32 bits hold; longer scores would change when the JSON is read and written again.
        scored = [(piece, round(found.get_score(i), 6)) for i, piece in enumerate(pieces)]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=found.unk_id(), byte_fallback=True))
        # A text that names a byte's token would be taken for that token.
        names = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>|unk>)"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([names, cut])
    return _from_bytes(_normalize(tokenizer, spec), spec.specials)


def read_vocabulary(path: str) -> list[str]:
    """The tokens of a vocab.txt, one a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"--vocab {path}: no such file. Name a text file with one token a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--vocab {path}: not UTF-8 (byte {error.start}). Save the file as UTF-8") from None
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not tokens:
        raise DataError(f"--vocab {path}: empty. Give one token a line")
    return tokens


def existing_json(name: str) -> str:
    """The tokenizer.json of a folder, a file or a hub name; older formats in a folder are converted by transformers."""
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        return _converted(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(f"--vocab {name}: not a tokenizer.json. Name its folder") from None
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise DataError(f"--vocab {name}: no such folder or file. Check the path")
    return _from_hub(name)


def _converted(folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # whatever the folder's files make the library say
        raise DataError(f"--vocab {folder}: no tokenizer in it ({error}). Name a folder with tokenizer.json") from None
    return str(backend.to_str())


def _from_hub(name: str) -> str:
    """The hub's file, from the local cache if it is there; one attempt, for an offline machine must not wait long."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if isinstance(cached := try_to_load_from_cache(name, "tokenizer.json"), str):
        return Path(cached).read_text(encoding="utf-8")
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        request = urllib.request.Request(hf_hub_url(name, "tokenizer.json"), headers=build_hf_headers())
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return bytes(answer.read()).decode()
        except urllib.error.HTTPError as error:
            reason = f"the hub answers {error.code} {error.reason}"
        except OSError as error:
            reason = f"the hub cannot be reached: {getattr(error, 'reason', error)}"
    raise DataError(f"--vocab {name}: no such folder here, and {reason}. Check the name, or give a tokenizer's folder")


def _merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best piece first, as SentencePiece merges."""
    known = set(pieces)
    return [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(len(piece) - 1, 0, -1)
        if piece[:at] in known and piece[at:] in known
    ]


def _bert(model: Any, spec: TokenizerSpec, lower: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(model)
    bert = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    chosen = NORMALIZERS.get(spec.normalizer)
    tokenizer.normalizer = normalizers.Sequence([chosen(), bert]) if chosen else bert
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.decoder = decoders.Sequence([pieces, decoders.Replace(Regex(_HAN_AND_MARKS), "")])
    return tokenizer


def _from_bytes(tokenizer: Tokenizer, specials: list[str]) -> Tokenizer:
    """With the decoder of a byte fallback, and the special tokens."""
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(added(specials))
    return tokenizer


def added(tokens: list[str]) -> list[AddedToken]:
    """As special tokens, which the normalizer leaves alone."""
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _normalize(tokenizer: Tokenizer, spec: TokenizerSpec) -> Tokenizer:
    if spec.normalizer != "none":
        tokenizer.normalizer = NORMALIZERS[spec.normalizer]()
    return tokenizer


def _normalized(documents: Iterable[str], spec: TokenizerSpec) -> Iterable[str]:
    if spec.normalizer == "none":
        return documents
    normalizer = NORMALIZERS[spec.normalizer]()
    return (normalizer.normalize_str(document) for document in documents)


def _broken(documents: Iterable[str]) -> Iterator[str]:
    """Documents cut where a run without a space is long: merging inside a word of a million letters takes hours."""
    for document in documents:
        done = 0
        for run in _RUN.finditer(document):
            for at in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield document[done:at]
                done = at
        yield document[done:]


def _lines(documents: Iterable[str], left_out: dict[int, str]) -> Iterator[str]:
    """Lines of at most _LINE characters, cut also at the characters that stand for a cut."""
    for document in documents:
        for line in document.translate(left_out).split("\n"):
            for at in range(0, len(line), _LINE):
                yield line[at : at + _LINE]
