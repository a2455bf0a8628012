"""Checkpoints of nanoGPT, its forks, and GPT2 by affjljoo3581.

tests/data/foreign has small models with random weights (2 layers, 2 heads, width 8, context 8, normal with a deviation
of 0.4), the vocabulary being 11 tokens. nanogpt_bias.pt (with the prefix of torch.compile) and nanogpt.pt (without
biases) were saved in the form of nanoGPT's train.py, from its model.py; affjljoo3581.pth (rows for 16 tokens, an inner
width of 24) in the form of GPT2's trainer, from its `Transformer`. logits.pt has ids, and the logits that these classes
computed in eval mode, with nanoGPT's attention in matrices. On the machine that computed them, gpt2kit's differed by 0
from nanoGPT's (eager attention) and by 7e-7 from the other's.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, train_tokenizer

import gpt2kit
from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli import test as test_command
from gpt2kit.errors import CheckpointError, DataError, UserError
from gpt2kit.export import huggingface
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.serving.models import Service, find_models
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer

DATA = ROOT / "tests" / "data" / "foreign"
LETTERS = list("\n abcdefghi")


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """nanoGPT's file of a vocabulary."""
    file = tmp_path / "meta.pkl"
    itos = dict(enumerate(LETTERS))
    file.write_bytes(pickle.dumps({"vocab_size": 11, "itos": itos, "stoi": {c: i for i, c in itos.items()}}))
    return file


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of nanoGPT's checkpoint, to be changed."""
    return copy.deepcopy(torch.load(DATA / "nanogpt.pt", weights_only=True))


def mean_nats(file: Path, options: ForeignOptions, text: str) -> float:
    """Return the loss of a text that fits into the context, from its second token on."""
    opened = checkpoint.open(file, options=options)
    ids = torch.tensor([tokenizer.encode(opened.tokenizer, text)])
    with torch.no_grad():
        return float(opened.model.token_nll(ids).mean())


@pytest.mark.parametrize(("file", "n_head"), [("nanogpt_bias.pt", None), ("nanogpt.pt", None), ("affjljoo3581.pth", 2)])
def test_logits_are_those_of_the_other_program(file: str, n_head: int | None, meta: Path) -> None:
    expected = torch.load(DATA / "logits.pt", weights_only=True)
    model = checkpoint.open(DATA / file, options=ForeignOptions(str(meta), n_head)).model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(expected["ids"]).logits
    difference = logits[..., :11] - expected[file.partition(".")[0]][..., :11]
    assert difference.abs().max() < 2e-6


def test_final_weights_of_chipogen_are_read(content: dict[str, Any], meta: Path, tmp_path: Path) -> None:
    state = {name.replace("transformer.h.", "transformer.attn."): t for name, t in content["model"].items()}
    state["transformer.attn.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()  # the causal mask
    torch.save(state, tmp_path / "model26M-1.pth")
    opened = checkpoint.open(tmp_path / "model26M-1.pth", options=ForeignOptions(str(meta), 2))
    expected = checkpoint.open(DATA / "nanogpt.pt", options=ForeignOptions(str(meta)))
    assert opened.shape == expected.shape
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in opened.state.items())


def write_list(folder: Path) -> Path:
    (folder / "letters.json").write_text(json.dumps(LETTERS))
    return folder / "letters.json"


def adopt_list(folder: Path) -> Path:
    train_tokenizer(output_dir=folder / "tokenizer", kind="char", vocab=str(write_list(folder)))
    return folder / "tokenizer"


def write_lines(folder: Path) -> Path:
    (folder / "letters.txt").write_text("\n".join("" if letter == "\n" else letter for letter in LETTERS) + "\n")
    return folder / "letters.txt"


@pytest.mark.parametrize("make", [write_list, write_lines, adopt_list])
def test_any_form_of_a_vocabulary_keeps_the_ids_and_adds_none(
    make: Callable[[Path], Path], meta: Path, tmp_path: Path
) -> None:
    expected = checkpoint.open(DATA / "nanogpt.pt", options=ForeignOptions(str(meta)))
    opened = checkpoint.open(DATA / "nanogpt.pt", options=ForeignOptions(str(make(tmp_path))))
    assert tokenizer.size(opened.tokenizer) == 11 and tokenizer.find_eos(opened.tokenizer) is None
    for other in (opened.tokenizer, expected.tokenizer):
        assert tokenizer.encode(other, "a\nbé i") == [2, 0, 3, 1, 10]
        assert tokenizer.decode(other, [2, 0, 3, 1, 10]) == "a\nb i"


