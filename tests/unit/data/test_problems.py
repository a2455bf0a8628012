from __future__ import annotations

import pytest

from gpt2kit.data.problems import data_problems

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
