"""Tokenizers that exist already: SentencePiece models, folders of every form, lists of characters. Every id stays."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from helpers import ODD_TEXTS, SAMPLE_TEXTS, train_tokenizer
from sentencepiece import sentencepiece_model_pb2

from gpt2kit.errors import DataError
from gpt2kit.tokenization import cache, conversion, pretrained, sentencepiece_model, tokenizer
from gpt2kit.tokenization.options import TokenizerSpec

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "<T>", "hello", "##s", "白", "日", "world", "!"]


def odd_strings(count: int) -> list[str]:
    """Return texts of pieces that tokenizers treat specially."""
    chance = random.Random(1)
    parts = [
        *SAMPLE_TEXTS,
        *"abcXYZ.,'<>/[]\n\t  \u2581",
        *"日本語ﾃｽﾄ①ﬁé🙂\u3000\u200d\x00",
        *("ｶﾞ", "か\u3099", "は\u309a", "\u1100\u1161\u11a8", "e\u0301", "o\u0323\u0302", " \u0308", "①\u0301"),
        "<sep>",
        "</s>",
        "<unk>",
        "<0x41>",
    ]
    return [*ODD_TEXTS, *("".join(chance.choices(parts, k=chance.randrange(1, 12))) for _ in range(count))]


def train_sentencepiece(model_type: str, **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox, the lazy dog", "白日依山盡，黃河入海流", "ﾃｽﾄ①"] * 20),
        model_writer=model,
        model_type=model_type,
        vocab_size=380 if options.get("byte_fallback") else 120,
        hard_vocab_limit=False,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_sentencepiece_model_keeps_its_ids(model_type: str, byte_fallback: bool, tmp_path: Path) -> None:
    raw = train_sentencepiece(model_type, byte_fallback=byte_fallback)
    (tmp_path / "sp.model").write_bytes(raw)
    train_tokenizer(output_dir=tmp_path / "out", kind="existing", vocab=str(tmp_path / "sp.model"))
    adopted, original = tokenizer.load(tmp_path / "out"), sentencepiece.SentencePieceProcessor(model_proto=raw)
    texts = odd_strings(2000)
    if not byte_fallback:  # SentencePiece joins unknown characters to one token, also those of such a name
        texts = [text for text in texts if not any(name in text for name in ("</s>", "<unk>", tokenizer.EOS))]
    for text in texts:
        assert tokenizer.encode(adopted, text) == original.encode(text), text
        if byte_fallback:  # otherwise SentencePiece writes ⁇ for what it lost
            assert tokenizer.decode(adopted, original.encode(text)) == original.decode(original.encode(text))
    assert tokenizer.eos_id(adopted) == original.eos_id() and tokenizer.size(adopted) == len(original)
    assert tokenizer.eos_id(adopted) not in tokenizer.encode(adopted, f"</s> {tokenizer.EOS}")


def test_a_model_without_normalization_keeps_its_ids() -> None:
    raw = train_sentencepiece(
        "bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
    )
    adopted = sentencepiece_model.convert(raw, "sp.model")
    original = sentencepiece.SentencePieceProcessor(model_proto=raw)
    for text in odd_strings(500):
        assert tokenizer.encode(adopted, text) == original.encode(text), text


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_model_without_a_piece_for_the_space_keeps_its_ids(model_type: str) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # as for Chinese and Japanese
        sentence_iterator=iter(["白日依山盡，黃河入海流", "欲窮千里目，更上一層樓"] * 20),
        model_writer=model,
        model_type=model_type,
        vocab_size=40,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    adopted = sentencepiece_model.convert(model.getvalue(), "sp.model")
    original = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in ("白日 依山", "to be or 白日 not", "  a  b ", "白 日"):
        assert tokenizer.encode(adopted, text) == original.encode(text), text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a SentencePiece model"),
        (b"hello" * 9, "not a SentencePiece model"),
        pytest.param(b"\n\0" * (9 << 20), "too large for a SentencePiece model", id="empty pieces"),
        ("word", "neither BPE nor unigram"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused(raw: bytes | str, message: str) -> None:
    content = train_sentencepiece(raw, use_all_vocab=True) if isinstance(raw, str) else raw
    with pytest.raises(DataError, match=f"sp.model: .*{message}"):
        sentencepiece_model.convert(content, "sp.model")


@pytest.mark.parametrize("form", ["sentencepiece", "gpt2", "bert"])
def test_files_are_converted_in_another_process(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, modules = tmp_path / "model", tmp_path / "modules"
    folder.mkdir()
    modules.mkdir()
    if form == "sentencepiece":
        (folder / "spiece.model").write_bytes(train_sentencepiece("unigram"))
    elif form == "gpt2":
        (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
        (folder / "merges.txt").write_text("a b")
    else:
        (folder / "vocab.txt").write_text("\n".join(BERT))
    assert tokenizer.size(conversion.open_folder(folder)) > 2
    library = "sentencepiece" if form == "sentencepiece" else "tokenizers"
    (modules / f"{library}.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    with pytest.raises(DataError, match=r"^.*model: not a tokenizer \(.* or ends the process\)\. Name another one$"):
        conversion.open_folder(folder)


def test_many_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    """Added one by one, they would take longer than the child process may."""
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text("a b")
    added = {f"<{number}>": number for number in range(3, 15_000)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    opened = conversion.open_folder(tmp_path)
    assert all(opened.token_to_id(token) == number for token, number in added.items())


def test_a_file_in_the_current_folder_is_not_imported(inside: Path) -> None:
    (inside / "vocab.txt").write_text("\n".join(BERT))
    for name in ("json", "tokenizers", "gpt2kit", "tokenizer"):
        (inside / f"{name}.py").write_text("import os; os.abort()")
    assert tokenizer.size(conversion.open_folder(inside)) == len(BERT)


def test_a_model_with_a_damaged_normalizer_is_refused() -> None:
    model = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece("unigram"))
    table = model.normalizer_spec.precompiled_charsmap
    model.normalizer_spec.precompiled_charsmap = table[:-50] + b"\xff\xfe\xff" * 10 + table[-20:]
    with pytest.raises(DataError, match=r"sp\.model: a SentencePiece model that cannot be converted"):
        sentencepiece_model.convert(model.SerializeToString(), "sp.model")


def open_folder(folder: Path, config: dict[str, Any] | None = None) -> tokenizer.Tokenizer:
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return tokenizer.from_json(tokenizer.to_json(pretrained.open_folder(folder)), str(folder))


def write_bpe(folder: Path, **settings: Any) -> None:
    alphabet = sorted(pretrained.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*alphabet, "th", "the", "Ġthe", "</s>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_bert(folder: Path, **settings: Any) -> None:
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_gpt2s_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_bpe(tmp_path, tokenizer_class="GPT2Tokenizer", eos_token="</s>", bos_token="</s>", unk_token="</s>")
    (tmp_path / "added_tokens.json").write_text('{"<b>": 261, "<a>": 260}')
    opened = open_folder(tmp_path)
    original = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_id(opened) == 259 == original.eos_token_id
    assert [opened.token_to_id(name) for name in ("<a>", "<b>")] == original.convert_tokens_to_ids(["<a>", "<b>"])
    for text in odd_strings(2000):
        text = text.replace("</s>", "")  # transformers reads it as the special token
        assert tokenizer.encode(opened, text) == original.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("lower", [True, False])
def test_berts_file_is_read_as_transformers_reads_it(tmp_path: Path, lower: bool) -> None:
    from transformers import AutoTokenizer

    write_bert(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=lower)
    opened = open_folder(tmp_path, {"eos_token_id": 50256})  # as in the config.json of some models
    original = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in odd_strings(2000) if not any(name in text for name in BERT[:5])]  # special there
    for text in ["Hello WORLDs!", "hellos 白日", *texts]:
        assert tokenizer.encode(opened, text) == original.encode(text, add_special_tokens=False), text
    assert tokenizer.eos_id(opened) == BERT.index("[SEP]")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
)
def test_berts_settings_are_honoured(settings: dict[str, bool], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = ["e", "##e", "\u00e9", "##\u00e9", "x\u00e9", "xe", "x", "\u767d\u65e5", "##\u65e5", "x\u767d"]
    write_bert(tmp_path, tokenizer_class="BertTokenizer", **settings)
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, *words]), encoding="utf-8")
    opened, original = open_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    chance = random.Random(1)
    for _ in range(300):
        text = "".join(chance.choices([*"xeX\u00e9\u00c9\u767d\u65e5 ", "e\u0301", "hello"], k=6))
        assert tokenizer.encode(opened, text) == original.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "words with mecab; gpt2kit"),
        ({"tokenizer_class": "BertJapaneseTokenizer", "subword_tokenizer_type": "character"}, "splits words by charac"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, ""),
        ({"tokenizer_class": "CpmTokenizer"}, "splits it into words with jieba"),
        ({"tokenizer_class": "BertTokenizer"}, ""),
    ],
)
def test_a_class_that_splits_words_otherwise_is_reported(
    settings: dict[str, Any], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bert(tmp_path, **settings)
    open_folder(tmp_path)
    assert message in caplog.text and bool(caplog.text) == bool(message)


def test_the_end_of_text_token_may_be_named_by_config_json_alone(tmp_path: Path) -> None:
    write_bpe(tmp_path)
    (tmp_path / "config.json").write_text('\ufeff{"eos_token_id": 259}', encoding="utf-8")  # as some editors save it
    train_tokenizer(output_dir=tmp_path / "out", kind="existing", vocab=str(tmp_path))
    adopted = tokenizer.load(tmp_path / "out")
    assert tokenizer.eos_id(adopted) == 259 and tokenizer.size(adopted) == 260, "no second one is added"


@pytest.mark.parametrize("form", ["sentencepiece", "bert"])
def test_an_unknown_token_never_ends_a_text(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if form == "bert":
        write_bert(tmp_path, eos_token="[UNK]")
    else:
        (tmp_path / "spiece.model").write_bytes(train_sentencepiece("unigram"))
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    opened = open_folder(tmp_path)
    assert tokenizer.eos_id(opened) == (3 if form == "bert" else 2)  # [SEP], </s>
    assert tokenizer.eos_id(opened) not in tokenizer.encode(opened, "\u0416")
    assert "also stands for unknown characters" in caplog.text


def test_the_model_of_a_folder_is_not_chosen_by_chance(tmp_path: Path) -> None:
    raw = train_sentencepiece("unigram")
    (tmp_path / "spiece.model").write_bytes(raw)
    (tmp_path / "a.model").write_bytes(b"something else")
    assert tokenizer.eos_id(open_folder(tmp_path)) == 2
    (tmp_path / "spiece.model").rename(tmp_path / "b.model")
    with pytest.raises(DataError, match=r"contains several SentencePiece models \(a\.model, b\.model\)"):
        open_folder(tmp_path)
    write_bert(tmp_path)  # the others are of another program
    assert open_folder(tmp_path).token_to_id("hello") == BERT.index("hello")


def test_a_folder_with_a_sentencepiece_model_uses_the_token_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(train_sentencepiece("unigram"))
    assert tokenizer.eos_id(open_folder(tmp_path)) == 2
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<sep>"}}')
    opened = open_folder(tmp_path)
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert tokenizer.eos_id(opened) == original.piece_to_id("<sep>")
    assert tokenizer.encode(opened, "the fox") == original.encode("the fox")


@pytest.mark.parametrize("name", ["sp.model", "."])
def test_a_run_takes_such_a_tokenizer_by_its_path(name: str, inside: Path) -> None:
    Path("sp.model").write_bytes(train_sentencepiece("bpe", byte_fallback=True))
    opened = cache.load_named(name, Path("cache"))
    original = sentencepiece.SentencePieceProcessor(model_file="sp.model")
    assert tokenizer.encode(opened, "the fox") == original.encode("the fox")
    assert list(Path("cache/tokenizers").glob("*/tokenizer.json"))


def test_a_run_reports_what_is_wrong_with_such_a_tokenizer(inside: Path) -> None:
    Path("sp.model").write_bytes(b"hello" * 9)
    message = r"^data\.tokenizer: sp\.model: not a SentencePiece model \(DecodeError\)\. Name another file$"
    with pytest.raises(DataError, match=message):
        cache.load_named("sp.model", Path("cache"))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no tokenizer: neither tokenizer\.json"):
        pretrained.open_folder(tmp_path)
    write_bpe(tmp_path, eos_token="</s>")
    (tmp_path / "added_tokens.json").write_text('{"<a>": 7}')
    with pytest.raises(DataError, match=r"added_tokens\.json gives '<a>' the id 7, which is not free"):
        pretrained.open_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<a>": "7"}')
    with pytest.raises(DataError, match=r"added_tokens\.json has an id that is not a whole number"):
        pretrained.open_folder(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    for number in (1 << 31, -1, "5", 7.0, 1):
        (tmp_path / "vocab.json").write_text(json.dumps({**ids, "</s>": number}))
        with pytest.raises(DataError, match=r"vocab\.json: an id is not a whole number below"):
            pretrained.open_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not a readable JSON file \(.*surrogates"):
        pretrained.open_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(DataError, match=r"vocab\.json: not a readable JSON file \(not a JSON object\)"):
        pretrained.open_folder(tmp_path)
    os.truncate(tmp_path / "merges.txt", tokenizer.MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match=r"merges\.txt: 67 MB, too large for a tokenizer"):
        pretrained.open_folder(tmp_path)


def test_the_case_of_berts_vocabulary_is_judged_by_its_words(tmp_path: Path) -> None:
    write_bert(tmp_path)  # <S> and <T> are names, as in the Chinese vocabularies
    for lower, text, ids in (("auto", "HELLO", [7]), (False, "HELLO", [1]), (True, "HELLO", [7])):
        options: dict[str, Any] = {} if lower == "auto" else {"lower": lower}
        train_tokenizer(
            output_dir=tmp_path / str(lower), kind="wordpiece", vocab=str(tmp_path / "vocab.txt"), **options
        )
        assert tokenizer.encode(tokenizer.load(tmp_path / str(lower)), text) == ids


def test_line_breaks_survive_in_berts_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bert(tmp_path)
    vocab = str(tmp_path / "vocab.txt")
    train_tokenizer(output_dir=tmp_path / "lines", kind="wordpiece", vocab=vocab, newline="[SEP]")
    assert "wordpiece loses text: runs of spaces become one space" in capsys.readouterr().out
    lines = tokenizer.load(tmp_path / "lines")
    for text, ids in (("白\n日", [9, 3, 10]), ("hello\n\nworld !\n", [7, 3, 3, 11, 12, 3])):
        assert tokenizer.encode(lines, text) == ids and tokenizer.decode(lines, ids) == text
    assert tokenizer.encode(lines, "[SEP]") == [1, 1, 1] and tokenizer.token_bytes(lines)[3] == b"\n"
    for newline, message in (("[EOL]", r"\[EOL\]: no token of"), ("[UNK]", r"\[UNK\]: stands for unknown words")):
        with pytest.raises(DataError, match=f"--newline {message}"):
            train_tokenizer(output_dir=tmp_path / "none", kind="wordpiece", vocab=vocab, newline=newline)


def test_the_end_of_text_token_of_the_folder_stays_beside_line_breaks(tmp_path: Path) -> None:
    write_bert(tmp_path, eos_token="[MASK]")
    lines = cache.load_or_train(
        TokenizerSpec("wordpiece", vocab=str(tmp_path / "vocab.txt"), newline="[SEP]"), [], tmp_path
    )
    assert tokenizer.eos_id(lines) == BERT.index("[MASK]") and tokenizer.size(lines) == len(BERT)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    lines = cache.load_or_train(
        TokenizerSpec("wordpiece", vocab=str(tmp_path / "vocab.txt"), newline="[SEP]"), [], tmp_path
    )
    assert tokenizer.eos_id(lines) == len(BERT) and tokenizer.encode(lines, "\n") == [BERT.index("[SEP]")]


META: dict[str, Any] = {"vocab_size": 3, "itos": {0: "\n", 1: "a", 2: "白"}, "stoi": {"\n": 0, "a": 1, "白": 2}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.pkl", pickle.dumps(META)),
        ("tokens.pkl", pickle.dumps(["\n", "a", "白"])),
        ("numpy.pkl", pickle.dumps({"itos": {np.int64(i): token for i, token in META["itos"].items()}})),
        ("bytes.pkl", pickle.dumps({token: np.array([i], ">u2")[0] for token, i in META["stoi"].items()})),
        ("stoi.json", json.dumps(META["stoi"]).encode()),
        ("list.json", json.dumps(["\n", "a", "白"]).encode()),
        ("list.txt", "\na\n白\n".encode()),
    ],
)
def test_a_list_of_characters_keeps_its_ids(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    train_tokenizer(output_dir=tmp_path / "out", kind="char", vocab=str(tmp_path / name))
    adopted = tokenizer.load(tmp_path / "out")
    assert tokenizer.encode(adopted, "a\n白") == [1, 0, 2] and tokenizer.eos_id(adopted) == 3
    assert tokenizer.decode(adopted, tokenizer.encode(adopted, "b 日")) == "b 日", "other characters become bytes"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.bomb = True",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Bomb()),
        pickle.dumps({"itos": {0: "a", 2: "b"}}),
        pickle.dumps(["a", "a"]),
        pickle.dumps(["a", 5]),
        pickle.dumps({"itos": np.array(["a", "b"])}),
        pickle.dumps({np.float64(0): "a"}),
        pickle.dumps(["a", "\ud800"]),
        pickle.dumps(5),
        pickle.dumps(["a"] * 9)[:-3],
        b"\x80\x04\x8c\x03abcQ.",
        b"",
    ],
)
def test_a_hostile_list_of_characters_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"meta\.pkl: not a list of characters"):
        train_tokenizer(output_dir=tmp_path / "out", kind="char", vocab=str(tmp_path / "meta.pkl"))
    assert not hasattr(sys, "bomb") and not (tmp_path / "out").exists()
