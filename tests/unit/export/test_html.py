"""The page of export.py --html: its modules, run by Node.js, agree with the Python code."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from helpers import ODD_TEXTS, SAMPLE_TEXTS, SMALL_SHAPE, PageText, train_each_kind, train_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.evaluation import scoring
from gpt2kit.export import html, html_tokenizer, huggingface
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.generation.sampling import uniform
from gpt2kit.model.config import padded_vocab_size
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import sentencepiece_model
from gpt2kit.tokenization import tokenizer as tokenizers

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js")
PAGE = Path(__file__).parent / "page"
LOSSLESS = ["bpe", "spm-bpe", "spm-unigram", "char", "words"]
PROMPTS = ["the quick ", "白日依山", "", "emoji 🙂"]


def random_model(tokenizer: Tokenizer, seed: int = 1, **shape: Any) -> LoadedCheckpoint:
    """Return a model with random weights; no size is a multiple of what the kernels need."""
    torch.manual_seed(seed)
    size = tokenizers.size(tokenizer)
    shape = {**SMALL_SHAPE, "n_embd": 30, "n_head": 3, "n_inner": 50, "n_positions": 18, "vocab_size": size, **shape}
    model = GPT2(shape)
    state = {name: torch.randn_like(tensor) / 3 for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    assert len(state["lm_head.weight"]) == padded_vocab_size(size)
    return LoadedCheckpoint(Path("model"), shape, tokenizer, {}, state=state)


def answers(
    work: Path, model: LoadedCheckpoint | None, *requests: Any, dtype: Any = "float32", engine: str = "auto"
) -> Any:
    """Return the answers of the page's modules to requests."""
    file = work / "model"
    if model:
        file.write_bytes(html.pack(model, dtype))
    content = {"model": str(file) if model else None, "engine": engine, "requests": requests}
    (work / "requests.json").write_text(json.dumps(content), encoding="utf-8")
    assert NODE
    command = [NODE, str(PAGE / "answer.mjs"), str(html.SOURCES), str(work / "requests.json")]
    process = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def odd_texts(count: int) -> list[str]:
    """Return texts with parts that tokenizers treat specially."""
    chance = random.Random(1)
    parts = [
        *SAMPLE_TEXTS,
        *"abcXYZ.,'<>/[]\n\t  ▁ßİ",
        *"日本語ﾃ①ﬁé🙂\u3000\u200d\x00\x85\ufeff",
        "<user>",
        "</s>",
        "'LL",
    ]
    return [
        *ODD_TEXTS,
        *SAMPLE_TEXTS,
        *("".join(chance.choices(parts, k=chance.randrange(1, 9))) for _ in range(count)),
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    train_each_kind(folder)
    return folder


def test_the_modules_pass_their_own_tests() -> None:
    assert NODE
    process = subprocess.run([NODE, "--test", str(PAGE / "modules.test.mjs")], capture_output=True, encoding="utf-8")
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_tokenizer_gives_the_same_ids(kind: str, folders: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.load(folders / kind)
    model = random_model(tokenizer)
    assert not html_tokenizer.html_problems(tokenizer)
    texts = odd_texts(300)
    chance = random.Random(2)
    rows = [chance.choices(range(tokenizers.size(tokenizer)), k=chance.randrange(12)) for _ in range(300)]
    ids, decoded, raw = answers(tmp_path, model, ("encode", texts), ("decode", rows), ("bytes",))
    expected = tokenizers.encode_batch(tokenizer, texts)
    assert ids == expected, next(text for text, one, other in zip(texts, ids, expected, strict=True) if one != other)
    assert decoded == [tokenizers.decode(tokenizer, row) for row in rows]
    assert [bytes.fromhex(token) for token in raw] == tokenizers.token_bytes(tokenizer)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bpe", {"normalizer": "nfkc", "parse_special": True}),
        ("spm-unigram", {"normalizer": "lowercase", "parse_special": True}),
        ("char", {"normalizer": "nfc", "parse_special": True}),
    ],
)
def test_options_of_tokenizers_are_followed(kind: str, options: dict[str, Any], folders: Path, tmp_path: Path) -> None:
    more = {"special_tokens": ["<user>", "<user>a"], **options}
    train_tokenizer([str(folders / "text.txt")], tmp_path / "tokenizer", kind, 480, **more)
    tokenizer = tokenizers.load(tmp_path / "tokenizer")
    texts = odd_texts(300)
    (ids,) = answers(tmp_path, random_model(tokenizer), ("encode", texts))
    assert ids == tokenizers.encode_batch(tokenizer, texts)


