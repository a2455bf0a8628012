"""The model card: what the hub reads in its header, what a reader sees, and nothing that a name or a text injects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT, SMALL_SHAPE, PageText
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from gpt2kit import __version__
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.export import card
from gpt2kit.export.card import Details, Sample
from gpt2kit.export.options import CardOptions, card_problems, repository_problems
from gpt2kit.model.config import parameter_count
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer

HOSTILE = [
    "a\n---\nlicense: mit\n---\n# b",
    "---",
    "a: [b, {c",
    "'\"`@%&*!|>#",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "```\n<img src=x>\n```",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "| a | b |\n|---|---|",
    "\u2028---\u2028\x00\x1b[31m\u202e",
    "\ud800 and 春🙂",
    "!!python/object/apply:os.system [x]",
    "",
]


@pytest.fixture
def untrained(corpus: Path) -> LoadedCheckpoint:
    torch.manual_seed(1)
    shape = {**SMALL_SHAPE, "vocab_size": 320}
    state = GPT2(shape).state_dict()
    return LoadedCheckpoint(Path("/runs/one"), shape, tokenizer.load(corpus / "tokenizer"), {}, state=state)


def render(opened: LoadedCheckpoint, details: Details = Details(), name: str = "mine", dtype: str = "float32") -> str:
    return card.render_card(opened, name, dtype, details)


def header(text: str) -> dict[str, Any]:
    """Return what the hub reads, by the hub's own pattern."""
    match = REGEX_YAML_BLOCK.search(text)
    assert match
    content = yaml.safe_load(match.group(2))
    assert isinstance(content, dict)
    return content


