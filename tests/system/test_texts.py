"""Several training texts with weights, several validation and test texts: each has its own figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SENTENCE, Outcome, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import parser, test, train

pytestmark = pytest.mark.usefixtures("own_runs")

Call = Callable[..., Outcome]
VERSE = "山高 {} 水長\n"
LINES = {"train": range(150), "valid": range(150, 190)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two texts; the documents of the verse are lines."""
    folder = tmp_path_factory.mktemp("texts")
    for name, line in {"prose": SENTENCE, "verse": VERSE}.items():
        for split, numbers in LINES.items():
            (folder / f"{name}-{split}.txt").write_text("".join(map(line.format, numbers)), encoding="utf-8")
    return folder


def named(texts: Path, split: str, **verse: float) -> str:
    """Return the value of data.train_files, data.valid_files or data.test_files."""
    prose = {"files": f"{texts}/prose-{split}.txt", "reader": {"document": "file"}}
    return json.dumps({"prose": prose, "verse": {"files": f"{texts}/verse-{split}.txt", **verse}})


@pytest.fixture(scope="module")
def arguments(options: list[str], texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run on both texts."""
    return [
        *options,
        f"--data.train_files={named(texts, 'train', weight=3)}",
        *(f"--data.{split}_files={named(texts, 'valid')}" for split in ("valid", "test")),
        f"--data.cache_dir={tmp_path_factory.mktemp('cache')}",
        *("--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2", "--save_every=2"),
    ]


@pytest.fixture(scope="module")
def mixed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("mixed"), arguments)


def last_validation(run: Path) -> dict[str, float]:
    return [row for row in logged_rows(run) if "val_bpb" in row][-1]


def score(call: Call, *arguments: object) -> Outcome:
    return call(lambda args: parser.run(test.test, args), *arguments)


def test_a_validation_text_has_the_figure_that_it_has_alone(
    mixed: Path, arguments: list[str], texts: Path, tmp_path: Path
) -> None:
    row = last_validation(mixed)
    alone = train_run(tmp_path, arguments, f"--data.valid_files={texts}/verse-valid.txt", "--data.test_files=null")
    assert last_validation(alone)["val_bpb"] == row["val_bpb/verse"] != row["val_bpb/prose"]
    assert same_weights(final_weights(alone), final_weights(mixed))


def test_the_total_is_a_ratio_of_sums(mixed: Path, texts: Path) -> None:
    row = last_validation(mixed)
    sizes = {
        "prose": (texts / "prose-valid.txt").stat().st_size + 1,  # and the end of each document
        "verse": (texts / "verse-valid.txt").stat().st_size,  # a line break is no part of a document, but its end is
    }
    bits = sum(row[f"val_bpb/{name}"] * size for name, size in sizes.items())
    assert row["val_bpb"] == pytest.approx(bits / sum(sizes.values()), rel=1e-6)


def test_passes_over_each_text_are_logged_and_their_ratio_is_that_of_the_weights(mixed: Path, call: Call) -> None:
    rows = logged_rows(mixed)
    passes = [(row["epoch/prose"], row["epoch/verse"]) for row in rows if "train_loss" in row]
    assert len(passes) == 4
    for prose, verse in passes:
        assert verse / prose == pytest.approx(3, rel=0.1)
    assert passes[-1][0] == pytest.approx(2 * passes[1][0])


def test_a_run_resumes_exactly_and_only_with_its_weights(
    mixed: Path, arguments: list[str], texts: Path, tmp_path: Path, call: Call
) -> None:
    run = train_run(tmp_path, arguments, "--trainer.max_steps=8")
    for path in paths.checkpoints(run):
        if paths.step_of(path) == 8:
            checkpoint.remove(path)
    resumed = ("--ckpt_path", run, f"--trainer.default_root_dir={tmp_path}")
    other = f"--data.train_files={named(texts, 'train', weight=2)}"
    code, _, err = call(train.main, *arguments, *resumed, other)
    assert code == 4 and "mix was {'version': 1, 'prose': 1.0, 'verse': 3.0}, now" in err
    code, _, err = call(train.main, *arguments, *resumed)
    assert code == 0, err
    assert same_weights(final_weights(run), final_weights(mixed))
    assert [row for row in logged_rows(run) if "train_loss" in row][-1]["train_loss"] == pytest.approx(
        [row for row in logged_rows(mixed) if "train_loss" in row][-1]["train_loss"]
    )


def test_another_weight_tokenizes_nothing_again(mixed: Path, arguments: list[str], texts: Path, tmp_path: Path) -> None:
    [cache] = [Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--data.cache_dir")][
        1:
    ]

    def stores() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}

    before = stores()
    assert len(before) == 4
    run = train_run(tmp_path, arguments, f"--data.train_files={named(texts, 'train', weight=0.5)}")
    assert stores() == before and not same_weights(final_weights(run), final_weights(mixed))


def test_a_named_text_decides_the_best_checkpoint(
    mixed: Path, arguments: list[str], tmp_path: Path, call: Call
) -> None:
    run = train_run(tmp_path, arguments, "--best_text=prose")
    [best] = paths.best_of(paths.checkpoints(run))
    losses = {}
    for path in paths.checkpoints(run):
        step, bits = paths.step_of(path), {row["step"]: row for row in logged_rows(run) if "val_bpb" in row}
        if step in bits:
            losses[step] = bits[step]["val_bpb/prose"]
    assert paths.step_of(best) == min(losses, key=lambda step: losses[step])
    loss = float(best.stem.rpartition("=")[2])
    assert loss != pytest.approx(last_validation(mixed)["val_loss"], rel=1e-3), "that of all text"
    assert "--best_text nope: must be one of prose, verse" in call(train.main, *arguments, "--best_text=nope")[2]


def test_text_is_held_out_of_each_source(options: list[str], texts: Path, tmp_path: Path) -> None:
    own = [option for option in options if not option.startswith(("--data.valid_files", "--data.test_files"))]
    held = [f"--data.train_files={named(texts, 'train')}", "--data.valid_fraction=0.2", f"--data.cache_dir={tmp_path}"]
    run = train_run(tmp_path, [*own, *held, "--trainer.max_steps=4", "--trainer.val_check_interval=4"])
    row = last_validation(run)
    assert row["val_bpb/prose"] > 0 and row["val_bpb/verse"] > 0
    metadata = checkpoint.read(paths.checkpoints(run)[0])["gpt2kit"]
    shares = {source["name"]: source["share"] for source in metadata["train_texts"]}
    assert shares["prose"] == {"low": 0.0, "high": 0.8, "unit": "document"}, "one document is cut"
    assert shares["verse"] == {"low": 0.0, "high": 0.8, "seed": 1}, "whole lines are held out"


def test_each_test_text_has_a_row(mixed: Path, texts: Path, call: Call, tmp_path: Path) -> None:
    cache = ("--cache_dir", tmp_path)
    code, out, err = score(call, mixed, *cache)
    assert code == 0, err
    assert [line.split()[-1] for line in out.splitlines()] == ["text", "prose", "verse", "texts"]
    assert json.loads((mixed / "test.json").read_text())["texts"].keys() == {"prose", "verse"}
    content: dict[str, Any] = json.loads(score(call, mixed, *cache, "--json_output=-")[1])
    alone = json.loads(score(call, mixed, *cache, "--json_output=-", "--files", texts / "verse-valid.txt")[1])
    verse = content["texts"]["verse"]
    assert verse["results"] == alone["results"] and verse["text"]["hash"] == alone["text"]["hash"]
    rows = [text["results"][0] for text in content["texts"].values()]
    sizes = [text["text"]["bytes"] + text["text"]["documents"] for text in content["texts"].values()]
    bits = sum(row["nll"] for row in rows) / math.log(2) / sum(sizes)
    [total] = content["all_texts"]["results"]
    assert total["bits_per_byte"] == pytest.approx(bits) and total["tokens"] == sum(row["tokens"] for row in rows)


def test_checkpoints_are_compared_on_each_text(mixed: Path, arguments: list[str], call: Call, tmp_path: Path) -> None:
    other = paths.checkpoints(mixed)[-1]
    code, out, err = score(call, mixed, other, "--cache_dir", tmp_path, "--html", tmp_path / "page.html")
    assert code == 0, err
    assert [line for line in out.splitlines() if line in ("prose", "verse")] == ["prose", "verse"]
    assert "all texts: 41 documents" in out and out.count("best") == 4
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{mixed}: prose" in page and f"{mixed}: verse" in page
    assert "takes one text" in score(call, mixed, "--surprisal", tmp_path / "x.csv", "--cache_dir", tmp_path)[2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda metadata: metadata.update(test_texts={"prose": {}}),
        lambda metadata: metadata.update(test_texts=[3]),
        lambda metadata: metadata["test_texts"][0].update(files="/etc/hostname"),
        lambda metadata: metadata["test_texts"][0].update(name=["prose"]),
        lambda metadata: metadata["test_texts"][0].update(share={"low": 0}),
        lambda metadata: metadata["test_texts"][0].update(reader={"reader": "os.system"}),
    ],
)
def test_hostile_texts_in_a_checkpoint_are_refused(
    damage: Callable[[dict[str, Any]], None], mixed: Path, call: Call, inside: Path
) -> None:
    raw = checkpoint.read(paths.checkpoints(mixed)[0])
    damage(raw["gpt2kit"])
    torch.save(raw, inside / "x.ckpt")
    code, out, err = score(call, inside / "x.ckpt", "--cache_dir", inside / "cache")
    assert code in (2, 3, 4) and err.count("\n") == 1 and err.startswith("error: ") and not out
