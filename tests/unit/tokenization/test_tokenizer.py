from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ODD_TEXTS, ROOT, SAMPLE_TEXTS, TOKENIZER_KINDS, Outcome, train_each_kind, train_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2kit.cli import parser
from gpt2kit.cli import train_tokenizer as command
from gpt2kit.errors import DataError, UserError
from gpt2kit.generation.text_stream import TextStream
from gpt2kit.tokenization import tokenizer, train, trainers
from gpt2kit.tokenization.options import TokenizerSpec

LOSSLESS = TOKENIZER_KINDS[:-1]
any_text = st.text(max_size=40) | st.lists(
    st.sampled_from([*ODD_TEXTS, *SAMPLE_TEXTS, " ", "\n"]) | st.text(max_size=4)
).map("".join)
examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = tmp_path_factory.mktemp("kinds")
    train_each_kind(kinds)
    return kinds


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Tokenizer]:
    return {kind: tokenizer.load(folder / kind) for kind in TOKENIZER_KINDS}


def encode(trained: Tokenizer, text: str) -> list[int]:
    return trained.encode(text, add_special_tokens=False).ids


def round_trip(trained: Tokenizer, text: str) -> str:
    return trained.decode(encode(trained, text), skip_special_tokens=False)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_text_decodes_to_itself(trained: dict[str, Tokenizer], kind: str) -> None:
    @examples
    @given(any_text)
    def check(text: str) -> None:
        assert round_trip(trained[kind], text) == text
        assert tokenizer.eos_id(trained[kind]) not in encode(trained[kind], text)

    check()
    for text in [*ODD_TEXTS, *SAMPLE_TEXTS]:
        assert round_trip(trained[kind], text) == text
    planes = "".join(chr(code) for code in range(0, 0x110000, 97) if not 0xD800 <= code < 0xE000)
    assert round_trip(trained[kind], planes) == planes


