from __future__ import annotations

import pytest

from gpt2kit.data.problems import data_problems
from gpt2kit.data.texts import TextOptions

VALID: dict[str, object] = {
    "train_files": "a.txt",
    "valid_files": None,
    "test_files": None,
    "valid_fraction": None,
    "test_fraction": None,
    "block_size": 16,
    "batch_size": 4,
    "global_batch_size": None,
    "stride": None,
    "mask_documents": False,
    "append_eos": True,
    "cache_dir": ".cache",
    "shard_tokens": 9,
    "num_workers": 0,
    "streaming": False,
    "window_shards": 4,
}


@pytest.mark.parametrize(
    "options",
    [{}, {"valid_files": "a.txt"}, {"valid_fraction": 0.1, "test_fraction": 0.2}, {"valid_fraction": 0.0}],
)
def test_valid_options_have_no_problems(options: dict[str, object]) -> None:
    assert not data_problems({**VALID, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "data.stride 0: must be at least 1"),
        ({"stride": 17}, "data.stride 17: must be at most data.block_size 16"),
        ({"num_workers": -1}, "data.num_workers -1: must be at least 0"),
        ({"num_workers": 65}, "data.num_workers 65: must be at most 64"),
        ({"shard_tokens": 0}, "data.shard_tokens 0: must be at least 1"),
        ({"mask_documents": True, "append_eos": False}, "data.mask_documents: needs data.append_eos"),
        ({"cache_dir": "s3://bucket/stores"}, "data.cache_dir s3://bucket/stores: a URL needs data.streaming true"),
        ({"streaming": True, "num_workers": 1}, "data.num_workers 1: not supported with data.streaming"),
        ({"streaming": True, "window_shards": 0}, "data.window_shards 0: must be at least 1"),
        ({"train_files": []}, "data.train_files: empty"),
        ({"valid_fraction": 0.1, "valid_files": "a.txt"}, "data.valid_fraction 0.1: data.valid_files is set, too"),
        ({"valid_fraction": 0.1, "test_fraction": 1}, "data.test_fraction 1: must be from 0 to below 1"),
        ({"valid_fraction": 0.1, "test_fraction": 0.9}, "data.valid_fraction and data.test_fraction: together 1.0"),
    ],
)
def test_an_invalid_option_is_reported(options: dict[str, object], message: str) -> None:
    (problem,) = data_problems({**VALID, **options})
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("poems", "message"),
    [
        ({"fraction": 1}, "data.train_files.poems.fraction 1: must be from 0 to below 1"),
        ({"fraction": float("nan")}, "data.train_files.poems.fraction nan: must be from 0 to below 1"),
        ({"fraction": 0.2, "weight": 2}, "data.train_files.poems.weight 2: not with a fraction"),
        ({"valid_fraction": -0.1}, "data.train_files.poems.valid_fraction -0.1: must be from 0 to below 1"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "data.train_files.poems: nothing is left to train on"),
    ],
)
def test_an_invalid_fraction_of_a_text_is_reported(poems: dict[str, float], message: str) -> None:
    texts = {"poems": TextOptions("a.txt", **poems), "songs": TextOptions("b.txt")}  # type: ignore[arg-type]
    assert message in " ".join(data_problems({**VALID, "train_files": texts}))


def test_some_blocks_must_be_of_a_text_without_a_fraction() -> None:
    (problem,) = data_problems({**VALID, "train_files": {"poems": TextOptions("a.txt", fraction=0.5)}})
    assert problem.startswith("data.train_files: the fractions are 0.5 together. Decrease them, and leave one text")


def test_a_text_has_files_or_a_fraction_for_validation() -> None:
    texts = {"poems": TextOptions("a.txt", valid_fraction=0.1), "songs": TextOptions("b.txt")}
    others = {"news": TextOptions("c.txt")}
    assert not data_problems({**VALID, "train_files": texts, "valid_files": others})
    for files in ("c.txt", {"poems": TextOptions("c.txt")}):
        (problem,) = data_problems({**VALID, "train_files": texts, "valid_files": files})
        assert problem.startswith("data.train_files.poems.valid_fraction 0.1: data.valid_files is set, too")


def test_only_training_texts_have_fractions() -> None:
    (problem,) = data_problems({**VALID, "valid_files": {"poems": TextOptions("a.txt", fraction=0.5)}})
    assert problem.startswith("data.valid_files.poems.fraction 0.5: only for data.train_files")
