"""`reader.loss_on`: exactly the tokens of the named fields are targets, however the store was built and is read."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from gpt2kit.data import build, parallel_build, remote
from gpt2kit.data.batches import EvalBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.order import CONTEXT
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, UserError
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import HashRange
from gpt2kit.tokenization import tokenizer

TEMPLATE = r"{title}\n{body} ({year})"
# The last part is counted, or context; two fields are counted; all text between them is context.
LOSS_ON = {"{title}\\n{body}": ["body"], TEMPLATE: ["body"], "{body}|{title}|{year}": ["body", "year"]}


@pytest.fixture
def texts(tmp_path: Path) -> list[dict[str, str]]:
    return [{"title": f"fox {n % 3}", "body": f"{n} lazy dogs\n日本" * (n % 4 + 1), "year": f"{n}"} for n in range(60)]


@pytest.fixture
def text(tmp_path: Path, trained: Tokenizer, texts: list[dict[str, str]], small_batches: None) -> Corpus:
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text("".join(json.dumps(record) + "\n" for record in texts[20 * number : 20 * number + 20]))
    return Corpus(paths, trained, Reader(template=TEMPLATE, loss_on="body"), shard_tokens=90)


def expected_tokens(corpus: Corpus, texts: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Return all ids of the texts, and whether the loss counts each, computed without a store."""
    ids, counts = [tokenizer.eos_id(corpus.tokenizer)], [False]
    template = (corpus.reader.template or "").replace("\\n", "\n")
    for record in texts:
        parts = [
            (name in corpus.reader.loss_on, record.get(name, name)) for name in template.replace("}", "{").split("{")
        ]
        for is_counted, group in itertools.groupby([part for part in parts if part[1]], lambda part: part[0]):
            part_ids = corpus.tokenizer.encode("".join(text for _, text in group)).ids
            ids += part_ids
            counts += [is_counted] * len(part_ids)
        ids.append(ids[0])
        counts.append(counts[-1])
    return ids, counts


def marked(store: TokenStore) -> list[int]:
    return store.marked(slice(0, len(store))).tolist()


@pytest.mark.parametrize("template", LOSS_ON)
def test_only_tokens_of_the_named_fields_are_targets(
    template: str, text: Corpus, texts: list[dict[str, str]], tmp_path: Path
) -> None:
    corpus = replace(text, reader=Reader(template=template, loss_on=LOSS_ON[template]))
    store = build.open_or_build(corpus, tmp_path / "cache")
    ids, counts = expected_tokens(corpus, texts)
    assert len(store.shards) > 5 and store[0 : len(store)].tolist() == ids
    signed = [token if is_counted else CONTEXT - token for token, is_counted in zip(ids, counts, strict=True)]
    assert marked(store)[1:] == signed[1:]
    batches = torch.cat([*EvalBatches(store, block_size=7, batch_size=4)])[:, 1:]
    assert batches[batches >= 0].tolist() == [token for token in signed[1:] if token >= 0], "labels, in order"
    sizes = [[record[name] for name in corpus.reader.loss_on] for record in texts]
    ends = counts[-1] * len(texts)
    assert store.predicted == (sum(counts), sum(len(value.encode()) for size in sizes for value in size) + ends)
    assert store.counted()[:, 2].tolist() == [sum(map(len, size)) for size in sizes]
    assert store.lengths()[:, 0].sum() + len(texts) + 1 == len(store), "documents keep their context"


def test_the_mask_survives_parts_interruptions_and_streaming(text: Corpus, tmp_path: Path) -> None:
    expected = build.open_or_build(text, tmp_path / "single")
    for part in parallel_build.split_corpus(text, 3).values():
        build.open_or_build(part, tmp_path / "parts")
    merged = parallel_build.merge(text, 3, tmp_path / "parts")

    def interrupt(done: int, total: int) -> None:
        if len([*(tmp_path / "interrupted").glob("*/*.doc")]) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.open_or_build(text, tmp_path / "interrupted", interrupt)
    (next((tmp_path / "interrupted").glob("*/000001.bin"))).unlink()
    continued = build.open_or_build(text, tmp_path / "interrupted")
    streamed = remote.open_store(str(tmp_path / "parts"), text, "text", tmp_path / "scratch")
    assert min(marked(expected)) < CONTEXT
    for store in (merged, continued, streamed):
        assert marked(store) == marked(expected)
        assert (store.predicted, store.fingerprint) == (expected.predicted, expected.fingerprint)
    assert [shard.sha256 for shard in continued.shards] == [shard.sha256 for shard in expected.shards]


def test_another_loss_on_is_another_store_and_another_text_for_a_run(
    trained: Tokenizer, small_batches: None, tmp_path: Path
) -> None:
    """Both fields have the same size, so only the mask differs."""
    (tmp_path / "a.json").write_text(json.dumps([{"a": "fox", "b": "dog"}] * 9))
    readers = [Reader(template="{a}{b}", loss_on=names) for names in ("a", ["b"], ["a", "b"], None)]
    stores = [build.open_or_build(Corpus([tmp_path / "a.json"], trained, r), tmp_path / "cache") for r in readers]
    assert len({store.folder for store in stores}) == len({store.fingerprint for store in stores[:2]}) + 2 == 4
    assert "loss_on" not in readers[3].identity() and readers[1].identity()["loss_on"] == ["b"]
    assert [store.index.loss_mask for store in stores] == [True, True, True, False]


def test_the_split_of_a_document_does_not_depend_on_its_mask(text: Corpus) -> None:
    split = HashRange(0.0, 0.5, seed=1)
    masked, plain = (
        replace(text, reader=reader, split_range=split) for reader in (text.reader, Reader(template=TEMPLATE))
    )
    documents = list(plain.pieces())
    assert "".join(masked.pieces()) == "".join(documents) and 10 < len(documents) < 50


def test_ids_and_the_mask_fit_into_a_token(text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = marked(build.open_or_build(text, tmp_path / "cache"))
    for size, dtype in ((1 << 15, "<u2"), ((1 << 15) + 1, "<u4")):
        monkeypatch.setattr(tokenizer, "size", lambda _, size=size: size)
        store = build.open_or_build(text, tmp_path / dtype[1:])
        assert store.index.dtype == dtype and marked(store) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_on": "body"}, r"reader\.loss_on \['body'\]: must be a field of data\.reader\.template, or several"),
        ({"template": "{a}", "loss_on": ["a", "b"]}, "must be a field"),
        ({"template": "{a}", "loss_on": 5}, "must be a field"),
        ({"template": "{a}", "loss_on": "a", "document": "line"}, "needs data.reader.document file"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Reader(**options)  # type: ignore[arg-type]


def test_text_without_the_fields_is_never_counted_as_a_whole(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "a.jsonl").write_text('"plain"\n')
    (tmp_path / "b.jsonl").write_text('{"a": "", "b": "context"}\n')
    reader = Reader(template="{a}{b}", loss_on="a")
    for name, message in {
        "a.txt": "plain text has no fields for data.reader.loss_on",
        "a.jsonl": "str instead of an object",
        "b.jsonl": "no text found.*records without text in a",
    }.items():
        with pytest.raises(DataError, match=message):
            build.open_or_build(Corpus([tmp_path / name], trained, reader), tmp_path / "cache")
