from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
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
from gpt2kit.tokenization.trainers import TokenizerSpec

LOSSLESS = TOKENIZER_KINDS[:-1]
any_text = st.text(max_size=40) | st.lists(
    st.sampled_from([*ODD_TEXTS, *SAMPLE_TEXTS, " ", "\n"]) | st.text(max_size=4)
).map("".join)
examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kinds")
    train_each_kind(made)
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Tokenizer]:
    return {kind: tokenizer.load(folder / kind) for kind in TOKENIZER_KINDS}


def ids_of(found: Tokenizer, text: str) -> list[int]:
    return found.encode(text, add_special_tokens=False).ids


def back(found: Tokenizer, text: str) -> str:
    return found.decode(ids_of(found, text), skip_special_tokens=False)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_text_comes_back(trained: dict[str, Tokenizer], kind: str) -> None:
    @examples
    @given(any_text)
    def holds(text: str) -> None:
        assert back(trained[kind], text) == text
        assert tokenizer.eos_id(trained[kind]) not in ids_of(trained[kind], text)

    holds()
    for text in [*ODD_TEXTS, *SAMPLE_TEXTS]:
        assert back(trained[kind], text) == text
    planes = "".join(chr(code) for code in range(0, 0x110000, 97) if not 0xD800 <= code < 0xE000)
    assert back(trained[kind], planes) == planes


@pytest.mark.parametrize("kind", LOSSLESS[1:])
def test_each_byte_has_a_token(trained: dict[str, Tokenizer], kind: str) -> None:
    assert all(trained[kind].token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_streamed_text_is_the_whole_text(trained: dict[str, Tokenizer], kind: str) -> None:
    @examples
    @given(any_text, st.integers(0, 20))
    def holds(text: str, prompt: int) -> None:
        ids = ids_of(trained[kind], text)
        before, rest = ids[:prompt], ids[prompt:]
        start = trained[kind].decode(before, skip_special_tokens=False)
        whole = trained[kind].decode(ids, skip_special_tokens=False)
        if start.rstrip("\ufffd") == start and whole.count("\ufffd") < 3:  # a prompt is whole characters
            stream = TextStream(trained[kind], before)
            assert start + "".join([*map(stream.push, rest), stream.flush()]) == whole

    holds()


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_transformers_loads_the_same_tokenizer(folder: Path, trained: dict[str, Tokenizer], kind: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder / kind)
    for text in [*ODD_TEXTS, *SAMPLE_TEXTS]:
        assert theirs(text)["input_ids"] == trained[kind].encode(text).ids == ids_of(trained[kind], text)
        assert theirs.decode(theirs(text)["input_ids"]) == back(trained[kind], text)
    assert theirs.eos_token == tokenizer.EOS and theirs.eos_token_id == tokenizer.eos_id(trained[kind])
    assert len(theirs) == tokenizer.size(trained[kind])
    assert {path.name for path in (folder / kind).iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_it_stays_the_same_when_read_and_written(folder: Path, kind: str) -> None:
    text = (folder / kind / "tokenizer.json").read_text(encoding="utf-8")
    made = train.TRAINERS[kind](SAMPLE_TEXTS, TokenizerSpec(vocab_size=480, special_tokens=["<user>"]))
    again = tokenizer.from_json(tokenizer.to_json(made), "x")
    assert (
        text == tokenizer.to_json(tokenizer.from_json(text, "x")) == tokenizer.to_json(made) == tokenizer.to_json(again)
    )


def test_the_same_text_gives_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from pathlib import Path; import test_tokenizer"
    )
    subprocess.run(
        [sys.executable, "-c", f"{program}; test_tokenizer.make(Path({str(tmp_path)!r}))"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    for kind in TOKENIZER_KINDS:
        first, again = ((where / kind / "tokenizer.json").read_bytes() for where in (folder, tmp_path))
        assert hashlib.sha256(first).hexdigest() == hashlib.sha256(again).hexdigest(), kind


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("most", [290, 330, 3000])
def test_vocab_size_is_an_upper_bound(folder: Path, tmp_path: Path, kind: str, most: int) -> None:
    if kind == "wordpiece":
        most -= 250
    train_tokenizer([str(folder / "text.txt")], tmp_path / "out", kind, most)  # type: ignore[arg-type]
    assert tokenizer.size(tokenizer.load(tmp_path / "out")) <= most


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_ids_are_those_of_sentencepiece(model_type: str) -> None:
    import sentencepiece

    model = trainers.train_sentencepiece_model(model_type, SAMPLE_TEXTS, TokenizerSpec(vocab_size=480))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = trainers.convert_sentencepiece(model_type, model, TokenizerSpec(vocab_size=480))
    ours.encode_special_tokens = True

    def same(text: str) -> bool:
        ids, other = ids_of(ours, text), theirs.encode(text)
        # Unigram: of two cuts that are equally likely, each library may take another.
        return ids == other or (
            model_type == "unigram"
            and sum(map(theirs.get_score, ids)) == pytest.approx(sum(map(theirs.get_score, other)))
        )

    @examples
    @given(any_text)
    def holds(text: str) -> None:
        text = text.replace("\u2581", "").replace("<", "")  # SentencePiece takes U+2581 for a space
        assert same(text)

    holds()
    assert all(ids_of(ours, text) == theirs.encode(text) for text in SAMPLE_TEXTS if "\u2581" not in text)


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZER_KINDS if kind != "words"])
def test_a_special_token_is_parsed_only_on_request(folder: Path, tmp_path: Path, kind: str) -> None:
    train_tokenizer(
        [str(folder / "text.txt")],
        tmp_path,
        kind,
        480,
        special_tokens=["<user>"],
        parse_special=True,  # type: ignore[arg-type]
    )
    asked, plain = tokenizer.load(tmp_path), tokenizer.load(folder / kind)
    text = f"<user> a {tokenizer.EOS}"
    assert ids_of(asked, text)[0] == asked.token_to_id("<user>")
    assert plain.token_to_id("<user>") not in ids_of(plain, text)
    assert tokenizer.eos_id(asked) not in ids_of(asked, text)
    assert kind == "wordpiece" or back(asked, text) == text
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids_of(asked, text)


def test_wordpiece_says_what_it_loses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer([str(folder / "text.txt")], tmp_path, "wordpiece", 480)
    assert "wordpiece loses text" in capsys.readouterr().out
    found = tokenizer.load(tmp_path)
    assert back(found, "白日  依山") == "白日依山" and back(found, "the \n quick") == "the quick"


def test_a_text_that_yields_fewer_tokens_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("aa aa")
    train_tokenizer([str(tmp_path / "t.txt")], tmp_path / "out", vocab_size=999)
    assert "--vocab_size is 999" in capsys.readouterr().out
    train_tokenizer([str(tmp_path / "t.txt")], tmp_path / "char", "char")
    assert tokenizer.size(tokenizer.load(tmp_path / "char")) == 1 + 256 + 2


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_word_of_a_million_letters_is_no_trouble(tmp_path: Path, kind: str) -> None:
    letters = random.Random(1).choices("ACGT", k=300_000)
    (tmp_path / "t.txt").write_text("".join(letters))
    begin = time.process_time()
    train_tokenizer([str(tmp_path / "t.txt")], tmp_path / "out", kind, 350)  # type: ignore[arg-type]
    assert time.process_time() - begin < 20


def test_options_do_what_they_say(tmp_path: Path) -> None:
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


def test_a_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\n白\n日\n", encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "bert", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"))
    bert = tokenizer.load(tmp_path / "bert")
    assert ids_of(bert, "Hellos 白日x [SEP]") == [4, 5, 6, 7, 1, 1, 1, 1]  # no capital letter in it: lower case
    assert tokenizer.eos_id(bert) == 8
    train_tokenizer(
        output_dir=tmp_path / "cls", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"), parse_special=True
    )
    assert ids_of(tokenizer.load(tmp_path / "cls"), "hello[SEP]白") == [4, 3, 6]
    (tmp_path / "words.txt").write_text("<s>\nthe\nfox\n", encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "words", kind="words", vocab=str(tmp_path / "words.txt"))
    found = tokenizer.load(tmp_path / "words")
    assert ids_of(found, "the fox the") == [1, 2, 1] and ids_of(found, "<s> fox") == [0, 2]
    assert back(found, "the  cat ") == "the  cat "


