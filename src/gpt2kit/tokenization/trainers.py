"""How each kind of tokenizer is trained.

Every kind is built as a `tokenizers.Tokenizer`, so one JSON file stores it and gives the same ids everywhere. All but
wordpiece are lossless: characters that the vocabulary lacks are encoded as bytes, and decoding returns the exact text.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gpt2kit.errors import DataError
from gpt2kit.tokenization.options import UNKNOWN, VOCAB_SIZE, TokenizerSpec
from gpt2kit.tokenization.sampling import count_characters
from gpt2kit.tokenization.tokenizer import EOS, LINE_BREAK

_NORMALIZERS: dict[str, Any] = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC, "lowercase": normalizers.Lowercase}
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
# Where text is split before SentencePiece's models, and what no piece contains, so that this changes no id.
SPLIT = "[\n\t]| +[^ \n\t]*|[^ \n\t]+"
CROSSES_SPLIT = "[^ ] |[\n\t]"
# Before bpe or wordpiece is trained, words are split after this number of characters: merging inside a word of a
# million letters takes hours.
_LONGEST_RUN = 256
_RUN = re.compile(rf"(?<!\S)\S{{{_LONGEST_RUN + 1},}}")
# Maximum characters in a line for SentencePiece.
_LONGEST_LINE = 1 << 12
# The space that WordPiece's decoder puts before Han characters and their punctuation.
_SPACE_BEFORE_HAN = r"^ (?=[\p{Han}\p{Hiragana}\p{Katakana}，。！？；：、）」』》〉…])"


def train_bpe(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Train a byte-level byte-pair encoding, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _normalizer(spec)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size or VOCAB_SIZE,
        special_tokens=as_special(spec.all_special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=spec.min_frequency or 0,
        max_token_length=spec.max_token_length + 1,  # the library's limit is exclusive
        show_progress=False,
    )
    tokenizer.train_from_iterator(_split_long_runs(documents), trainer)
    return tokenizer


def train_char(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer with one token per character, the most frequent first; others are encoded as bytes."""
    tokens = _frequent(count_characters(_normalize(documents, spec)), spec)
    return build_char([*spec.all_special_tokens, *_BYTE_TOKENS, *tokens], spec)


