"""TextSamples and EpochExports in complete runs: what they write, and that they do not affect training."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import final_weights, same_weights, train_run
from proofs.kills import Kill, Setting, last_run, resume, run_with_kills
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import export
from gpt2kit.export import huggingface, reload_check
from gpt2kit.training.callbacks import EXPORTS

SAMPLES = """
trainer:
  callbacks:
    - class_path: gpt2kit.callbacks.TextSamples
      init_args: {prompts: ["the quick", "江南 🫨", ""], max_new_tokens: 12}
"""
WITH_EXPORTS = "--trainer.callbacks+=gpt2kit.callbacks.EpochExports"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Check exports in this process, which is faster; the list gets their names in order."""
    names: list[str] = []

    def reloaded(folder: Path, *args: Any) -> dict[str, Any]:
        names.append(folder.parent.name.split(".")[1])
        with contextlib.redirect_stderr(io.StringIO()):
            return reload_check.reload(str(folder), *args)

    monkeypatch.setattr(huggingface, "reload_folder", reloaded)
    return names


@pytest.fixture
def short(options: list[str]) -> list[str]:
    """Epochs of a few steps, and rates that do not depend on the last step."""
    args = ["--data.reader.max_documents=60", "--trainer.val_check_interval=1.0", "--save_every=3"]
    return [*options, *args, "--model.schedule=Constant", "--model.schedule.warmup=0"]


def exports(run: Path) -> list[str]:
    """Return the names of a run's exports."""
    return sorted(path.name for path in (run / EXPORTS).glob("*"))


