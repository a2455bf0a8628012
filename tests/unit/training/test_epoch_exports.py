"""A Hugging Face folder an epoch: what export.py would write of that step, and without a trace in the training."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, final_weights, same_weights, train_run
from proofs.kills import Kill, Setting, finish, go_on, last_run, run_with_kills, start, words_of
from safetensors.torch import load_file

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import export
from gpt2kit.errors import UserError
from gpt2kit.export import huggingface, reload_check
from gpt2kit.training.epoch_exports import FOLDER, EpochExports

WITH = "--trainer.callbacks+=gpt2kit.callbacks.EpochExports"


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reload the folders in this process, which is quicker; their names, in order."""
    seen: list[str] = []

    def reloaded(folder: Path, *asked: Any) -> dict[str, Any]:
        seen.append(folder.name.split(".")[1])
        with contextlib.redirect_stderr(io.StringIO()):
            return reload_check.reload(str(folder), *asked)

    monkeypatch.setattr(huggingface, "reloaded", reloaded)
    return seen


@pytest.fixture
def short(options: list[str]) -> list[str]:
    """Epochs of a few steps: the text is cut off."""
    return [*options, "--data.reader.max_documents=60", "--trainer.val_check_interval=1.0", "--save_every=3"]


def exports(run: Path) -> list[str]:
    return sorted(path.name for path in (run / FOLDER).iterdir()) if (run / FOLDER).is_dir() else []


def exported(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(run / FOLDER / f"epoch_{epoch}" / "model.safetensors")


def same(folder: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[f"model.{name}"][: len(tensor)]) for name, tensor in folder.items())


def test_a_folder_an_epoch_and_no_trace(short: list[str], tmp_path: Path, near: list[str]) -> None:
    plain = train_run(tmp_path / "plain", short, "--trainer.max_epochs=3")
    run = train_run(tmp_path / "with", short, "--trainer.max_epochs=3", WITH)
    assert exports(run) == near == ["epoch_1", "epoch_2", "epoch_3"]
    assert same_weights(final_weights(plain), final_weights(run)), "the training does not notice"
    assert same(exported(run, 3), final_weights(run)) and not same(exported(run, 2), final_weights(run))
    card = (run / FOLDER / "epoch_3/README.md").read_text()
    bits = checkpoint.open(checkpoint.checkpoints(run)[0]).metadata["val_bpb"]
    assert f"| bits per byte of the validation text | {bits:.4f} |" in card and "# epoch_3" in card
    opened = checkpoint.open(run / FOLDER / "epoch_3")  # any script takes it, and export.py writes the same
    export.export(str(checkpoint.checkpoints(run)[0]), tmp_path / "epoch_3")
    for name in huggingface.FILES:
        assert (tmp_path / "epoch_3" / name).read_bytes() == (run / FOLDER / "epoch_3" / name).read_bytes(), name
    assert opened.model.shape["n_embd"] == 32


def test_every_second_epoch(short: list[str], tmp_path: Path, near: list[str]) -> None:
    run = train_run(tmp_path, short, "--trainer.max_epochs=3", WITH, "--trainer.callbacks.every=2")
    assert exports(run) == ["epoch_2"]
    with pytest.raises(UserError, match="every 0: must be at least 1"):
        EpochExports(every=0)


def test_a_resumed_run_has_what_a_straight_one_has(short: list[str], tmp_path: Path, near: list[str]) -> None:
    constant = ["--model.schedule=Constant", "--model.schedule.warmup=0"]  # rates do not depend on the end
    straight = train_run(tmp_path / "straight", short, WITH, *constant, "--trainer.max_epochs=3")
    halted = train_run(tmp_path / "halted", short, WITH, *constant, "--trainer.max_epochs=1")
    folder = halted / FOLDER
    shutil.rmtree(folder / "epoch_1")  # as if it had been killed before that was there
    (folder / ".epoch_1.abc.tmp").mkdir()  # and in the middle
    for epochs, written in ((2, ["epoch_1", "epoch_2"]), (3, ["epoch_3"])):  # what is there is not written again
        near.clear()
        run = train_run(tmp_path / "halted", short, f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
        assert near == written and len(exports(run)) == epochs
    for epoch in (1, 2, 3):
        assert same_weights(exported(straight, epoch), exported(run, epoch)), epoch


def test_a_way_not_taken_is_replaced(short: list[str], tmp_path: Path, near: list[str]) -> None:
    run = train_run(tmp_path, short, WITH, "--trainer.max_epochs=1")
    before = exported(run, 1)
    older = min(checkpoint.checkpoints(run), key=checkpoint.step_of)
    rates = ["--override_optimizer", "--model.optimizer.lr=1e-3", f"--ckpt_path={older}"]
    again = train_run(tmp_path, short, WITH, "--trainer.max_epochs=1", *rates)
    assert again == run and not same_weights(before, exported(run, 1)) and exports(run) == ["epoch_1"]
    assert same(exported(run, 1), final_weights(run))


def test_a_folder_that_cannot_be_written_stops_nothing(
    short: list[str],
    tmp_path: Path,
    near: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write", full)
    run = train_run(tmp_path, short, "--trainer.max_epochs=2", WITH)
    err = capsys.readouterr().err
    assert err.count("warning: NOT EXPORTED, training continues") == 2 and "No space left on device" in err
    assert exports(run) == [] and checkpoint.checkpoints(run)


def test_what_does_not_prove_to_be_the_model_gets_no_name(
    short: list[str],
    tmp_path: Path,
    near: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface, "count_agreeing", lambda *_: -1)
    run = train_run(tmp_path, short, "--trainer.max_epochs=1", WITH)
    assert exports(run) == [] and "another one than the checkpoint's" in capsys.readouterr().err


def test_killed_in_the_middle_of_a_folder(short: list[str], tmp_path: Path) -> None:
    """Nothing stands under the name; the run goes on, and has all folders at the end, as a fresh process reads them."""
    words = [*short, "--trainer.max_epochs=1", WITH, "--trainer.callbacks.dtype=bfloat16"]
    setting, work = Setting("exports", words), tmp_path / "run"
    work.mkdir()
    assert go_on(setting, work, Kill("exporting", 1)) == [-9]
    run = last_run(work)
    (left,) = exports(run)
    assert left.startswith(".epoch_1.") and left.endswith(".tmp"), "what the kill has left"
    assert finish(start([*words_of(setting, work)[len(words) :], "--ckpt_path=last"], {}, 1, work / "log.txt")) == [0]
    assert exports(run) == ["epoch_1"]
    folder = exported(run, 1)
    assert all(tensor.dtype == torch.bfloat16 for tensor in folder.values())
    assert same(folder, {name: tensor.bfloat16() for name, tensor in final_weights(run).items()})


def test_shares_of_two_ranks(short: list[str], tmp_path: Path) -> None:
    """Rank 0 writes what all hold together; the other waits."""
    words = [*short, "--data.batch_size=4", "--data.global_batch_size=8", "--trainer.max_epochs=1", WITH]
    run, _ = run_with_kills(Setting("exports", words, 2, "fsdp"), tmp_path / "run", [])
    assert exports(run) == ["epoch_1"] and same(exported(run, 1), final_weights(run))


def test_it_is_named_in_the_docs() -> None:
    assert "EpochExports" in (ROOT / "docs/huggingface.md").read_text()
