"""The texts of another stage: their names, what is held out of each, and how they divide the replay."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2kit.cli.saved_options import join_texts

NOTHING: dict[str, Any] = {
    **{f"{split}_{kind}": None for split in ("valid", "test") for kind in ("files", "fraction")},
    "reader": {"init_args": {"document": "line"}},
}
EARLIER = {**NOTHING, "train_files": "poems/", "valid_fraction": 0.05, "test_fraction": 0.02}


def join(new: dict[str, Any], earlier: dict[str, Any] = EARLIER, replay: float = 0.0, **sizes: float) -> dict[str, Any]:
    return join_texts(earlier, {**NOTHING, **new}, replay, sizes)[0]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ("songs/", "songs"),
        ("a b/my songs.txt", "my-songs"),
        (["https://example.org/x/y.jsonl.gz", "z"], "y"),
        ("poems.txt", "poems-2"),
        ("\u8a69/", "text"),
        ("texts/*", "texts"),
        ("null.txt", "text"),
    ],
)
def test_a_text_without_a_name_gets_that_of_its_first_file(files: Any, name: str) -> None:
    assert list(join({"train_files": files})["train_files"]) == [name, "poems"]


def test_what_was_held_out_stays_so_and_the_new_text_follows_the_default() -> None:
    texts = join({"train_files": "songs/"})["train_files"]
    assert (texts["poems"]["valid_fraction"], texts["poems"]["test_fraction"]) == (0.05, 0.02)
    assert texts["songs"]["valid_fraction"] is texts["songs"]["test_fraction"] is None


def test_fractions_of_the_user_are_those_of_the_new_text() -> None:
    joined = join({"train_files": "songs/", "valid_fraction": 0.2})
    texts = joined["train_files"]
    assert (texts["songs"]["valid_fraction"], texts["songs"]["test_fraction"]) == (0.2, 0)
    assert texts["poems"]["valid_fraction"] == 0.05 and joined["valid_fraction"] is None


def test_files_of_held_out_text_get_the_name_of_their_training_text() -> None:
    earlier = {**NOTHING, "train_files": "poems/", "valid_files": "held_out/", "reader": {"init_args": {}}}
    joined = join({"train_files": "songs/", "valid_files": {"news": "news.txt"}}, earlier)
    assert {name: text["files"] for name, text in joined["valid_files"].items()} == {
        "poems": "held_out/",
        "news": "news.txt",
    }
    assert joined["valid_files"]["poems"]["reader"] == earlier["reader"] != joined["valid_files"]["news"]["reader"]
    assert joined["train_files"]["songs"]["valid_fraction"] == joined["train_files"]["poems"]["valid_fraction"] == 0


def test_the_replay_is_divided_by_size() -> None:
    earlier = {**NOTHING, "train_files": {"a": "a.txt", "b": {"files": "b.txt", "weight": 3.0, "fraction": None}}}
    texts = join({"train_files": "c.txt"}, earlier, 0.4, a=100, b=300)["train_files"]
    assert [texts[name]["fraction"] for name in ("a", "b")] == pytest.approx([0.1, 0.3])
    assert texts["b"]["weight"] == 1 and "fraction" not in texts["c"]
