"""Another stage of a run: other text, with the optimizer, the steps and the tokenizer of the stage before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import SENTENCE, Outcome, final_weights, logged_rows, same_weights, train_run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import export, parser, plot, test, train
from gpt2kit.runs import folder

pytestmark = pytest.mark.usefixtures("own_runs")

Call = Callable[..., Outcome]
VERSE = "山高 {} 水長, brown fox\n"
FIRST = ("--trainer.max_steps=10", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=2", "--save_every=3")
SECOND = ("--trainer.max_steps=8", "--trainer.val_check_interval=4", "--save_every=2", "--replay=0.25")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two texts, whose documents are lines."""
    texts = tmp_path_factory.mktemp("texts")
    for name, line in {"prose": SENTENCE, "verse": VERSE}.items():
        (texts / f"{name}.txt").write_text("".join(map(line.format, range(300))), encoding="utf-8")
    return texts


@pytest.fixture(scope="module")
def arguments(options: list[str], texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run on the first text."""
    kept = [argument for argument in options if not argument.startswith(("--data.valid_files", "--data.test_files"))]
    cache = tmp_path_factory.mktemp("cache")
    return [*kept, f"--data.train_files={texts}/prose.txt", f"--data.cache_dir={cache}", *FIRST]


@pytest.fixture(scope="module")
def first(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("first"), arguments, "--model.optimizer=torch.optim.AdamW")


@pytest.fixture(scope="module")
def second(first: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a second stage."""
    root = tmp_path_factory.mktemp("second")
    return train_run(root, [f"--data.train_files={texts}/verse.txt", f"--resume_with_new_text={first}", *SECOND])


def metadata(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = checkpoint.read(file)["gpt2kit"]
    return content


def stage_of(call: Call, first: Path, root: Path, *arguments: object) -> Outcome:
    logs = f"--trainer.default_root_dir={root}"
    return call(train.main, f"--resume_with_new_text={first}", logs, *arguments)


def test_the_checkpoint_before_the_rate_falls_is_kept(first: Path) -> None:
    stable = first / "checkpoints" / paths.STABLE
    rows = {row["step"]: row["lr"] for row in logged_rows(first) if "lr" in row}
    fall = checkpoint.step_in(stable)
    assert fall == 4, "3 % of warmup is no step; then the rate falls in the last 60 % of 10 steps"
    assert rows[4] == max(rows.values()) > rows[6] > rows[8]
    assert 4 not in [paths.step_of(path) for path in paths.checkpoints(first)], "it has its other name no more"
    checkpoint.check_resumable(stable)


def test_a_stage_continues_steps_optimizer_and_tokenizer_of_the_stable_checkpoint(first: Path, second: Path) -> None:
    last, stable = paths.checkpoints(second)[0], first / "checkpoints" / paths.STABLE
    before, now = metadata(stable), metadata(last)
    assert (before["step"], now["step"]) == (4, 12)
    assert now["tokens_seen"] == 12 * 8 * 16 and now["tokenizer"] == before["tokenizer"]
    states = checkpoint.read(last)["optimizer_states"][0]["state"].values()
    assert {state["step"].item() for state in states} == {12}, "AdamW counts the steps of both stages"
    assert paths.checkpoints(first)[0].name.startswith("epoch=0-step=10"), "the first stage keeps its own checkpoints"


def test_the_schedule_begins_again(second: Path) -> None:
    rates = {row["step"]: row["lr"] for row in logged_rows(second) if "lr" in row}
    assert rates[4] == rates[6] > rates[10] > rates[12] > 0


def test_held_out_text_of_both_stages_is_measured_on_from_the_first_step_of_the_new_one(
    first: Path, second: Path
) -> None:
    rows, before = logged_rows(second), logged_rows(first)
    old = {row["step"]: row["val_bpb/prose"] for row in rows if "val_bpb/prose" in row}
    new = {row["step"]: row["val_bpb/verse"] for row in rows if "val_bpb/verse" in row}
    assert sorted(old) == sorted(new) == [4, 8, 12] and new[12] < new[4]
    sizes = [metadata(path)["stages"] for path in (paths.checkpoints(first)[0], paths.checkpoints(second)[0])]
    assert [len(stages) for stages in sizes] == [1, 2]
    assert [row["step"] for row in rows if row["step"] < 4] == [row["step"] for row in before if row["step"] < 4]


def test_the_same_documents_are_held_out_of_the_earlier_text(first: Path, second: Path) -> None:
    before, now = (metadata(paths.checkpoints(run)[0]) for run in (first, second))
    splits = {text["name"]: text["share"] for text in now["train_texts"]}
    tests = {text["name"]: text for text in now["test_texts"]}
    assert splits["prose"] == before["train_share"] and tests["prose"]["share"] == before["test_share"]
    assert tests["prose"]["text"] == before["test_text"] != tests["verse"]["text"]


def test_replay_is_a_fraction_of_the_blocks(second: Path) -> None:
    (prose, verse) = sorted(folder.read_starts(second)[-1]["text"]["mix"], key=lambda text: str(text["name"]))
    blocks = [text["passes"] * text["tokens"] for text in (prose, verse)]
    assert blocks[0] / sum(blocks) == pytest.approx(0.25, abs=0.03)
    assert verse["passes"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_stopped_stage_resumes_exactly(step: int, second: Path, tmp_path: Path, call: Call) -> None:
    run = tmp_path / "lightning_logs" / second.name
    shutil.copytree(second, run)
    kept = [path for path in paths.checkpoints(run) if paths.step_of(path) <= step]
    for path in paths.checkpoints(run):
        if path not in kept:
            checkpoint.remove(path)
    if not kept:
        checkpoint.link(run / "checkpoints" / paths.STABLE, run / "checkpoints" / f"epoch=0-step={step}.ckpt")
    code, _, err = call(train.main, "--ckpt_path", run, f"--trainer.default_root_dir={tmp_path}")
    assert code == 0, err
    assert same_weights(final_weights(run), final_weights(second))
    assert logged_rows(run)[-1]["val_bpb"] == logged_rows(second)[-1]["val_bpb"]


def test_a_third_stage_knows_both_earlier_texts(second: Path, corpus: Path, tmp_path: Path, call: Call) -> None:
    third = train_run(
        tmp_path,
        [f"--data.train_files={corpus}/test.txt", f"--resume_with_new_text={second}", "--trainer.max_steps=2"],
        "--replay=0.5",
        "--trainer.val_check_interval=2",
    )
    stages = metadata(paths.checkpoints(third)[0])["stages"]
    assert [(stage["first_step"], sorted(stage["texts"])) for stage in stages] == [
        (0, ["prose"]),
        (4, ["prose", "verse"]),
        (7, ["prose", "test", "verse"]),
    ]
    fractions = yaml.safe_load((third / "config.yaml").read_text())["data"]["train_files"]
    assert fractions["prose"]["fraction"] + fractions["verse"]["fraction"] == pytest.approx(0.5)
    assert fractions["prose"]["fraction"] < fractions["verse"]["fraction"], "it has more tokens"
    assert {"val_bpb/prose", "val_bpb/verse", "val_bpb/test"} <= logged_rows(third)[-1].keys()


def test_without_replay_the_earlier_text_is_not_read_but_measured_on(first: Path, texts: Path, tmp_path: Path) -> None:
    run = train_run(
        tmp_path,
        [f"--data.train_files={texts}/verse.txt", f"--resume_with_new_text={first}", "--trainer.max_steps=3"],
    )
    row = logged_rows(run)[-1]
    assert row["epoch/prose"] == 0 < row["epoch/verse"] and "val_bpb/prose" in row


def test_files_of_held_out_text_stay_those_of_their_text(
    options: list[str], texts: Path, tmp_path: Path, corpus: Path
) -> None:
    first = train_run(tmp_path / "1", options, "--trainer.max_steps=4")
    run = train_run(
        tmp_path / "2",
        [f"--data.train_files={texts}/verse.txt", f"--resume_with_new_text={first}", "--trainer.max_steps=2"],
    )
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert data["valid_files"]["train"]["files"] == str(corpus / "valid.txt")
    assert data["train_files"]["train"]["valid_fraction"] == 0 < data["train_files"]["verse"]["valid_fraction"]
    assert {"val_bpb/train", "val_bpb/verse"} <= logged_rows(run)[-1].keys()


def test_stages_are_in_the_card_the_report_and_the_results_of_a_test(second: Path, tmp_path: Path, call: Call) -> None:
    assert (
        call(lambda args: parser.run(export.export, args), "--ckpt_path", second, "--output_dir", tmp_path / "x")[0]
        == 0
    )
    card = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    assert "steps 0 to 4: prose" in card and "steps 4 to 12: verse, prose" in card and "passes over" not in card
    page = tmp_path / "report.html"
    assert call(lambda args: parser.run(plot.plot, args), second, "--report", page)[0] == 0
    assert "stage 1, steps 0 to 4: prose; stage 2, steps 4 to 12: verse, prose" in page.read_text(encoding="utf-8")
    code, out, err = call(lambda args: parser.run(test.test, args), second)
    assert code == 0 and "prose" in out and "verse" in out, err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed_everything=7"], "--seed_everything 7: a stage keeps the seed of its run, 1"),
        (["--replay=1"], "replay 1.0: must be below 1"),
        (["--model.n_layer=3"], "n_layer was 2, now 3"),
        (["--data.block_size=8"], "n_positions was 16, now 8"),
        (["--model.init_from=x"], "--resume_with_new_text: continues the weights of a run"),
        (["--ckpt_path=last"], "--resume_with_new_text: not with --ckpt_path"),
        (["--tune=lr"], "--verify_resume and --tune: start new runs"),
        (["--data.tokenizer.kind=char"], "data.tokenizer: not that of the checkpoint"),
    ],
)
def test_what_a_stage_cannot_have_is_refused(
    more: list[str], message: str, first: Path, texts: Path, tmp_path: Path, call: Call
) -> None:
    code, _, err = stage_of(call, first, tmp_path, f"--data.train_files={texts}/verse.txt", *more)
    assert code in (2, 4) and message in err and err.splitlines()[-1].startswith("error: "), err
    assert not [*tmp_path.glob("**/*.ckpt")]


def test_a_name_of_an_earlier_text_is_refused(first: Path, texts: Path, tmp_path: Path, call: Call) -> None:
    named = json.dumps({"prose": f"{texts}/verse.txt"})
    code, _, err = stage_of(call, first, tmp_path, f"--data.train_files={named}")
    assert code == 2 and "data.train_files.prose: an earlier text of the run has this name. Rename it" in err


def test_a_change_of_the_earlier_text_is_reported(
    arguments: list[str], texts: Path, tmp_path: Path, call: Call
) -> None:
    text = tmp_path / "text.txt"
    shutil.copy(texts / "prose.txt", text)
    first = train_run(tmp_path, arguments, f"--data.train_files={text}", "--trainer.max_steps=2")
    more = (f"--data.train_files={texts}/verse.txt", "--trainer.max_steps=1")
    assert "not the text" not in stage_of(call, first, tmp_path, *more)[2]
    text.write_text(text.read_text(encoding="utf-8").replace("good morning", "good night", 9), encoding="utf-8")
    code, _, err = stage_of(call, first, tmp_path, *more)
    assert code == 0 and "data.train_files.text: not the text that the run was trained on" in err


def test_replay_needs_a_stage_and_a_stage_needs_text(first: Path, texts: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = stage_of(call, first, tmp_path)
    assert code == 2 and "data.train_files" in err
    code, _, err = call(train.main, f"--data.train_files={texts}", "--replay=0.5")
    assert code == 2 and "--replay 0.5: only with --resume_with_new_text" in err


def test_without_a_stable_checkpoint_a_stage_begins_at_the_newest_one(
    first: Path, texts: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "lightning_logs" / "old"
    shutil.copytree(first, run)
    checkpoint.remove(run / "checkpoints" / paths.STABLE)
    text = f"--data.train_files={texts}/verse.txt"
    code, _, err = stage_of(call, run, tmp_path, text, "--trainer.max_steps=2", "--run_name=next")
    assert code == 0 and "has no valid stable.ckpt, so the stage begins from" in err
    stages = metadata(paths.checkpoints(tmp_path / "lightning_logs" / "next")[0])["stages"]
    assert [stage["first_step"] for stage in stages] == [0, 10]


def test_a_damaged_log_of_the_run_before_does_not_stop_a_stage(
    first: Path, texts: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "lightning_logs" / "old"
    shutil.copytree(first, run)
    (run / "metrics.csv").write_bytes(b"\x00\xff" * 99)
    text = f"--data.train_files={texts}/verse.txt"
    code, _, err = stage_of(call, run, tmp_path, text, "--trainer.max_steps=2", "--run_name=next")
    assert code == 0 and "the curves begin with this stage" in err
    assert min(row["step"] for row in logged_rows(tmp_path / "lightning_logs" / "next")) == 4


def test_a_resume_to_an_earlier_step_drops_a_later_stable_checkpoint(
    arguments: list[str], first: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "lightning_logs" / first.name
    shutil.copytree(first, run)
    stable = run / "checkpoints" / paths.STABLE
    early = run / "checkpoints" / "epoch=0-step=4.ckpt"
    os.link(stable, early)
    for path in paths.checkpoints(run):
        if path != early:
            checkpoint.remove(path)
    checkpoint.remove(stable)
    code, _, err = call(train.main, "--ckpt_path", run, f"--trainer.default_root_dir={tmp_path}")
    assert code == 0 and same_weights(final_weights(run), final_weights(first)), err