def adopted(model: Any, split: Any, decoder: Any, normalizer: Any = None) -> Tokenizer:
    """Return a tokenizer of another program."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoder
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(tokenizers.EOS, special=True, normalized=False)])
    return tokenizers.from_json(tokenizer.to_str(), "test", is_tried=True)


LETTERS = {letter: i for i, letter in enumerate(["<unk>", *"abcdefghijklmnop▁ 123,.'L白", "ab", "▁a", "abc", "12"])}
MERGES = [("a", "b"), ("▁", "a"), ("ab", "c"), ("1", "2")]


@pytest.mark.parametrize(
    "tokenizer",
    [
        adopted(models.BPE(LETTERS, MERGES, unk_token="<unk>"), pre_tokenizers.Metaspace(), decoders.Metaspace()),
        adopted(
            models.BPE(LETTERS, MERGES, unk_token="<unk>", fuse_unk=True),
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            ),
            normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        ),
        adopted(
            models.BPE(LETTERS, MERGES),
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.Split(Regex(r"(?i:'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)"), "removed", invert=True),
                    pre_tokenizers.Split("a", "merged_with_previous"),
                ]
            ),
            decoders.Fuse(),
        ),
        adopted(
            models.Unigram([(token, -i / 7) for token, i in LETTERS.items()], unk_id=0),
            pre_tokenizers.Split(Regex(" +"), "contiguous"),
            decoders.Fuse(),
        ),
        adopted(
            models.BPE(LETTERS, MERGES, unk_token="<unk>"),
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex("$|^"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
            ),
            decoders.Fuse(),
            normalizers.Replace(Regex("[bc]"), ""),
        ),
    ],
    ids=["metaspace", "llama", "splits", "unigram", "lines"],
)
def test_parts_of_other_tokenizers_are_implemented(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert not html_tokenizer.html_problems(tokenizer)
    chance = random.Random(3)
    texts = [
        *odd_texts(100),
        *("".join(chance.choices("aabbcc 12'lL,xé白 \n", k=chance.randrange(12))) for _ in range(200)),
    ]
    ids = tokenizers.encode_batch(tokenizer, texts)
    encoded, decoded = answers(tmp_path, random_model(tokenizer), ("encode", texts), ("decode", ids))
    assert encoded == ids
    assert decoded == [tokenizers.decode(tokenizer, row) for row in ids]


@pytest.mark.parametrize("form", [normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD])
def test_characters_that_are_newer_than_the_library_are_not_normalized(form: Any, tmp_path: Path) -> None:
    """Browsers know them. If this fails with a newer Node.js, extend the characters of tokenizer.mjs."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE({letter: i for i, letter in enumerate(letters)}, [])
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = adopted(model, split, decoders.ByteLevel(), form())
    # Without ideographs, Hangul, private use and surrogates, which are many and all alike.
    blocks = [*range(0x34), *range(0xA0, 0xAC), *range(0xF9, 0x170), *range(0x1B0, 0x1FC), *range(0x2F8, 0x2FB)]
    texts = ["".join(f"a{chr(256 * block + i)}\u0301" for i in range(256)) for block in blocks]
    chance = random.Random(4)
    parts = ["a", "\u0327", "\u0301", "\u0334", "\u1100", "\u1161", "\u07fd", "\u1acf", "\u0897", "\U000105d2"]
    parts += ["\u0307", "\U00011935", "\U00011930", "\U0001e030", "\U0001e08f", "\u32ff", "①", "é"]
    texts += ["".join(chance.choices(parts, k=8)) for _ in range(300)]
    (ids,) = answers(tmp_path, random_model(tokenizer), ("encode", texts))
    expected = tokenizers.encode_batch(tokenizer, texts)
    assert ids == expected, next(
        ascii(text) for text, one, other in zip(texts, ids, expected, strict=True) if one != other
    )


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_sentencepiece_model_gives_the_same_ids(model_type: str, tmp_path: Path) -> None:
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SAMPLE_TEXTS, "ﾃｽﾄ①"] * 5),
        model_writer=raw,
        model_type=model_type,
        vocab_size=500,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
    )
    tokenizer = sentencepiece_model.convert(raw.getvalue(), "test")
    assert not html_tokenizer.html_problems(tokenizer)
    texts = [
        *odd_texts(300),
        "ﾃﾞ ｶﾞ①②  e\u0301 ﬁ ½ <sep>a",
        "ｶﾞﾗｽ か\u3099は\u309a \u1100\u1161\u11a8\u0308 a\u3099 \u3000\u0308",
    ]
    ids = tokenizers.encode_batch(tokenizer, texts)
    encoded, decoded = answers(tmp_path, random_model(tokenizer), ("encode", texts), ("decode", ids))
    assert encoded == ids, next(text for text, one, other in zip(texts, encoded, ids, strict=True) if one != other)
    assert decoded == [tokenizers.decode(tokenizer, row) for row in ids]