@pytest.mark.parametrize("kind", LOSSLESS[1:])
def test_every_byte_has_a_token(trained: dict[str, Tokenizer], kind: str) -> None:
    assert all(trained[kind].token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_streamed_text_is_the_decoded_text(trained: dict[str, Tokenizer], kind: str) -> None:
    @examples
    @given(any_text, st.integers(0, 20))
    def check(text: str, prompt_length: int) -> None:
        ids = encode(trained[kind], text)
        prompt, rest = ids[:prompt_length], ids[prompt_length:]
        start = trained[kind].decode(prompt, skip_special_tokens=False)
        decoded = trained[kind].decode(ids, skip_special_tokens=False)
        if start.rstrip("\ufffd") == start and decoded.count("\ufffd") < 3:  # a prompt has no partial characters
            stream = TextStream(trained[kind], prompt)
            assert start + "".join([*map(stream.push, rest), stream.flush()]) == decoded

    check()


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_transformers_loads_the_same_tokenizer(folder: Path, trained: dict[str, Tokenizer], kind: str) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder / kind)
    for text in [*ODD_TEXTS, *SAMPLE_TEXTS]:
        assert loaded(text)["input_ids"] == trained[kind].encode(text).ids == encode(trained[kind], text)
        assert loaded.decode(loaded(text)["input_ids"]) == round_trip(trained[kind], text)
    assert loaded.eos_token == tokenizer.EOS and loaded.eos_token_id == tokenizer.eos_id(trained[kind])
    assert len(loaded) == tokenizer.size(trained[kind])
    assert {path.name for path in (folder / kind).iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_saving_and_loading_changes_nothing(folder: Path, kind: str) -> None:
    text = (folder / kind / "tokenizer.json").read_text(encoding="utf-8")
    trained = train.TRAINERS[kind](SAMPLE_TEXTS, TokenizerSpec(vocab_size=480, special_tokens=["<user>"]))
    assert text == tokenizer.to_json(trained)
    for saved in (text, tokenizer.to_json(trained)):
        assert tokenizer.to_json(tokenizer.from_json(saved, "x")) == text


PRINT_FINGERPRINTS = """
import json, sys
from gpt2kit.tokenization import tokenizer, train
from gpt2kit.tokenization.options import TokenizerSpec

texts, spec = json.load(sys.stdin), TokenizerSpec(vocab_size=480, special_tokens=["<user>"])
print(json.dumps({kind: tokenizer.fingerprint(train(texts, spec)) for kind, train in train.TRAINERS.items()}))
"""


def test_the_same_text_gives_the_same_tokenizer_in_another_process(trained: dict[str, Tokenizer]) -> None:
    output = subprocess.run(
        [sys.executable, "-c", PRINT_FINGERPRINTS],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
        input=json.dumps(SAMPLE_TEXTS),
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads(output) == {kind: tokenizer.fingerprint(trained[kind]) for kind in TOKENIZER_KINDS}


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("vocab_size", [290, 330, 3000])
def test_vocab_size_is_an_upper_bound(kind: str, vocab_size: int) -> None:
    if kind == "wordpiece":
        vocab_size -= 250
    assert tokenizer.size(train.TRAINERS[kind](SAMPLE_TEXTS, TokenizerSpec(vocab_size=vocab_size))) <= vocab_size


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_ids_equal_those_of_sentencepiece(model_type: str) -> None:
    import sentencepiece

    model = trainers.train_sentencepiece_model(model_type, SAMPLE_TEXTS, TokenizerSpec(vocab_size=480))
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    converted = trainers.convert_sentencepiece(model_type, model, TokenizerSpec(vocab_size=480))
    converted.encode_special_tokens = True

    @examples
    @given(any_text)
    def check(text: str) -> None:
        text = text.replace("\u2581", "").replace("<", "")  # SentencePiece reads U+2581 as a space
        ids, expected = encode(converted, text), original.encode(text)
        if ids != expected:
            # Of two equally likely segmentations by unigram, each library may choose another.
            assert model_type == "unigram"
            scores = [sum(map(original.get_score, tokens)) for tokens in (ids, expected)]
            assert scores[0] == pytest.approx(scores[1])

    check()
    assert all(encode(converted, text) == original.encode(text) for text in SAMPLE_TEXTS if "\u2581" not in text)


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZER_KINDS if kind != "words"])
def test_a_special_token_is_parsed_only_on_request(folder: Path, tmp_path: Path, kind: str) -> None:
    train_tokenizer(
        [str(folder / "text.txt")],
        tmp_path,
        kind,
        480,
        special_tokens=["<user>"],
        parse_special=True,
    )
    parsing, plain = tokenizer.load(tmp_path), tokenizer.load(folder / kind)
    text = f"<user> a {tokenizer.EOS}"
    assert encode(parsing, text)[0] == parsing.token_to_id("<user>")
    assert plain.token_to_id("<user>") not in encode(plain, text)
    assert tokenizer.eos_id(parsing) not in encode(parsing, text)
    assert kind == "wordpiece" or round_trip(parsing, text) == text
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == encode(parsing, text)


def test_wordpiece_warns_that_it_loses_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer([str(folder / "text.txt")], tmp_path, "wordpiece", 480)
    assert "wordpiece loses text" in capsys.readouterr().out
    lossy = tokenizer.load(tmp_path)
    assert round_trip(lossy, "白日  依山") == "白日依山" and round_trip(lossy, "the \n quick") == "the quick"


def test_a_text_may_yield_fewer_tokens_than_vocab_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("aa aa")
    train_tokenizer([str(tmp_path / "t.txt")], tmp_path / "out", vocab_size=999)
    assert "--vocab_size is 999" in capsys.readouterr().out
    train_tokenizer([str(tmp_path / "t.txt")], tmp_path / "char", "char")
    assert tokenizer.size(tokenizer.load(tmp_path / "char")) == 1 + 256 + 2


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_training_time_does_not_grow_with_the_square_of_a_word(kind: str) -> None:
    """If the text were not split, a word of 100,000 letters would take 5 seconds, and a million letters hours."""
    word = "".join(random.Random(1).choices("ACGT", k=30_000 if kind == "spm-unigram" else 100_000))
    start = time.process_time()
    train.TRAINERS[kind]([word], TokenizerSpec(vocab_size=350))
    assert time.process_time() - start < 2