def exported(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    """Return the exported weights of an epoch."""
    return load_file(run / EXPORTS / f"epoch_{epoch}" / "model.safetensors")


def is_export_of(tensors: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    """Return whether exported weights are those of a checkpoint, without the padded rows of the embedding."""
    return all(torch.equal(tensor, state[f"model.{name}"][: len(tensor)]) for name, tensor in tensors.items())


def test_samples_are_written_and_do_not_affect_training(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "samples.yaml").write_text(SAMPLES, encoding="utf-8")
    args = [*options, "--trainer.val_check_interval=4"]
    sampled = [*args, f"--config={tmp_path / 'samples.yaml'}"]
    without = train_run(tmp_path / "without", args, "--trainer.max_steps=10")
    run = train_run(tmp_path / "with", sampled, "--trainer.max_steps=10")
    assert same_weights(final_weights(without), final_weights(run))
    text = (run / "samples.md").read_text(encoding="utf-8")
    sections = [line.split(",")[0] for line in text.splitlines() if line.startswith("## step")]
    assert sections == ["## step 4", "## step 8", "## step 10"]
    assert text.count("    the quick") == text.count("    江南 🫨") == text.count("No prompt") == 3
    assert "bits per byte" in text
    texts = EventAccumulator(str(run)).Reload().Tensors("samples/text_summary")
    assert [event.step for event in texts] == [4, 8, 10] and b"## step 4" in texts[0].tensor_proto.string_val[0]

    train_run(tmp_path / "with", sampled, "--trainer.max_steps=14", "--ckpt_path=last")
    resumed = (run / "samples.md").read_text(encoding="utf-8")
    assert resumed.startswith(text.rstrip()) and resumed.count("## step") == 5


def test_each_epoch_is_exported_and_training_is_not_affected(
    short: list[str], tmp_path: Path, checked: list[str]
) -> None:
    without = train_run(tmp_path / "without", short, "--trainer.max_epochs=3")
    run = train_run(tmp_path / "with", short, "--trainer.max_epochs=3", WITH_EXPORTS)
    assert exports(run) == checked == ["epoch_1", "epoch_2", "epoch_3"]
    weights = final_weights(run)
    assert same_weights(final_weights(without), weights)
    assert is_export_of(exported(run, 3), weights) and not is_export_of(exported(run, 2), weights)
    card = (run / EXPORTS / "epoch_3/README.md").read_text()
    bits = checkpoint.peek(paths.checkpoints(run)[0]).metadata["val_bpb"]
    assert f"| bits per byte of the validation text | {bits:.4f} |" in card and "# epoch_3" in card
    assert "## Samples" in card and "| hours of training |" in card
    assert checkpoint.open(run / EXPORTS / "epoch_3").shape["n_embd"] == 32
    export.export(str(paths.checkpoints(run)[0]), tmp_path / "epoch_3")
    for name in huggingface.FILES:  # the card, too, has samples and figures of the run
        assert (tmp_path / "epoch_3" / name).read_bytes() == (run / EXPORTS / "epoch_3" / name).read_bytes(), name

    stopped = train_run(tmp_path / "stopped", short, "--trainer.max_epochs=1", WITH_EXPORTS)
    shutil.rmtree(stopped / EXPORTS / "epoch_1")  # as if it had been killed before the export
    (stopped / EXPORTS / ".epoch_1.abc.tmp").mkdir()  # and once during it
    for epochs, written in ((2, ["epoch_1", "epoch_2"]), (3, ["epoch_3"])):  # existing exports are kept
        checked.clear()
        resumed = train_run(tmp_path / "stopped", short, f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
        assert checked == written and len(exports(resumed)) == epochs
    for epoch in (1, 2, 3):
        assert same_weights(exported(run, epoch), exported(resumed, epoch)), epoch


def test_every_second_epoch_is_exported(short: list[str], tmp_path: Path, checked: list[str]) -> None:
    run = train_run(tmp_path, short, "--trainer.max_epochs=2", WITH_EXPORTS, "--trainer.callbacks.every=2")
    assert exports(run) == ["epoch_2"]


def test_an_export_is_replaced_if_its_epoch_is_trained_again(
    short: list[str], tmp_path: Path, checked: list[str]
) -> None:
    run = train_run(tmp_path, short, WITH_EXPORTS, "--trainer.max_epochs=1")
    before = exported(run, 1)
    older = min(paths.checkpoints(run), key=paths.step_of)
    rates = ["--override_optimizer", "--model.optimizer.lr=1e-3", f"--ckpt_path={older}"]
    assert train_run(tmp_path, short, WITH_EXPORTS, "--trainer.max_epochs=1", *rates) == run
    assert not same_weights(before, exported(run, 1)) and exports(run) == ["epoch_1"]
    assert is_export_of(exported(run, 1), final_weights(run))


def test_a_failed_export_leaves_no_folder_and_training_continues(
    short: list[str],
    tmp_path: Path,
    checked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, written = huggingface.write, []

    def full_at_first(source: Any, folder: Path, *args: Any, **settings: Any) -> None:
        written.append(folder)
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        write(source, folder, *args, **settings)

    monkeypatch.setattr(huggingface, "write", full_at_first)
    monkeypatch.setattr(huggingface, "count_agreeing", lambda *_: -1)  # the second export is of another model
    run = train_run(tmp_path, short, "--trainer.max_epochs=2", WITH_EXPORTS)
    err = capsys.readouterr().err
    assert err.count("warning: NOT EXPORTED, training continues") == 2
    assert "No space left on device" in err and "the exported model differs from the checkpoint" in err
    assert exports(run) == [] and paths.checkpoints(run)


def test_a_run_killed_during_an_export_writes_it_after_the_resume(short: list[str], tmp_path: Path) -> None:
    setting = Setting("exports", [*short, "--trainer.max_epochs=1", WITH_EXPORTS, "--trainer.callbacks.dtype=bfloat16"])
    assert resume(setting, tmp_path, Kill("exporting", 1)) == [-9]
    run = last_run(tmp_path)
    (leftover,) = exports(run)
    assert leftover.startswith(".epoch_1.") and leftover.endswith(".tmp")
    setting.args = []  # the resumed run has its own config
    assert resume(setting, tmp_path) == [0], (tmp_path / "log.txt").read_text()
    assert exports(run) == ["epoch_1"]
    tensors = exported(run, 1)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert is_export_of(tensors, {name: tensor.bfloat16() for name, tensor in final_weights(run).items()})


def test_sharded_weights_are_exported_by_rank_0(short: list[str], tmp_path: Path) -> None:
    args = [*short, "--data.batch_size=4", "--data.global_batch_size=8", "--trainer.max_epochs=1", WITH_EXPORTS]
    run, _ = run_with_kills(Setting("exports", args, 2, "fsdp"), tmp_path / "run", [])
    assert exports(run) == ["epoch_1"] and is_export_of(exported(run, 1), final_weights(run))