def build_char(vocabulary: list[str], spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer of characters, whose ids are their positions; other characters are encoded as bytes."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    for token in [*spec.all_special_tokens, *_BYTE_TOKENS]:
        ids.setdefault(token, len(ids))
    return _add_byte_fallback(Tokenizer(models.BPE(ids, [], byte_fallback=True)), spec)


def train_words(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer with one token per word, for text whose words are separated by spaces."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document.split(" "))
    del counts[""]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return build_words(_frequent(dict(ordered), spec), spec)


def build_words(vocabulary: list[str], spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer of words, whose ids are their positions; other words are encoded as bytes."""
    # A word's token begins with the space before it. The first word of a text gets a space, which decoding removes.
    ids = {f" {word}": i for i, word in enumerate(vocabulary)}
    for token in [*spec.all_special_tokens, *_BYTE_TOKENS]:
        ids.setdefault(token, len(ids))
    tokenizer = Tokenizer(models.BPE(ids, [], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(as_special(spec.all_special_tokens))
    return tokenizer


def train_wordpiece(documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Train BERT's WordPiece: words and punctuation, single Han characters, [UNK] for words that cannot be encoded."""
    special = [EOS, UNKNOWN, *spec.special_tokens]
    size = spec.vocab_size or VOCAB_SIZE
    tokenizer = build_bert(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN), spec)
    normalize, pre_tokenize = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    alphabet: list[str] = []
    inner: list[str] = []  # given to the trainer as special tokens: it would add `##x` in hash order, without a limit
    for character in count_characters(map(normalize, documents)):
        if character.isspace():
            continue
        is_letter = len(pre_tokenize(normalize("a" + character))) == 1  # it can continue a word
        tokens = [f"##{character}"] if is_letter else []
        if len(special) + len(alphabet) + len(inner) + 1 + len(tokens) > size:
            break
        alphabet.append(character)
        inner += tokens
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *sorted(inner)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        min_frequency=spec.min_frequency or 0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_split_long_runs(documents), trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(raw))


def train_sentencepiece(model_type: str, documents: Iterable[str], spec: TokenizerSpec) -> Tokenizer:
    """Train SentencePiece's `bpe` or `unigram`, both with byte fallback."""
    return convert_sentencepiece(model_type, train_sentencepiece_model(model_type, documents, spec), spec)


def train_sentencepiece_model(model_type: str, documents: Iterable[str], spec: TokenizerSpec) -> bytes:
    """Train SentencePiece (`bpe` or `unigram`) and return its model."""
    import sentencepiece

    size = (spec.vocab_size or VOCAB_SIZE) - len(spec.all_special_tokens)
    counts = count_characters(_normalize(documents, spec))
    # The alphabet covers 99.95 % of the text, but takes at most half of the room besides 256 bytes and the unknown
    # token. Other characters are encoded as bytes, and the text is split at them: SentencePiece's own option has no
    # maximum and refuses to drop much. It reads U+2581 as a space, U+2585 as the unknown token, a tab as a separator.
    room, total, covered = (size - 257) // 2, sum(counts.values()), 0
    excluded = list("\t\0\u2581\u2585")
    for rank, (character, count) in enumerate(counts.items()):
        if rank >= room or covered >= 0.9995 * total:
            excluded.append(character)
        covered += count
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(_normalize(documents, spec), excluded),
            model_writer=model,
            model_type=model_type,
            vocab_size=size,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=spec.max_token_length,
            max_sentence_length=8 * _LONGEST_LINE,
            hard_vocab_limit=False,
            num_threads=16,  # fixed, because unigram's sums depend on it
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = f"SentencePiece cannot train on this text ({error})"
        raise DataError(f"spm-{model_type}: {reason}. Use more text") from None
    return model.getvalue()


def convert_sentencepiece(model_type: str, model: bytes, spec: TokenizerSpec) -> Tokenizer:
    """Convert a model of `train_sentencepiece_model`, keeping its ids, and append the special tokens.

    A space stays a space instead of U+2581, so that text may contain that character, too. Text is split where no piece
    can cross (before a space that follows another character), which changes no id and makes encoding fast.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i).replace("\u2581", " ") for i in range(processor.get_piece_size())]
    plain = [i for i in range(len(pieces)) if not (processor.is_byte(i) or processor.is_unknown(i))]
    assert not any(re.search(CROSSES_SPLIT, pieces[i]) for i in plain), "a piece would cross a split"
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    if model_type == "bpe":
        best_first = [pieces[i] for i in sorted(plain, key=lambda i: (-processor.get_score(i), i))]
        ids = {piece: i for i, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.BPE(ids, join_pieces(best_first), byte_fallback=True))
        tokenizer.pre_tokenizer = split
    else:
        # 32 bits hold six decimals; longer scores would change when the JSON is read and written again.
        scores = [(piece, round(processor.get_score(i), 6)) for i, piece in enumerate(pieces)]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=processor.unk_id(), byte_fallback=True))
        # Text that looks like a byte's token must not become that token.
        byte_names = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>|unk>)"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_names, split])
    return _add_byte_fallback(tokenizer, spec)


def as_special(tokens: Iterable[str]) -> list[AddedToken]:
    """Return special tokens with these names; no normalizer changes them."""
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _frequent(counts: dict[str, int], spec: TokenizerSpec) -> list[str]:
    """Return the tokens that occur often enough, at most as many as fit beside special tokens and bytes."""
    tokens = [token for token, count in counts.items() if count >= (spec.min_frequency or 1)]
    return tokens[: spec.vocab_size - len(spec.all_special_tokens) - 256] if spec.vocab_size else tokens


def join_pieces(pieces: list[str]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that join to another piece, in the order of the pieces, as SentencePiece merges."""
    vocabulary = set(pieces)
    return [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(len(piece) - 1, 0, -1)
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]


def build_bert(
    model: Any, spec: TokenizerSpec, is_lower: bool = False, strip_accents: bool = False, han_words: bool = True
) -> Tokenizer:
    """Return a tokenizer that splits text as BERT does, for a WordPiece model; with `han_words`, at Han characters."""
    tokenizer = Tokenizer(model)
    bert = normalizers.BertNormalizer(handle_chinese_chars=han_words, strip_accents=strip_accents, lowercase=is_lower)
    first = _normalizer(spec)
    tokenizer.normalizer = normalizers.Sequence([first, bert]) if first else bert
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    steps = [decoders.WordPiece(prefix="##", cleanup=False), decoders.Replace(Regex(_SPACE_BEFORE_HAN), "")]
    if spec.newline:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Replace("\n", f" {LINE_BREAK} "), tokenizer.normalizer]
        )
        steps += [decoders.Fuse(), decoders.Replace(Regex(f" ?{LINE_BREAK} ?"), "\n")]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _add_byte_fallback(tokenizer: Tokenizer, spec: TokenizerSpec) -> Tokenizer:
    """Set the normalizer and the decoder, and add the special tokens."""
    tokenizer.normalizer = _normalizer(spec)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(as_special(spec.all_special_tokens))
    return tokenizer


def _normalizer(spec: TokenizerSpec) -> Any:
    return _NORMALIZERS[spec.normalizer]() if spec.normalizer != "none" else None


def _normalize(documents: Iterable[str], spec: TokenizerSpec) -> Iterable[str]:
    normalizer = _normalizer(spec)
    return map(normalizer.normalize_str, documents) if normalizer else documents


def _split_long_runs(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        start = 0
        for run in _RUN.finditer(document):
            for end in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield document[start:end]
                start = end
        yield document[start:]


def _lines(documents: Iterable[str], excluded: Iterable[str]) -> Iterator[str]:
    """Yield lines of at most _LONGEST_LINE characters, split also at the excluded characters."""
    line_ends = {ord(character): "\n" for character in excluded}
    for document in documents:
        for line in document.translate(line_ends).split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE]