def test_options_change_the_vocabulary(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("aab Ａb " + "abcabcabc" * 9, encoding="utf-8")

    def tokens(**options: object) -> set[str]:
        train_tokenizer([str(text)], tmp_path / "out", **options)  # type: ignore[arg-type]
        return set(tokenizer.load(tmp_path / "out").get_vocab())

    assert {"a", "Ａ", " "} <= tokens(kind="char") and "Ａ" not in tokens(kind="char", min_frequency=2)
    assert "A" in tokens(kind="char", normalizer="nfkc")
    assert max(len(token) for token in tokens(max_token_length=3) if token != tokenizer.EOS) == 3
    assert len(tokens(kind="char", vocab_size=259)) == 259
    assert {" aab", " Ａb"} <= tokens(kind="words")


def test_an_existing_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\n白\n日\n", encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "bert", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"))
    bert = tokenizer.load(tmp_path / "bert")
    assert encode(bert, "Hellos 白日x [SEP]") == [4, 5, 6, 7, 1, 1, 1, 1]  # lowercase, since no token has a capital
    assert tokenizer.eos_id(bert) == 8
    train_tokenizer(
        output_dir=tmp_path / "cls", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"), parse_special=True
    )
    assert encode(tokenizer.load(tmp_path / "cls"), "hello[SEP]白") == [4, 3, 6]
    (tmp_path / "words.txt").write_text("<s>\nthe\nfox\n", encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "words", kind="words", vocab=str(tmp_path / "words.txt"))
    words = tokenizer.load(tmp_path / "words")
    assert encode(words, "the fox the") == [1, 2, 1] and encode(words, "<s> fox") == [0, 2]
    assert round_trip(words, "the  cat ") == "the  cat "


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_an_exported_tokenizer_begins_each_text(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer.save(tokenizer.begin_texts(trained[kind]), tmp_path)
    exported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in SAMPLE_TEXTS[:3]:
        ids = encode(trained[kind], text)
        assert exported.encode(text).ids == [tokenizer.eos_id(trained[kind]), *ids] and encode(exported, text) == ids
    assert tokenizer.fingerprint(tokenizer.load(tmp_path)) == tokenizer.fingerprint(trained[kind]), "when it comes back"


def test_an_existing_tokenizer_keeps_its_ids(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "spm-unigram/tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"][0]["content"] = "</s>"  # another end of text
    tail = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    tail |= {"special_tokens": {}, "pair": [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"]}
    source = tmp_path / "there.json"
    source.write_text(json.dumps(raw | {"post_processor": tail}), encoding="utf-8")
    with pytest.raises(DataError, match="--kind existing"):
        tokenizer.load(source)
    train_tokenizer(output_dir=tmp_path / "adopted", kind="existing", vocab=str(source), special_tokens=["<more>"])
    adopted, original = tokenizer.load(tmp_path / "adopted"), Tokenizer.from_file(str(source))
    original.encode_special_tokens = True
    assert all(encode(adopted, text) == encode(original, text) for text in SAMPLE_TEXTS)
    size = original.get_vocab_size()
    assert (tokenizer.eos_id(adopted), adopted.token_to_id("<more>")) == (size, size + 1)
    raw["added_tokens"].append({**raw["added_tokens"][1], "content": tokenizer.EOS, "id": 999, "special": False})
    (tmp_path / "parsing.json").write_text(json.dumps(raw), encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "parsing", kind="existing", vocab=str(tmp_path / "parsing.json"))
    parsing = tokenizer.load(tmp_path / "parsing")
    assert tokenizer.eos_id(parsing) not in encode(parsing, f"a {tokenizer.EOS}")
    train_tokenizer(output_dir=tmp_path / "again", kind="existing", vocab=str(folder / "char"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "char" / name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("wordpiece", "[UNK]\na\nb\na\n"),
        ("words", "a\nb\na\n"),
        ("existing", '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"b": 0, "a": 2}, "unk_token": "b"}}'),
    ],
)
def test_ordinary_text_never_has_the_id_of_the_end_of_text(kind: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"vocab\.json: .*a' .*have the same id, \d, because"):
        train_tokenizer(output_dir=tmp_path / "out", kind=kind, vocab=str(path))
    trained = trainers.train_char(["ab"], TokenizerSpec())
    raw = json.loads(tokenizer.to_json(trained))
    raw["model"]["vocab"]["a"] = tokenizer.eos_id(trained)
    with pytest.raises(DataError, match=r"here: '<\|endoftext\|>' and 'a' have the same id, 0"):
        tokenizer.from_json(json.dumps(raw), "here")


def test_a_tokenizer_is_fetched_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder / "char"))
    train_tokenizer(output_dir=tmp_path / "out", kind="existing", vocab="some-one/some-thing")
    assert tokenizer.size(tokenizer.load(tmp_path / "out")) == tokenizer.size(tokenizer.load(folder / "char"))

    def fail(name: str, **options: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DataError, match=r"some-one/some-thing: no such folder, and .* the hub \(OSError: no route\)"):
        train_tokenizer(output_dir=tmp_path / "none", kind="existing", vocab="some-one/some-thing")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--vocab_size 100", 2, "--vocab_size 100: bpe needs at least 257"),
        ("--kind spm-unigram --vocab_size 257", 2, "spm-unigram needs at least 274"),
        ("--kind spm-unigram --min_frequency 3", 2, "--min_frequency"),
        ("--kind existing", 2, "--kind existing: needs --vocab"),
        ("--kind bpe --vocab v.txt", 2, "--kind bpe: does not take --vocab"),
        ("--kind char --lower true", 2, "--lower, --newline: only for --kind wordpiece with --vocab"),
        ("--kind words --vocab t.txt --min_frequency 2", 2, "--vocab: nothing is trained"),
        ("--kind wordpiece --vocab none.txt", 3, "none.txt: no such file"),
        ("--kind wordpiece --vocab t.txt", 3, "contains no [UNK]"),
        ("--kind words --vocab empty.txt", 3, "empty.txt: empty"),
        ("--kind existing --vocab t.txt", 3, "t.txt: not a tokenizer"),
        ("--kind existing --vocab ./no/such/folder", 3, "no such folder or file"),
        ("--special_tokens <a> <a>", 2, "appears twice"),
        ("--special_tokens «s»", 2, "would not decode to itself"),
        ("--special_tokens a", 2, "--special_tokens a: text is encoded to this token, too"),
        ("--max_train_bytes 0", 2, "--max_train_bytes 0: must be at least 1"),
        ("--vocab_size 9000000000", 2, "--vocab_size 9000000000: must be at most 33,554,432"),
        ("--kind spm-bpe --max_token_length 513", 2, "--max_token_length 513: spm-bpe takes at most 512"),
        ("--seed -1", 2, "--seed -1: must be at least 0"),
        ("--compare nine", 2, "--compare nine: not a size"),
        ("--compare char:9", 2, "char needs at least 257"),
        ("--max_token_length 1", 2, "must be at least 2"),
        ("--kind char --max_token_length 9", 2, "--max_token_length 9: not available for char"),
        ("--report none", 3, "none: no such tokenizer"),
        ("--kind words --normalizer nfc", 2, "--normalizer nfc: not available for words"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    inside: Path, call: Callable[..., Outcome], arguments: str, code: int, message: str
) -> None:
    (inside / "t.txt").write_text("a b c\n")
    (inside / "empty.txt").write_text("")
    argv = ["--files", "t.txt", "--output_dir", "out", *arguments.split()]
    exit_code, out, err = call(lambda argv: parser.run(command.train_tokenizer, argv), *argv)
    assert (exit_code, out) == (code, "") and message in err and err.count("\n") == 1
    assert not (inside / "out").exists()


def test_files_and_output_dir_are_required(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output_dir: missing"):
        train_tokenizer(["x"])
    with pytest.raises(UserError, match="--files: missing"):
        train_tokenizer(output_dir=tmp_path / "out")


def test_sentencepiece_is_an_optional_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install 'sentencepiece"):
        train_tokenizer(["x"], tmp_path, "spm-unigram")


def test_padding_truncation_and_dropout_are_removed(folder: Path, tmp_path: Path) -> None:
    """They make ids depend on other texts, on a length and on chance."""
    trained = tokenizer.load(folder / "bpe")
    texts = ["a", "the quick brown fox jumps", "fox " * 50]
    expected = [encoding.ids for encoding in trained.encode_batch_fast(texts, add_special_tokens=False)]
    raw = json.loads(tokenizer.to_json(trained))
    raw["padding"] = {
        **{"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 5, "pad_type_id": 0, "pad_token": "x"},
    }
    raw["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    raw["model"]["dropout"] = 0.9
    for added in raw["added_tokens"]:
        added["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    loaded = tokenizer.load(tmp_path)
    assert [encoding.ids for encoding in loaded.encode_batch_fast(texts, add_special_tokens=False)] == expected
    assert tokenizer.eos_id(loaded) not in encode(loaded, "say <|endoftext|> here")