def test_an_existing_tokenizer_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    found = json.loads((folder / "spm-unigram/tokenizer.json").read_text(encoding="utf-8"))
    found["added_tokens"][0]["content"] = "</s>"  # another end of text
    tail = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    tail |= {"special_tokens": {}, "pair": [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"]}
    source = tmp_path / "there.json"
    source.write_text(json.dumps(found | {"post_processor": tail}), encoding="utf-8")
    with pytest.raises(DataError, match="--kind existing"):
        tokenizer.load(source)
    train_tokenizer(output_dir=tmp_path / "mine", kind="existing", vocab=str(source), special_tokens=["<more>"])
    mine, theirs = tokenizer.load(tmp_path / "mine"), Tokenizer.from_file(str(source))
    theirs.encode_special_tokens = True
    assert all(ids_of(mine, text) == ids_of(theirs, text) for text in SAMPLE_TEXTS)
    assert (tokenizer.eos_id(mine), mine.token_to_id("<more>")) == (
        theirs.get_vocab_size(),
        theirs.get_vocab_size() + 1,
    )
    found["added_tokens"].append({**found["added_tokens"][1], "content": tokenizer.EOS, "id": 999, "special": False})
    (tmp_path / "parsing.json").write_text(json.dumps(found), encoding="utf-8")
    train_tokenizer(output_dir=tmp_path / "parsing", kind="existing", vocab=str(tmp_path / "parsing.json"))
    parsing = tokenizer.load(tmp_path / "parsing")
    assert tokenizer.eos_id(parsing) not in ids_of(parsing, f"a {tokenizer.EOS}")
    train_tokenizer(output_dir=tmp_path / "again", kind="existing", vocab=str(folder / "char"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "char" / name).read_bytes()


def test_older_formats_are_converted(tmp_path: Path) -> None:
    alphabet = sorted(trainers.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*alphabet, "th", "the", tokenizer.EOS])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    train_tokenizer(output_dir=tmp_path / "out", kind="existing", vocab=str(tmp_path))
    found = tokenizer.load(tmp_path / "out")
    assert ids_of(found, "the") == [257] and tokenizer.eos_id(found) == 258 and back(found, "白 the") == "白 the"


def test_a_name_is_looked_up_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = (folder / "char/tokenizer.json").read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(there))
    train_tokenizer(output_dir=tmp_path / "out", kind="existing", vocab="some-one/some-thing")
    assert tokenizer.size(tokenizer.load(tmp_path / "out")) == tokenizer.size(tokenizer.load(folder / "char"))

    def offline(*_: object, **__: object) -> object:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(
        DataError, match="some-one/some-thing: no such folder here, and the hub cannot be reached: no route"
    ):
        train_tokenizer(output_dir=tmp_path / "none", kind="existing", vocab="some-one/some-thing")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--vocab_size 100", 2, "--vocab_size 100: bpe needs at least 257"),
        ("--kind spm-unigram --vocab_size 257", 2, "spm-unigram needs at least 274"),
        ("--kind spm-unigram --min_frequency 3", 2, "--min_frequency"),
        ("--kind existing", 2, "--kind existing: needs --vocab"),
        ("--kind char --vocab v.txt", 2, "--kind char: does not take --vocab"),
        ("--kind words --vocab t.txt --min_frequency 2", 2, "--vocab: nothing is trained"),
        ("--kind wordpiece --vocab none.txt", 3, "none.txt: no such file"),
        ("--kind wordpiece --vocab t.txt", 3, "no [UNK] in it"),
        ("--kind words --vocab empty.txt", 3, "empty.txt: empty"),
        ("--kind existing --vocab t.txt", 3, "t.txt: not a tokenizer"),
        ("--kind existing --vocab ./no/such/folder", 3, "no such folder or file"),
        ("--special_tokens <a> <a>", 2, "is given twice"),
        ("--special_tokens «s»", 2, "would not decode to itself"),
        ("--max_train_bytes 0", 2, "--max_train_bytes 0: must be at least 1"),
        ("--compare nine", 2, "--compare nine: not a size"),
        ("--compare char:9", 2, "char needs at least 257"),
        ("--max_token_length 1", 2, "must be at least 2"),
        ("--kind char --max_token_length 9", 2, "char has no such option"),
        ("--report none", 3, "none: no such tokenizer"),
        ("--kind words --normalizer nfc", 2, "--normalizer nfc: words"),
    ],
)
def test_a_mistake_is_one_line(inside: Path, call: Callable[..., Outcome], words: str, code: int, message: str) -> None:
    (inside / "t.txt").write_text("a b c\n")
    (inside / "empty.txt").write_text("")
    found, out, err = call(
        lambda argv: parser.run(command.train_tokenizer, argv),
        "--files",
        "t.txt",
        "--output_dir",
        "out",
        *words.split(),
    )
    assert (found, out) == (code, "") and message in err and err.count("\n") == 1
    assert not (inside / "out").exists()


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="at least 257"):
        train_tokenizer(["x"], tmp_path, vocab_size=100)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([str(tmp_path / "empty.txt")], tmp_path / "out")
    with pytest.raises(UserError, match="--output_dir"):
        train_tokenizer([str(tmp_path / "empty.txt")])
    with pytest.raises(UserError, match="--files"):
        train_tokenizer(output_dir=tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="no such tokenizer"):
        tokenizer.load(tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_sentencepiece_is_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install 'sentencepiece"):
        train_tokenizer(["x"], tmp_path, "spm-unigram")


def test_what_would_make_ids_depend_on_neighbours_length_or_chance_is_dropped(folder: Path, tmp_path: Path) -> None:
    trained = tokenizer.load(folder / "bpe")
    texts = ["a", "the quick brown fox jumps", "fox " * 50]
    expected = [encoding.ids for encoding in trained.encode_batch_fast(texts, add_special_tokens=False)]
    parts = json.loads(tokenizer.to_json(trained))
    parts["padding"] = {
        **{"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 5, "pad_type_id": 0, "pad_token": "x"},
    }
    parts["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    parts["model"]["dropout"] = 0.9
    for added in parts["added_tokens"]:
        added["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    found = tokenizer.load(tmp_path)
    assert [encoding.ids for encoding in found.encode_batch_fast(texts, add_special_tokens=False)] == expected
    assert tokenizer.eos_id(found) not in found.encode("say <|endoftext|> here", add_special_tokens=False).ids
