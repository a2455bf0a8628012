"""Convert an existing SentencePiece model (`.model`, BPE or unigram) to a tokenizer with the same ids."""

from __future__ import annotations

import logging
import re
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpt2kit.errors import DataError
from gpt2kit.tokenization import charsmap
from gpt2kit.tokenization.tokenizer import EOS, encode, from_plain_json, refuse_failures, to_json
from gpt2kit.tokenization.trainers import as_special, join_pieces

logger = logging.getLogger(__name__)

# The types of a piece. A text contains only normal and user-defined pieces.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"  # stands for a space in a piece
_MAX_BYTES = 1 << 24  # the largest models have about 5 MB; protobuf takes up to 70 times the size of a file
_PRIVATE = 0x100000  # the first character of a plane for private use
# Texts on which both must agree: spaces, width variants, decomposed letters, characters without a piece, names of
# special pieces.
_TRIAL = [
    *(
        "",
        " ",
        "Hello world, it's 1984.",
        "  two  spaces ",
        "line\nbreak\ttab\r\n",
        f"{_SPACE}under",
        "na\u00efve caf\u00e9",
    ),
    *(
        "\uff83\uff7d\uff84\uff11\uff12\u3000\u6771\u4eac",
        "\u4eca\u65e5\u306f \u5929\u6c17",
        "\u0416 \u03b1 \u0e01 \u05d0",
        "emoji \U0001f642 x",
        "a" * 50,
        "\x00\x7f\u200d",
        "\uff76\uff9e\uff97\uff7d \u304b\u3099\u306f\u309a \u1100\u1161\u11a8 e\u0301 \u3000\u0308",
        "<0x41>",
    ),
]


def convert(raw: bytes, where: str, eos: str | None = None) -> Tokenizer:
    """Return the tokenizer of a SentencePiece model; `where` names it in errors.

    The end-of-document token is `eos`, or else the model's own (`</s>`); a model without one gets a new id. Names of
    control pieces in a text are ordinary text. The ids are compared with SentencePiece's. The file may be hostile, so
    commands call this only in a child process (`conversion`).
    """
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError:
        raise DataError(f"{where}: needs SentencePiece. Run: pip install 'sentencepiece>=0.2'") from None
    if len(raw) > _MAX_BYTES:
        raise DataError(f"{where}: {len(raw) / 1e6:,.0f} MB, too large for a SentencePiece model. Name another file")
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(raw)
    except Exception as error:  # protobuf raises its own
        raise DataError(f"{where}: not a SentencePiece model ({type(error).__name__}). Name another file") from None
    types = [piece.type for piece in model.pieces]
    if _UNKNOWN not in types:
        raise DataError(f"{where}: not a SentencePiece model (it has no pieces). Name another file")
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE) or model.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(f"{where}: a SentencePiece model that is neither BPE nor unigram. Train a new tokenizer")
    unknown = model.pieces[types.index(_UNKNOWN)].piece
    if eos == unknown:
        logger.warning(
            f"{where}: its end-of-text token is {eos!r:.40}, which also stands for unknown "
            "characters, so it does not end a text here"
        )
    eos = eos if eos and eos != unknown else _end_of_sentence(model)
    with refuse_failures(f"{where}: a SentencePiece model that cannot be converted", "Train a new tokenizer"):
        converted = to_json(build(model, eos))
    tokenizer = from_plain_json(converted, where, is_tried=True)
    tokenizer.encode_special_tokens = True
    # Without bytes, SentencePiece joins unknown characters to one token, also where such a name is split.
    named = [_USER_DEFINED, _CONTROL] if _BYTE in types else [_USER_DEFINED]
    names = [piece.piece for piece in model.pieces if piece.type in named and piece.piece != eos]
    texts = _TRIAL + [f"a {name}b" for name in names[:100]]
    with refuse_failures(f"{where}: not a SentencePiece model", "Name another file"):
        processor = SentencePieceProcessor(model_proto=raw)
        expected = [processor.encode(text) for text in texts]
    for text, ids in zip(texts, expected, strict=True):
        if encode(tokenizer, text) != ids:
            raise DataError(f"{where}: the converted model encodes {text!r:.60} differently. Train a new tokenizer")
    return tokenizer


def build(model: Any, eos: str) -> Tokenizer:
    """Build the tokenizer of a `ModelProto`; the piece `eos` becomes the end-of-document token."""
    pieces = [EOS if piece.piece == eos else piece.piece for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    in_text = [i for i, type_ in enumerate(types) if type_ in (_NORMAL, _USER_DEFINED)]
    has_bytes, unknown = _BYTE in types, types.index(_UNKNOWN)
    symbols: dict[str, str] = {}  # user-defined piece to the private character that is its token
    if model.trainer_spec.model_type == _UNIGRAM:
        vocabulary = list(zip(pieces, scores, strict=True))
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=has_bytes))
    else:
        for i in in_text:  # no merges lead to a user-defined piece
            if types[i] == _USER_DEFINED and len(pieces[i]) > 1 and pieces[i] != EOS:
                symbols[pieces[i]] = pieces[i] = chr(_PRIVATE + len(symbols))
        best_first = [pieces[i] for i in sorted(in_text, key=lambda i: (-scores[i], i))]
        ids = {piece: i for i, piece in enumerate(pieces)}
        unk_token = None if has_bytes else pieces[unknown]
        merges = join_pieces(best_first)
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=has_bytes))
    before = [normalizers.Replace(piece, symbol) for piece, symbol in symbols.items()]
    tokenizer.normalizer = normalizers.Sequence([*before, *_normalizer_steps(model.normalizer_spec)])
    hidden = [piece for piece, type_ in zip(pieces, types, strict=True) if type_ not in (_NORMAL, _USER_DEFINED)]
    tokenizer.pre_tokenizer = _pre_tokenizer([pieces[i] for i in in_text], [*hidden, EOS], has_bytes)
    first_space = [decoders.Strip(" ", 1, 0)] if model.normalizer_spec.add_dummy_prefix else []
    names = [(symbol, piece) for piece, symbol in symbols.items()]
    replaced = [decoders.Replace(old, new) for old, new in [(_SPACE, " "), *names]]
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), *replaced, *first_space])
    control = [pieces[i] for i, type_ in enumerate(types) if type_ == _CONTROL and pieces[i] != EOS]
    tokenizer.add_special_tokens(as_special([EOS, *control]))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _end_of_sentence(model: Any) -> str:
    index = model.trainer_spec.eos_id
    return str(model.pieces[index].piece) if 0 <= index < len(model.pieces) else EOS


def _normalizer_steps(spec: Any) -> list[Any]:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps += charsmap.normalizer_steps(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return [*steps, normalizers.Replace(" ", _SPACE)]


def _pre_tokenizer(in_text: list[str], hidden: list[str], has_bytes: bool) -> Any:
    """Split a text so that it cannot become a piece whose name it merely contains, and, where possible, into words."""
    has_space = has_bytes or _SPACE in in_text  # otherwise a space and the unknown characters around it are one token
    names = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in hidden if len(name) > 1)
    steps = [pre_tokenizers.Split(Regex(names), "isolated")]
    if has_space and not any(_SPACE in piece.lstrip(_SPACE) for piece in in_text):  # none crosses the start of a word
        steps.append(pre_tokenizers.Split(Regex(f"{_SPACE}+[^{_SPACE}]*|[^{_SPACE}]+"), "isolated"))
    return pre_tokenizers.Sequence(steps)