def test_tokenizers_that_the_page_does_not_implement_are_refused(folders: Path) -> None:
    (problem,) = html_tokenizer.html_problems(tokenizers.load(folders / "wordpiece"))
    assert "WordPiece tokenizer does not encode every text without loss" in problem
    model = models.BPE(LETTERS, MERGES)
    (problem,) = html_tokenizer.html_problems(adopted(model, pre_tokenizers.Punctuation(), decoders.Fuse()))
    assert problem.startswith("the page does not implement the tokenizer's pre-tokenizer Punctuation")
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
    for split, normalizer in (
        (spaces, normalizers.Replace("ab", "x")),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), spaces]), None),
    ):
        (problem,) = html_tokenizer.html_problems(adopted(model, split, decoders.Fuse(), normalizer))
        assert "prepend_scheme 'first' beside its other steps" in problem
    for pattern in (r"\p{Han}", "a++", r"\h", "(?>a)", "a.b", r"[a&&b]"):
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        (problem,) = html_tokenizer.html_problems(adopted(model, split, decoders.Fuse()))
        assert "browsers do not have all of the tokenizer's expression" in problem, pattern


@pytest.mark.parametrize("engine", ["webassembly", "javascript"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "silu"])
def test_logits_agree(activation: str, engine: str, folders: Path, tmp_path: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"), activation_function=activation)
    ids = [(37 * i) % 480 for i in range(18)]
    (logits,) = answers(tmp_path, model, ("logits", ids), engine=engine)
    expected = huggingface.compute_logits(model.model, ids)
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "allowed"), [("int8", 5e-3), ("float16", 1e-4)])
def test_logits_are_those_of_the_rounded_weights(dtype: Any, allowed: float, folders: Path, tmp_path: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"))
    ids = [(37 * i) % 480 for i in range(18)]
    (logits,) = answers(tmp_path, model, ("logits", ids), dtype=dtype)
    expected = huggingface.compute_logits(GPT2.from_state(model.shape, html.rounded(model, dtype)), ids)
    torch.testing.assert_close(torch.tensor(logits), expected, atol=allowed, rtol=0)
    original = huggingface.compute_logits(model.model, ids)
    assert (expected - original).abs().max() > allowed, "rounding is not hidden by the tolerance"


def test_weights_that_are_too_large_are_refused(folders: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"))
    model.state["transformer.h.0.mlp.c_fc.weight"][0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"c_fc\.weight: too large for float16"):
        html.pack(model, "float16")


def generate(model: LoadedCheckpoint, prompt: str, **options: Any) -> str:
    generator = Generator(model, "32")
    return "".join(chunk.text for chunk in generator.generate([prompt], GenerationOptions(**options)))


@pytest.mark.parametrize("kind", ["bpe", "spm-unigram", "words"])
def test_text_is_that_of_generate(kind: str, folders: Path, tmp_path: Path) -> None:
    """Greedy and sampled text, token healing, and texts that outgrow the context."""
    model = random_model(tokenizers.load(folders / kind))
    settings: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_k": 40, "seed": 7, "token_healing": False}, {"topK": 40, "seed": 7, "tokenHealing": False}),
        ({"min_p": 0.01, "repetition_penalty": 1.3}, {"minP": 0.01, "repetitionPenalty": 1.3}),
    ]
    cases = list(itertools.product(PROMPTS, settings))
    requests = [("generate", prompt, {"maxNewTokens": 20, **options}) for prompt, (_, options) in cases]
    texts = [answer["text"] for answer in answers(tmp_path, model, *requests)]
    assert texts == [generate(model, prompt, max_new_tokens=20, **options) for prompt, (options, _) in cases]


def test_verse_is_that_of_generate(folders: Path, tmp_path: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"))
    requests = [("generate", prompt, {"lines": 4, "charsPerLine": 5, "seed": 3}) for prompt in ("", "白日")]
    ends = ("generate", "", {"lines": 3, "charsPerLine": 2, "lineEnds": ["\n"], "seed": 3})
    texts = [answer["text"] for answer in answers(tmp_path, model, *requests, ends)]
    assert texts[:2] == [generate(model, prompt, lines=4, chars_per_line=5, seed=3) for prompt in ("", "白日")]
    assert texts[2] == generate(model, "", lines=3, chars_per_line=2, line_ends=["\n"], seed=3)
    assert re.fullmatch(r"\w{5}，\w{5}。\n\w{5}，\w{5}。", texts[0])


def test_alternatives_have_the_probabilities_of_the_model(folders: Path, tmp_path: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"))
    (answer,) = answers(tmp_path, model, ("generate", "the quick", {"maxNewTokens": 4}))
    generator = Generator(model, "32")
    chunks = generator.generate(["the quick"], GenerationOptions(max_new_tokens=4), alternatives=5)
    sampled = [chunk.sampled for chunk in chunks if chunk.sampled]
    assert len(sampled) == len(answer["chunks"]) - 1 >= 4
    for own, other in zip(sampled, answer["chunks"], strict=False):
        assert own.token == other["token"] and math.isclose(own.probability, other["probability"], rel_tol=1e-4)
        assert [token for token, _ in own.most_likely] == [item["token"] for item in other["alternatives"]]


def test_bits_per_byte_are_those_of_test(folders: Path, tmp_path: Path) -> None:
    text = "the quick brown fox, 白日依山盡 " * 5
    tokenizer = tokenizers.load(folders / "bpe")
    model, end = random_model(tokenizer), tokenizers.eos_id(tokenizer)
    (score,) = answers(tmp_path, model, ("score", text))
    ids = np.array([end, *tokenizers.encode(tokenizer, text), end])
    (nats,) = scoring.predict_texts(model.model, [ids], None, 16, "32")
    assert score["bytes"] == len(text.encode()) + 1 and score["tokens"] == len(ids) - 1
    assert math.isclose(score["nats"], nats.sum(), rel_tol=1e-5)


def test_draws_are_those_of_generate(tmp_path: Path) -> None:
    keys = [(1, 0, 0), (2**53, 3, -4), (-5, 0, 123456), (10**15, 99, 7)]
    (points,) = answers(tmp_path, None, ("uniform", keys))
    assert points == [uniform(*key) for key in keys]


HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e"


def test_hostile_names_stay_text_and_the_policy_permits_only_the_page_itself(folders: Path, tmp_path: Path) -> None:
    model = random_model(tokenizers.load(folders / "bpe"))
    model.metadata["start"] = {"from": HOSTILE}
    html.write(tmp_path / "a.html", model, "int8", HOSTILE, HOSTILE)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    parsed = PageText(page)
    assert "img" not in parsed.tags and "\u202e" not in page and "://" not in page
    assert parsed.links == ["data:,"]
    assert parsed.text.count("<img src=x onerror=alert(1)>") == 4, "title, heading, initial weights and licence"
    policy = re.search(r'Policy" content="([^"]*)"', page)
    assert policy
    directives = dict(part.split(" ", 1) for part in policy[1].replace("&#39;", "'").split("; "))
    assert directives["default-src"] == "'none'" and "unsafe-inline" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 and html.content_hash(scripts[0]) in directives["script-src"]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert html.content_hash(style) == directives["style-src"]


def test_only_a_page_is_replaced_and_only_with_force(folders: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    html.refuse_other_file(target, force=False)
    html.write(target, random_model(tokenizers.load(folders / "bpe")), "int8", "a")
    html.refuse_other_file(target, force=True)
    with pytest.raises(UserError, match=r"already exists\. Name another file, or replace it with --force"):
        html.refuse_other_file(target, force=False)
    target.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="is not an earlier export"):
        html.refuse_other_file(target, force=True)
    with pytest.raises(UserError, match="is a folder"):
        html.refuse_other_file(tmp_path, force=True)