def test_the_card_has_the_figures_and_no_paths(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(
        **{"tokens_seen": 14000, "train_tokens": 7000, "val_bpb": 1.23456, "start": {"from": "/home/me/a/b"}},
        **{"step": 100, "data": {"global_batch": 4, "block_size": 35}},
        settings={"model": {"optimizer": {"class_path": "gpt2kit.optim.Muon", "init_args": {"lr": 0.005}}}},
    )
    text = render(untrained)
    for row in (
        "| tokens seen in training | 14,000 |",
        "| training text | 7,000 tokens |",
        "| passes over the training text | 2.00 |",
        "| optimizer steps | 100 |",
        "| tokens per step | 140 |",
        "| optimizer | Muon, learning rate 0.005 |",
        "| bits per byte of the validation text | 1.2346 |",
        "| shape | 2 layers, 2 heads, width 32 |",
        "| context | 16 tokens |",
        f"| parameters | {parameter_count(untrained.shape):,}, as float32 |",
        "| initial weights | a/b |",
    ):
        assert row in text, row
    assert "base_model" not in text and "/runs" not in text and "/home" not in text
    untrained.metadata.update(start={"from": "a\ud800"})  # half a surrogate pair, which no file can hold
    assert "| initial weights | a\\<U+D800\\> |" in render(untrained)


def test_the_header_is_what_the_options_and_the_run_say(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(val_bpb=1.23456, start={"from": "hf://owner/base@main"}, document_start=0)
    options = CardOptions("cc-by-sa-4.0", ["en", "zh"], ["owner/texts"])
    samples = [Sample("Once", "Once upon"), Sample("", "A text")]
    text = render(untrained, Details(options, "me/model", samples), dtype="float16")
    content = header(text)
    assert (content["license"], content["language"]) == ("cc-by-sa-4.0", ["en", "zh"])
    assert (content["datasets"], content["base_model"]) == (["owner/texts"], "owner/base")
    assert content["tags"] == ["gpt2", "gpt2kit"] and content["pipeline_tag"] == "text-generation"
    assert content["widget"] == [{"text": "Once"}]
    [result] = ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("bits_per_byte", 1.2346, "validation")
    assert result.dataset_type == "owner/texts"
    assert (
        'model="me/model"' in text and "Prompt: Once\n\n    Once upon\n" in text and "No prompt\n\n    A text" in text
    )
    assert "| tokens see only their own document | yes |" in text


def test_what_is_unknown_is_left_out(untrained: LoadedCheckpoint) -> None:
    untrained.metadata.update(tokens_seen="many", val_bpb=None, train_tokens=True, step=-1, settings={"data": 1})
    text = render(untrained)
    assert set(header(text)) == {"library_name", "pipeline_tag", "tags"}
    for word in ("many", "bits per byte of the", "initial weights", "None", "Samples", "optimizer", "hours", "device"):
        assert word not in text, word


def test_datasets_of_the_hub_are_those_of_the_training_files() -> None:
    files = ["hf://datasets/owner/a?config=x&split=train", "hf://datasets/b", "hf://datasets/owner/a", "c.txt"]
    files += ["hf://datasets/../etc", "hf://datasets/a\nb"]
    assert card.find_datasets({"settings": {"data": {"train_files": files}}}) == ["owner/a", "b"]
    assert card.find_datasets({"settings": {"data": {"train_files": "hf://datasets/owner/a"}}}) == ["owner/a"]
    assert card.find_datasets({"settings": {"data": None}}) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_texts_change_neither_the_header_nor_the_page(untrained: LoadedCheckpoint, text: str) -> None:
    expected = header(render(untrained, Details(samples=[Sample("a", "b")])))
    callbacks = [{"init_args": {"prompts": [text]}}]
    untrained.metadata.update(
        val_bpb=1.0,
        start={"from": f"hf://{text}"},
        settings={
            "trainer": {"callbacks": callbacks},
            "data": {"train_files": [f"hf://datasets/{text}"]},
            "model": {"optimizer": {"class_path": text}},
        },
    )
    samples = [Sample(text.encode(errors="replace").decode(), text.encode(errors="replace").decode())]
    page = render(untrained, Details(samples=samples), name=text)
    content = header(page)
    assert set(content) <= {*expected, "model-index", "widget"}, "no key of the text's own"
    assert content["tags"] == ["gpt2", "gpt2kit"]
    if text:
        assert content["widget"] == [{"text": samples[0].prompt}]
    markdown = pytest.importorskip("markdown_it", reason="the packages of make docs are not installed").MarkdownIt
    body = page[REGEX_YAML_BLOCK.search(page).end() :]  # type: ignore[union-attr]
    html = PageText(markdown("commonmark", {"html": True}).enable("table").render(body))
    assert not {"img", "script"} & set(html.tags) and not [link for link in html.links if "gpt2kit" not in link]
    assert html.tags.count("table") == 1 and html.tags.count("h1") == 1
    assert "Citation" in html.text
    page.encode()  # the file can be written


def test_figures_of_test_are_in_the_model_index(untrained: LoadedCheckpoint, tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "epoch=1-step=20.ckpt"
    file.parent.mkdir(parents=True)
    opened = LoadedCheckpoint(file, untrained.shape, untrained.tokenizer, {"step": 20, "val_bpb": 2.0}, state={})
    run = file.parent.parent
    (run / "metrics.csv").write_text("step,val_bpb,val_ppl,hours\n10,3,30,0.25\n20,2,20,0.5\n30,1,10,0.75\n")
    device = {"kind": "cuda", "name": "GPU <7>", "count": 2}
    (run / "start.json").write_text(json.dumps([{"start": {"device": device}}]))
    figures = {"file": f"elsewhere/{file.name}", "bits_per_byte": 1.5, "perplexity": 15.0}
    (run / "test.json").write_text(json.dumps({"results": [figures], "text": {"bytes": 4574}}))
    text = render(opened)
    scores = {
        (score.split, score.text): (score.bits_per_byte, score.perplexity) for score in card.read_scores(opened, run)
    }
    assert scores == {("validation", "validation text"): (2, 20), ("test", "test text, 4,574 bytes"): (1.5, 15)}
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in ModelCard(text).data.eval_results}
    assert results[("test", "perplexity")] == 15 and results[("validation", "bits_per_byte")] == 2
    assert "| hours of training | 0.5 |" in text and "| device | 2 x GPU \\<7\\> |" in text
    texts = {name: {"results": [{**figures, "bits_per_byte": bits}]} for name, bits in (("poems", 1.5), ("songs", 2.5))}
    (run / "test.json").write_text(json.dumps({"texts": texts}))
    named = {
        r.dataset_config: r.metric_value for r in ModelCard(render(opened)).data.eval_results if r.metric_type[0] == "b"
    }
    assert named == {None: 2, "poems": 1.5, "songs": 2.5}, "each text has its own figures"
    for content in ("[", "{}", '{"results": 1}', json.dumps({"results": [{**figures, "file": "other.ckpt"}]})):
        (run / "test.json").write_text(content)
        assert [score.split for score in card.read_scores(opened, run)] == ["validation"], content


def test_samples_continue_the_prompts_of_the_run(untrained: LoadedCheckpoint) -> None:
    callback = {"class_path": "X", "init_args": {"prompts": ["the quick", "", "x" * 999, "a fox", "more"]}}
    untrained.metadata.update(settings={"trainer": {"callbacks": [callback]}})
    samples = card.generate_samples(untrained)
    assert [sample.prompt for sample in samples] == ["the quick", "", "a fox"]
    assert all(sample.text.startswith(sample.prompt) and sample.text != sample.prompt for sample in samples)
    assert card.generate_samples(untrained) == samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CardOptions(license="MIT License"), "--license 'MIT License': not an identifier"),
        (CardOptions(language=["en", "English"]), "--language 'English': not a code"),
        (CardOptions(datasets=["a/b/c"]), "--datasets 'a/b/c': not a name on the hub"),
    ],
)
def test_invalid_options_are_refused(options: CardOptions, message: str) -> None:
    [problem] = card_problems(options)
    assert problem.startswith(message)


def test_names_of_repositories_are_checked() -> None:
    assert not repository_problems("model", "owner/space") and not repository_problems(None, None)
    assert len(repository_problems("a b", "space")) == 2
    assert not card_problems(CardOptions("apache-2.0", ["en", "zh-Hant", "code"], ["squad", "owner/texts"]))


def test_the_citation_is_that_of_the_project(untrained: LoadedCheckpoint) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = render(untrained)
    for value in (citation["title"], __version__, citation["repository-code"], citation["authors"][0]["name"]):
        assert f"{{{value}}}" in text, value