def test_padded_rows_are_left_out(corpus: Path, content: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = tokenizer.load(corpus / "tokenizer")
    size = tokenizer.size(vocabulary)
    rows = torch.randn(-(-size // 64) * 64, 8)
    content["model"] |= {"transformer.wte.weight": rows, "lm_head.weight": rows}
    torch.save(content, tmp_path / "ckpt.pt")
    opened = checkpoint.open(tmp_path / "ckpt.pt", options=ForeignOptions(str(corpus / "tokenizer")))
    assert opened.shape["vocab_size"] == size and torch.equal(opened.model.lm_head.weight[:size], rows[:size])
    assert tokenizer.to_json(opened.tokenizer) == tokenizer.to_json(vocabulary)


def test_what_is_missing_or_wrong_is_one_clear_error(
    content: dict[str, Any], corpus: Path, meta: Path, tmp_path: Path
) -> None:
    def message(file: Path, *options: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            checkpoint.open(file, options=ForeignOptions(*options))
        return str(caught.value).replace(f"{file}: ", "")

    nanogpt, other = DATA / "nanogpt.pt", DATA / "affjljoo3581.pth"
    assert "without a tokenizer. Give the vocabulary that it was trained with as --tokenizer PATH" in message(nanogpt)
    assert message(other, str(meta)).startswith("does not record its number of attention heads")
    assert message(nanogpt, str(meta), 4) == "records 2 attention heads, not --n_head 4. Omit it"
    assert "has 11 tokens, but --tokenizer" in message(nanogpt, str(corpus / "tokenizer"))
    assert message(nanogpt, "missing.pkl").startswith("--tokenizer missing.pkl: no such file")
    with pytest.raises(CheckpointError, match=r"^model.init_from: .* as --data.tokenizer PATH"):
        initialize.open_source(str(nanogpt))
    (tmp_path / "model").mkdir()
    huggingface.write(checkpoint.open(nanogpt, options=ForeignOptions(str(meta))), tmp_path / "model", "m", "float32")
    advice = "has its own tokenizer and shape, which are used. Leave out --tokenizer"
    assert advice in message(tmp_path / "model", str(meta))
    assert message(tmp_path / "model", str(meta), 2).endswith("Leave out --tokenizer and --n_head")
    matrix = "transformer.h.1.mlp.c_fc.weight"
    for value in (None, 7, torch.ones(8, 32), torch.ones(32, 8).long(), torch.zeros(0, 1 << 50)):
        torch.save({**content, "model": {**content["model"], matrix: value}}, tmp_path / "ckpt.pt")
        assert message(tmp_path / "ckpt.pt", str(meta)).startswith(f"tensor model.{matrix}"), value
    for heads in ("2", torch.ones(2), 3):
        torch.save({**content, "model_args": {"n_head": heads}}, tmp_path / "ckpt.pt")
        assert "model.n_" in message(tmp_path / "ckpt.pt", str(meta)), heads


def test_a_text_begins_with_a_prompt_and_ends_by_its_length_or_a_stop_string(meta: Path) -> None:
    model = gpt2kit.load(DATA / "nanogpt.pt", tokenizer=meta)
    with pytest.raises(UserError, match="no end-of-text token, so a text cannot begin without a prompt"):
        model.generate()
    with pytest.raises(UserError, match="verse ends with the end-of-text token"):
        model.generate("a", lines=2)
    text = model.generate("\nab", max_new_tokens=20)
    assert len(text) == 23 and set(text) <= set(LETTERS)
    letter = text[10]
    assert model.generate("\nab", max_new_tokens=20, stop=letter) == text[: text.index(letter, 3)]
    banned = model.generate("\nab", max_new_tokens=20, bad_words=letter)
    assert len(banned) == 23 and letter not in banned[3:]


def test_scores_begin_with_the_second_token_of_each_document(
    meta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, options = DATA / "nanogpt.pt", ForeignOptions(str(meta))
    documents = ["abcd", "e", "fgéab"]  # é is not in the vocabulary
    nats = 3 * mean_nats(file, options, "abcd") + 3 * mean_nats(file, options, "fgab")
    scores = gpt2kit.load(file, tokenizer=meta).score(documents)
    assert [score.tokens for score in scores] == [score.bytes for score in scores] == [3, 0, 3]
    assert sum(score.nats for score in scores) == pytest.approx(nats, rel=1e-6)
    assert [row.token for row in gpt2kit.load(file, tokenizer=meta).surprisal("abcd")] == ["b", "c", "d"]
    Path("text.txt").write_text("\n".join(documents), encoding="utf-8")
    evaluation = test_command.EvaluationOptions(html=Path("page.html"), surprisal=Path("table.tsv"))
    test_command.test([str(file)], ["text.txt"], Reader("line"), evaluation, "test.json", foreign=options)
    report = json.loads(Path("test.json").read_text())
    [row] = report["results"]
    assert row["tokens"] == 6 and row["nll"] == pytest.approx(nats, rel=1e-6) and not row["predicts_first"]
    assert row["bits_per_byte"] == pytest.approx(nats / 6 / math.log(2), rel=1e-6)
    assert row["perplexity_per_word"] is None and report["text"]["bytes"] == 11
    assert any("each document is predicted from its second token on" in note for note in report["notes"])
    assert [line.split("\t")[:3] for line in Path("table.tsv").read_text().splitlines()[1:3]] == [
        ["1", "b", "1"],
        ["1", "c", "2"],
    ]
    assert "not predicted" in Path("page.html").read_text()
    with pytest.raises(UserError, match="--memorization: generates text from the end-of-text token"):
        memorization = test_command.EvaluationOptions(memorization=True, train_files=["text.txt"])
        test_command.test([str(file)], ["text.txt"], Reader("line"), memorization, foreign=options)


def test_an_exported_folder_has_no_end_of_text_token_either(meta: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    opened = checkpoint.open(DATA / "nanogpt.pt", options=ForeignOptions(str(meta)))
    huggingface.write(opened, tmp_path, "m", "float32")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] is None and config["bos_token_id"] is None and config["vocab_size"] == 11
    assert AutoTokenizer.from_pretrained(tmp_path)("a\nb i")["input_ids"] == [2, 0, 3, 1, 10]
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = GPT2LMHeadModel.from_pretrained(tmp_path).eval()(ids).logits
        torch.testing.assert_close(logits, opened.model(ids).logits[..., :11])
    assert "no end-of-document token" in (tmp_path / "README.md").read_text()
    again = checkpoint.open(tmp_path)
    assert tokenizer.to_json(again.tokenizer) == tokenizer.to_json(opened.tokenizer)


def test_a_folder_in_the_cache_keeps_a_vocabulary_without_an_end_of_text_token(meta: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(DATA / "nanogpt.pt", options=ForeignOptions(str(meta)))
    folder = Path(initialize.cache_tokenizer(opened.tokenizer, str(tmp_path)))
    loaded = tokenizer.load(folder)
    assert tokenizer.to_json(loaded) == tokenizer.to_json(opened.tokenizer) and tokenizer.find_eos(loaded) is None
    (folder / tokenizer.SETTINGS).write_text('{"eos_token": null}')  # as another program writes it
    with pytest.raises(DataError, match="endoftext"):
        tokenizer.load(folder)


def test_the_demo_serves_it(meta: Path) -> None:
    service = Service(find_models([str(DATA / "nanogpt.pt")]), foreign=ForeignOptions(str(meta)))
    service.load().join()
    [model] = service.models.values()
    assert not model.failure and model.examples == []
    with pytest.raises(UserError, match="cannot begin without a prompt"):
        list(service.generator(model.name).generate([""], GenerationOptions()))


def test_models_beside_it_keep_their_tokenizers(meta: Path, tmp_path: Path) -> None:
    options = ForeignOptions(str(meta))
    exported = tmp_path / "model"
    exported.mkdir()
    huggingface.write(checkpoint.open(DATA / "nanogpt.pt", options=options), exported, "m", "float32")
    paths = [str(DATA / "nanogpt.pt"), str(exported)]
    assert [info.applicable(options).tokenizer for info in checkpoint.peek_all(paths, options)] == [str(meta), None]
    service = Service(find_models(paths), foreign=options)
    service.load().join()
    assert [model.failure for model in service.models.values()] == ["", ""]
    with pytest.raises(CheckpointError, match="--tokenizer: all checkpoints have their own"):
        checkpoint.peek_all([exported, exported], options)
