"""Runs that stop, fail or are resumed: checkpoints, logs, settings and exit codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import Outcome, Run, final_weights, logged_rows, same_weights, train_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import train
from gpt2kit.errors import CheckpointError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.optim.muon import Muon
from gpt2kit.runs import folder, lifecycle
from gpt2kit.training.checkpointing import ExactResume

SHORT = ("--trainer.max_steps=4", "--save_every=1", "--trainer.log_every_n_steps=1")


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the loss of these training steps NaN."""
    nll, count = GPT2.nll, [0]

    def poisoned(self: GPT2, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, tokens = nll(self, batch)
        count[0] += self.training
        return (loss * torch.nan if self.training and count[0] in steps else loss), tokens

    monkeypatch.setattr(GPT2, "nll", poisoned)


def saved_steps(run: Path) -> list[int]:
    """Return the steps of a run's checkpoints, newest first."""
    return [paths.step_of(path) for path in paths.checkpoints(run)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights_and_the_same_log(
    options: list[str], tmp_path: Path, accumulate: int
) -> None:
    args = [*options, f"--trainer.accumulate_grad_batches={accumulate}", "--trainer.log_every_n_steps=2"]
    args += ["--data.batch_size=4", "--trainer.val_check_interval=5", "--save_every=3"]
    args += ["--model.schedule=Constant"]  # its rate does not depend on the last step
    uninterrupted = train_run(tmp_path / "uninterrupted", args, "--trainer.max_steps=14")
    for stop in (3, 5, 8):  # after a plain save, after a validation, at an end
        work = tmp_path / f"stopped{stop}"
        train_run(work, args, f"--trainer.max_steps={stop}")
        resumed = train_run(work, args, "--trainer.max_steps=14", "--ckpt_path=last")
        assert resumed.name == "version_0"
        assert same_weights(final_weights(uninterrupted), final_weights(resumed)), stop
        logs = [logged_rows(run) for run in (uninterrupted, resumed)]
        names = ("step", "train_loss", "grad_norm", "lr", "tokens_seen")
        trained = [[{name: row[name] for name in names} for row in rows if "train_loss" in row] for rows in logs]
        assert trained[0] == trained[1]
        validated = [{row["step"]: row["val_loss"] for row in rows if "val_loss" in row} for rows in logs]
        assert validated[0].items() <= validated[1].items()


def test_nan_stops_before_the_update(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 3)
    code, _, err = call(train.main, *options, *SHORT, f"--trainer.default_root_dir={tmp_path}")
    run = tmp_path / "lightning_logs/version_0"
    assert code == 6 and "step 3: the gradient norm is nan" in err and str(paths.checkpoints(run)[0]) in err
    assert saved_steps(run)[0] == 2
    assert all(torch.isfinite(tensor).all() for tensor in final_weights(run).values())
    assert folder.read_status(run)["state"] == "failed"


def test_weights_that_are_not_finite_are_not_saved(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Muon.step, [0]

    def overflow(self: Muon, closure: Any = None) -> Any:
        loss = step(self, closure)
        count[0] += self.param_groups[1]["params"][0].shape[0] > 100  # not the tiny one that is tried at the start
        if count[0] == 3:  # as after a finite gradient and a huge learning rate
            self.param_groups[1]["params"][0].data.fill_(torch.inf)
        return loss

    monkeypatch.setattr(Muon, "step", overflow)
    code, _, err = call(train.main, *options, *SHORT, f"--trainer.default_root_dir={tmp_path}")
    run = tmp_path / "lightning_logs/version_0"
    assert code == 6 and "step 3: weight model.transformer.wte.weight contains NaN or Inf" in err
    assert saved_steps(run)[0] == 2 and f"the last good checkpoint is {paths.checkpoints(run)[0]}" in err


def damage(run: Run, work: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return a copy of a run whose newest checkpoint is changed."""
    copied = Path(shutil.copytree(run.folder, work / "lightning_logs/version_0"))
    newest = paths.checkpoints(copied)[0]
    raw = torch.load(newest, weights_only=True)
    change(raw)
    newest.with_name(newest.name + ".sha256").unlink()
    torch.save(raw, newest)
    return copied


def optimizer_of(raw: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", raw["optimizer_states"][0])


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a moment is NaN": (
        lambda raw: optimizer_of(raw)["state"][9]["exp_avg"].fill_(torch.nan),
        "exp_avg of parameter 9 in the optimizer's state contains NaN",
    ),
    "a step as text": (lambda raw: raw["gpt2kit"].update(step="40"), "gpt2kit.step has type str"),
    "no learning rates": (lambda raw: raw["lr_schedulers"][0].pop("base_lrs"), "lr_schedulers.0.base_lrs is missing"),
    "a schedule's count as text": (
        lambda raw: raw["lr_schedulers"][0].update(_step_count="x"),
        "lr_schedulers.0._step_count has type str",
    ),
    "an optimizer that is a number": (lambda raw: raw.update(optimizer_states=[3]), "optimizer_states.0 has type int"),
}
HOLES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "loops": (
        lambda raw: raw["loops"]["fit_loop"]["epoch_loop.batch_progress"].pop("total"),
        "loops.fit_loop.epoch_loop.batch_progress.total is missing",
    ),
    "start": (lambda raw: raw["gpt2kit"].update(start={"from": "x"}), "gpt2kit.start is invalid"),
    "loaders": (
        lambda raw: raw["loops"]["fit_loop"]["state_dict"].update(combined_loader=[{}]),
        "loops.fit_loop.state_dict has states of data loaders",
    ),
    "8-bit tensor": (
        lambda raw: raw["state_dict"].update({"model.lm_head.weight": torch.zeros(8).to(torch.float8_e5m2)}),
        "tensor model.lm_head.weight is missing, or has a different type or shape",
    ),
    "steps": (lambda raw: raw["gpt2kit"].update(step=3), "its loops have counted 40 steps, but the run has made 3"),
    "a moment": (
        lambda raw: optimizer_of(raw)["state"][9].pop("exp_avg_sq"),
        "exp_avg_sq in the optimizer's state of transformer.",
    ),
    "the moments of a parameter": (lambda raw: optimizer_of(raw)["state"].pop(9), "in the optimizer's state of"),
    "a rate": (lambda raw: optimizer_of(raw)["param_groups"][0].pop("lr"), "param_groups.0.lr is missing"),
    "a rate that overflows": (
        lambda raw: raw["lr_schedulers"][0].update(base_lrs=[1e300, 1e300]),
        "lr_schedulers.0.base_lrs is invalid (must be at most 1,000,000)",
    ),
    "one beta": (
        lambda raw: optimizer_of(raw)["param_groups"][1].update(betas=(0.9,)),
        "param_groups.1.betas has a different number of values",
    ),
    "an option without its state": (
        lambda raw: optimizer_of(raw)["param_groups"][1].update(amsgrad=True, fused=None),
        "max_exp_avg_sq in the optimizer's state of transformer.",
    ),
    "the loss would rise": (
        lambda raw: optimizer_of(raw)["param_groups"][1].update(maximize=True),
        "has options with which the optimizer cannot make a step",
    ),
    "two counts of a parameter": (
        lambda raw: optimizer_of(raw)["state"][9].update(step=torch.tensor([1.0, 2.0])),
        "step in the optimizer's state of transformer.",
    ),
    "a callback": (lambda raw: raw["callbacks"].update(TimeHorizon={}), "callbacks.seconds is missing"),
    "a weight": (lambda raw: raw["state_dict"].pop("model.transformer.wpe.weight"), "wpe.weight is missing"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_last_skips_a_checkpoint_that_cannot_be_resumed(case: str, run: Run, inside: Path, caplog: Any) -> None:
    change, message = DAMAGES[case]
    newest, older = paths.checkpoints(damage(run, inside, change))[:2]
    assert lifecycle.find_resumable("last", inside / "lightning_logs", None) == older
    with pytest.raises(CheckpointError, match=re.escape(message)):
        lifecycle.find_resumable(str(newest), inside / "lightning_logs", None)


@pytest.mark.parametrize("case", HOLES)
def test_a_checkpoint_with_a_hole_is_refused_before_the_run_is_changed(
    case: str, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    change, message = HOLES[case]
    newest = paths.checkpoints(damage(run, inside, change))[0]
    before = {path: path.read_bytes() for path in inside.rglob("*.*") if path.is_file() and "events" not in path.name}
    code, _, err = call(train.main, *run.options, "--ckpt_path", newest, "--trainer.max_steps=41")
    assert code == 4 and message in err and err.count("error: ") == 1 and "Traceback" not in err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_checkpoint_cannot_replace_methods_of_the_schedule(
    run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    newest = paths.checkpoints(damage(run, inside, lambda raw: raw["lr_schedulers"][0].update(get_lr=5, step=5)))[0]
    code, _, err = call(train.main, *run.options, "--ckpt_path", newest, "--trainer.max_steps=41")
    assert code == 0, err


def test_skipped_updates_are_counted_over_resumes(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 4)
    args = [*options, *SHORT, "--model.max_nonfinite_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    code, _, err = call(train.main, *args)
    assert code == 6 and "update skipped (1 of at most 1)" in err and "step 4" in err
    metadata = checkpoint.read(paths.checkpoints(tmp_path / "lightning_logs/version_0")[-1])["gpt2kit"]
    assert metadata["step"] == 2 and metadata["skipped"] == 1
    monkeypatch.undo()
    poison(monkeypatch, 1)
    assert call(train.main, *args, "--ckpt_path=last")[0] == 6


def test_a_resumed_log_has_each_step_once(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, *SHORT)
    checkpoint.remove(paths.checkpoints(run)[0])  # as if killed after the last rows were logged
    with (run / "metrics.csv").open("a") as log:
        log.write("7,torn")
    time.sleep(1.1)  # TensorBoard sorts event files by the second in their names
    train_run(tmp_path, options, "--ckpt_path=last", "--trainer.max_steps=6")
    assert [row["step"] for row in logged_rows(run) if "train_loss" in row] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_keeps_old_checkpoints_and_stops_after_three_failures(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 1 << 40, 0, 1 << 40, 0, 0, 0])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(next(free)))
    args = [*options, "--trainer.max_steps=20", "--save_every=1", f"--trainer.default_root_dir={tmp_path}"]
    code, _, err = call(train.main, *args)
    assert code == 5 and err.count("warning: NOT SAVED") == 3 and "3 saves have failed" in err
    # Step 3 was not saved, and steps 5 to 7 ended the run.
    assert saved_steps(tmp_path / "lightning_logs/version_0") == [4, 2]


def test_a_save_that_fails_midway_leaves_nothing(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = torch.save, [0]

    def failing(value: Any, path: Path) -> None:
        count[0] += 1
        if count[0] == 2:
            Path(path).write_text("half")
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left")
        save(value, path)

    monkeypatch.setattr(torch, "save", failing)
    code, _, err = call(train.main, *options, *SHORT, f"--trainer.default_root_dir={tmp_path}")
    run = tmp_path / "lightning_logs/version_0"
    assert code == 0 and "NOT SAVED" in err and saved_steps(run) == [4, 3]
    assert not list((run / "checkpoints").glob(".*"))


def test_last_is_the_newest_run_with_the_same_settings(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    first = train_run(tmp_path, options, *SHORT)
    other = train_run(tmp_path, [*options, "--model.n_layer=1"], *SHORT)
    assert (first.name, other.name) == ("version_0", "version_1")
    root = f"--trainer.default_root_dir={tmp_path}"
    code, _, err = call(train.main, *options, root, "--trainer.max_steps=5", "--ckpt_path=last")
    assert code == 0 and "version_0" in err and saved_steps(first)[0] == 5
    code, _, err = call(train.main, *options, root, "--model.n_embd=48", "--ckpt_path=last")
    assert code == 4 and "model.n_embd 32, now 48" in err
    shutil.rmtree(first)
    code, _, err = call(train.main, root, "--trainer.max_steps=5", "--ckpt_path=last")  # the newest run's own config
    assert code == 0 and saved_steps(other)[0] == 5


def test_a_run_may_have_a_name(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    steps = ["--trainer.max_steps=2", "--save_every=1", "--trainer.val_check_interval=1"]
    assert call(train.main, *options, *steps, "--run_name=first try")[0] == 0
    run = inside / "lightning_logs/first try"
    files = {path.name.partition(".")[0] for path in run.iterdir()}
    assert files >= {"config", "metrics", "events", "checkpoints", "start"} and [*run.parent.iterdir()] == [run]
    code, _, err = call(train.main, *options, *steps, "--run_name=first try")
    assert code == 2 and "exists. Resume it with --ckpt_path 'first try', or choose another name" in err
    more = [*options, "--trainer.max_steps=3"]
    code, _, err = call(train.main, *more, "--ckpt_path=first try", "--run_name=other")
    assert code == 2 and "--run_name other: the resumed run is lightning_logs/first try" in err
    assert call(train.main, *more, "--ckpt_path=first try")[0] == 0
    assert call(train.main, *options, "--trainer.max_steps=4", "--ckpt_path=last", "--run_name=first try")[0] == 0
    assert paths.step_of(paths.checkpoints(run)[0]) == 4 and [*run.parent.iterdir()] == [run]


@pytest.mark.parametrize("name", ["", "a/b", "..", "last", "x.ckpt", "a ", "a.", "文" * 67])
def test_names_that_are_no_folder_are_refused(
    name: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(train.main, *options, f"--run_name={name}")
    assert code == 2 and f"--run_name {name!r:.60}: not a name for a run" in err and not [*inside.iterdir()]


def test_best_resumes_the_newest_run_at_its_best_checkpoint(options: list[str], inside: Path) -> None:
    run = train_run(inside, options, "--trainer.max_steps=3", "--save_every=1")
    for path in paths.checkpoints(run):  # the older one becomes the better one
        (run / "checkpoints" / f"{path.name}.sha256").unlink()
        path.rename(run / "checkpoints" / paths.file_name(0, paths.step_of(path), paths.step_of(path)))
    newest, older = paths.checkpoints(run)
    assert lifecycle.find_resumable("best", run.parent, None) == older
    assert lifecycle.find_resumable("last", run.parent, None) == newest


def test_a_damaged_checkpoint_is_set_aside_and_saved_again(options: list[str], tmp_path: Path) -> None:
    run = train_run(tmp_path, options, *SHORT)
    newest, older = paths.checkpoints(run)
    damaged = newest.read_bytes()[:-200]
    newest.write_bytes(damaged)
    assert lifecycle.find_resumable("last", tmp_path / "lightning_logs", None) == older
    train_run(tmp_path, options, *SHORT, "--ckpt_path=last")
    assert newest.read_bytes() != damaged and checkpoint.newest_valid(run) == newest
    assert newest.with_name(newest.name + ".aside").read_bytes() == damaged


def test_changed_settings_are_reported_and_the_optimizer_is_kept(
    options: list[str], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    run = train_run(tmp_path, options, *SHORT, "--model.schedule=Constant")
    args = [*options, f"--trainer.default_root_dir={tmp_path}", "--model.optimizer.lr=0.5", "--ckpt_path=last"]
    code, _, err = call(train.main, *args, "--trainer.max_steps=6")
    assert code == 0
    assert "model.optimizer.init_args.lr stays 0.005 (not 0.5; --override_optimizer changes it)" in err
    assert "trainer.max_steps was 4, now 6" in err
    assert logged_rows(run)[-2]["lr"] == pytest.approx(0.005)
    code, _, err = call(train.main, *args, "--trainer.max_steps=8", "--override_optimizer")
    assert code == 0 and "model.optimizer.init_args.lr was 0.005, now 0.5" in err
    assert [row["lr"] for row in logged_rows(run) if "lr" in row][-1] == pytest.approx(0.5)
    groups = checkpoint.read(paths.checkpoints(run)[0])["optimizer_states"][0]["param_groups"]
    assert groups[0]["initial_lr"] == 0.5


def test_a_later_end_changes_the_next_learning_rate(options: list[str], tmp_path: Path) -> None:
    """The saved rate of the next step is 0, since the old run ended there."""
    args = [*options, *SHORT, "--model.schedule=Linear"]
    before = final_weights(train_run(tmp_path, args, "--trainer.max_steps=4"))
    run = train_run(tmp_path, args, "--trainer.max_steps=5", "--ckpt_path=last")
    assert not same_weights(before, final_weights(run))


def test_a_run_with_another_order_of_blocks_is_not_resumed(
    run: Run, call: Callable[..., Outcome], tmp_path: Path
) -> None:
    """With a different order of blocks, a resumed run would repeat some and skip others."""
    copied = shutil.copytree(run.folder, tmp_path / "lightning_logs" / "version_0")
    file = paths.checkpoints(copied)[0]
    content = checkpoint.read(file)
    content["gpt2kit"]["data"]["order_version"] = 99
    checkpoint.write(content, file)
    code, _, err = call(train.main, *run.options, "--ckpt_path", copied, "--trainer.max_steps=99")
    assert code == 4 and "order_version was 99, now 2" in err


def test_other_data_or_batch_is_not_resumed(run: Run, call: Callable[..., Outcome], tmp_path: Path) -> None:
    copied = shutil.copytree(run.folder, tmp_path / "copy")
    before = {path: path.read_bytes() for path in copied.rglob("*.*") if "tfevents" not in path.name}
    code, _, err = call(train.main, *run.options, "--ckpt_path", copied, "--data.batch_size=4")
    assert code == 4 and "global_batch was 8, now 4" in err
    code, _, err = call(train.main, *run.options, "--ckpt_path", copied, "--seed_everything=7")
    assert code == 4 and "seed was 1, now 7" in err
    after = {path: path.read_bytes() for path in copied.rglob("*.*") if "tfevents" not in path.name}
    assert after == before, "a refused resume changes nothing"


def test_signal_handlers_are_restored_after_a_run(options: list[str], inside: Path) -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in signals]
    train_run(inside, options, "--trainer.max_steps=1")
    assert [signal.getsignal(number) for number in signals] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_stops_the_run(
    number: int,
    code: int,
    options: list[str],
    call: Callable[..., Outcome],
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_train_start = ExactResume.on_train_start

    def signalled(self: ExactResume, *args: Any) -> None:
        os.kill(os.getpid(), number)  # Lightning's handlers are installed, gpt2kit's are not
        on_train_start(self, *args)

    monkeypatch.setattr(ExactResume, "on_train_start", signalled)
    assert call(train.main, *options, f"--trainer.default_root_dir={inside}", "--trainer.max_steps=30")[0] == code
    assert not list(inside.rglob("*.ckpt"))


# Stands for trainer.py: it "trains" by copying checkpoints that were made before, since each real start takes seconds.
STAND_IN = """
import os, shutil, sys, time
from pathlib import Path
options = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
folder = Path(options["trainer.default_root_dir"]) / "lightning_logs" / "run" / "checkpoints"
is_killed = "resumed" in str(folder) and "ckpt_path" not in options
made = Path(os.environ["MADE"]) / ("killed" if is_killed else "resumed" if "ckpt_path" in options else "uninterrupted")
shutil.copytree(made, folder, dirs_exist_ok=True)
time.sleep(60 if is_killed else 0)
"""


@pytest.mark.parametrize("is_exact", [True, False])
def test_verify_resume_compares_a_killed_run_with_an_uninterrupted_one(
    is_exact: bool, options: list[str], tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["--trainer.max_steps=8", "--save_every=1", "--trainer.accumulate_grad_batches=2"]
    other = [] if is_exact else ["--seed_everything=2"]
    for name, more in {"uninterrupted": [], "resumed": other, "killed": ["--trainer.max_steps=3"]}.items():
        run = train_run(tmp_path / name, [*options, *steps, *more])
        shutil.copytree(run / "checkpoints", tmp_path / "made" / name)
    (tmp_path / "trainer.py").write_text(STAND_IN)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "trainer.py")])
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    code, out, err = call(train.main, *options, "--run_name=mine", "--verify_resume")
    assert "weights h.0" in out and "optimizer momentum_buffer" in out and "killed: a few steps, then SIGKILL" in err
    if is_exact:
        assert code == 0 and "exact: the resumed run ended like the uninterrupted one" in out
    else:
        assert code == 5 and "the resumed run differs from the uninterrupted one" in err
