"""Normalization rules of SentencePiece models: every rule, and odd texts, give the text that SentencePiece gives."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

from gpt2kit.tokenization import charsmap

# Voice marks, decomposed letters of many scripts, marks after spaces, clusters of several characters.
CHARACTERS = (
    "aI か\u3099は\u309aｶﾞﾊﾟ゛ガ \u0301\u0308\u0323\u0307\u0345\u3000\u00a0\r\n각\u1100\u1161\u11a8\uac00\u11a8ㄱㅏ①ﬁ"
    "🙂\u200d👩🏽🇯🇵\u0915\u094d\u0937\u093f\u0e01\u0e33\u0600a\u1e9b\u0323İᾳα\x01\x00\u202e"
)


def train(rules: str) -> sentencepiece_model_pb2.ModelProto:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox"] * 20),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        **rules_option(rules),
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.escape_whitespaces = False
    return proto


def rules_option(rules: str) -> dict[str, str]:
    return {"normalization_rule_tsv": rules} if rules.endswith(".tsv") else {"normalization_rule_name": rules}


@pytest.mark.parametrize("rules", ["nmt_nfkc", "nmt_nfkc_cf"])
def test_a_text_is_normalized_as_sentencepiece_does(rules: str) -> None:
    model = train(rules)
    table = model.normalizer_spec.precompiled_charsmap
    normalize = normalizers.Sequence(charsmap.normalizer_steps(table)).normalize_str
    original = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()).normalize
    chance = random.Random(1)
    all_rules = charsmap.read_rules(table)
    assert len(all_rules) > 220_000 and all_rules["か\u3099"] == "が" and all_rules["①"] == "1"
    keys = sorted(all_rules)
    for key in chance.sample(keys, 2000):
        assert normalize(key) == all_rules[key] == original(key), ascii(key)
    for _ in range(1000):
        parts = chance.choices(CHARACTERS, k=chance.randrange(1, 9))
        parts += [chance.choice(keys) for _ in range(chance.randrange(3))]
        chance.shuffle(parts)
        text = "".join(parts)
        assert normalize(text) == original(text), ascii(text)


def test_own_rules_of_several_letters_are_kept(tmp_path: Path) -> None:
    table = tmp_path / "rules.tsv"
    table.write_text("61 62\t78\n61 62 63\t79 79\n63\t64\n62 301\t7A\n", encoding="utf-8")  # ab: x, abc: yy, ...
    model = train(str(table))
    normalize = normalizers.Sequence(
        charsmap.normalizer_steps(model.normalizer_spec.precompiled_charsmap)
    ).normalize_str
    original = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()).normalize
    for text in ("ab", "abc", "cab", "aabcab", "b\u0301", "ab\u0301", "abcab\u0301", "a c\u0301b"):
        assert normalize(text) == original(text), ascii(text)


def test_a_table_with_too_many_rules_of_its_own_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "rules.tsv"
    table.write_text("".join(f"61 {n:X}\t62 {n:X}\n" for n in range(0x4E00, 0x4E70)), encoding="utf-8")
    with pytest.raises(ValueError, match="112 rules that Unicode's composition does not explain"):
        charsmap.normalizer_steps(train(str(table)).normalizer_spec.precompiled_charsmap)


def test_a_table_whose_rules_never_end_is_refused() -> None:
    # Unit 5 has the label a. Its children are at 5 ^ 0x61 ^ their label, so its child a is unit 5 again.
    units = [0] * 256
    units[0], units[5] = (5 ^ ord("a")) << 10, ord("a") << 10 | ord("a")
    table = (4 * len(units)).to_bytes(4, "little") + b"".join(unit.to_bytes(4, "little") for unit in units) + b"\0"
    with pytest.raises(ValueError, match="too many rules, or endless ones"):
        charsmap.read_rules(table)
