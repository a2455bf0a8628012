"""Runs on two gloo processes. `make prove` does the same with four."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SENTENCE, logged_rows, tensors
from proofs.kills import Kill, Setting, difference, finish, last_run, resume, run_args, run_with_kills, start

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.runs import folder as run_folder

COMMON = [
    *("--data.batch_size=4", "--data.global_batch_size=16", "--trainer.gradient_clip_val=0.5"),
    *("--trainer.log_every_n_steps=1", "--save_every=12", "--trainer.val_check_interval=12"),
]
LONG = [*COMMON, "--trainer.max_steps=30"]
SHORT = [*COMMON, "--trainer.max_steps=8", "--save_every=2", "--trainer.val_check_interval=3"]
ADAMW, MUON = "--model.optimizer=gpt2kit.optim.AdamW", "--model.optimizer=gpt2kit.optim.Muon"
MUON_RATES = ["--model.optimizer.lr=1e-3", "--model.optimizer.adamw_lr=1e-3"]


def losses(run: Path) -> dict[str, list[float]]:
    """Return all logged losses and gradient norms by name."""
    rows = logged_rows(run)
    return {name: [row[name] for row in rows if name in row] for name in ("train_loss", "val_loss", "grad_norm")}


def log_of(work: Path) -> str:
    return (work / "log.txt").read_text()


@pytest.fixture(scope="module")
def runs_of(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train 30 steps with accumulation, dropout and clipping on one rank, two replicated and two sharded ranks.

    With AdamW, the loss counts a part of the text, which differs between ranks and micro-batches.
    """
    folder = tmp_path_factory.mktemp("records")
    for split, numbers in {"train": range(300), "valid": range(300, 320)}.items():
        text = [{"title": f"{n} " * (n * 7 % 30), "body": SENTENCE.format(n)} for n in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in text))
    masked = [f"--data.{split}_files={folder / split}.jsonl" for split in ("train", "valid")] + [
        "--data.test_files=null"
    ]
    masked += ["--data.reader.document=file", "--data.reader.template={title}{body}", "--data.reader.loss_on=body"]
    runs = {}
    for name, optimizer in {"adamw": [ADAMW, *masked], "muon": [MUON, *MUON_RATES]}.items():
        for ranks, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
            work = tmp_path_factory.mktemp("runs")
            setting = Setting(name, [*options, *LONG, *optimizer], ranks, strategy)
            runs[f"{name} {ranks} {strategy}"], _ = run_with_kills(setting, work / "run", [])
    return runs


@pytest.mark.parametrize(("optimizer", "within"), [("adamw", 1e-4), ("muon", 1e-3)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_like_one(runs_of: dict[str, Path], optimizer: str, within: float, strategy: str) -> None:
    """Each step has the same samples, so losses agree up to the rounding of sums, which updates amplify.

    The validation text cannot be divided equally among the ranks; its loss is a sum over them.
    """
    one, two = losses(runs_of[f"{optimizer} 1 auto"]), losses(runs_of[f"{optimizer} 2 {strategy}"])
    assert len(one["train_loss"]) == 30 and len(one["val_loss"]) == 3
    assert one["train_loss"][-1] < one["train_loss"][0] - 1, "nothing was learned, so nothing was compared"
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=within), name
    first = pytest.approx(one["train_loss"][0], rel=1e-6)
    assert two["train_loss"][0] == first, "the samples or the dropout masks differ"


def test_gpt2kit_starts_its_own_ranks(options: list[str], corpus: Path, tmp_path: Path) -> None:
    text = f"--data.train_files={corpus / 'train.txt'}"
    arguments = [*(option for option in options if option != text), "--trainer.max_steps=2", "--trainer.devices=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpt2kit", "train", str(corpus / "train.txt"), *arguments, "--run_name=two"]
    process = subprocess.run(
        [*command, "--trainer.strategy=ddp"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert paths.step_of(paths.find(tmp_path / "lightning_logs/two")) == 2
    assert f"{2 * 8} x 16 tokens" in process.stderr, "an optimizer step has the sequences of both ranks"


def test_only_rank_zero_prints_and_writes(runs_of: dict[str, Path]) -> None:
    run = runs_of["adamw 2 ddp"]
    log = log_of(run.parent.parent)
    assert log.count("model  ") == log.count("run    ") == 1
    assert len(list(run.parent.glob("version_*"))) == 1
    assert [path.name for path in run.glob("events*")] == [next(run.glob("events*")).name]


def test_fsdp_writes_the_ordinary_checkpoint(runs_of: dict[str, Path]) -> None:
    for optimizer in ("adamw", "muon"):
        sharded, copied = (
            checkpoint.read(paths.checkpoints(runs_of[f"{optimizer} 2 {strategy}"])[0]) for strategy in ("fsdp", "ddp")
        )
        assert list(sharded) == list(copied)
        for part in ("state_dict", "optimizer_states"):
            left, right = (dict(tensors(raw[part])) for raw in (sharded, copied))
            assert list(left) == list(right)
            for name, tensor in right.items():
                assert left[name].shape == tensor.shape and left[name].dtype == tensor.dtype, name
        for name, tensor in copied["state_dict"].items():
            assert torch.allclose(sharded["state_dict"][name], tensor, atol=1e-3), name
        opened = checkpoint.open(runs_of[f"{optimizer} 2 fsdp"])
        assert opened.model.lm_head.weight is opened.model.transformer.wte.weight


def test_a_rank_killed_during_a_sharded_save_resumes_bit_identically(options: list[str], tmp_path: Path) -> None:
    """Whichever rank dies, wherever, the run resumes from a complete checkpoint."""
    setting = Setting("fsdp", [*options, *SHORT, MUON], 2, "fsdp")
    setting.reference, _ = run_with_kills(setting, tmp_path / "uninterrupted", [])
    for number, (kill, rank) in enumerate(
        [(Kill("write", 2), 0)]  # more of them by `make prove`
    ):
        work = tmp_path / str(number)
        work.mkdir()
        codes = resume(setting, work, kill, rank)
        assert codes[rank] == -9 and codes[1 - rank] == 5, (kill, codes, log_of(work))
        assert resume(setting, work) == [0, 0], log_of(work)
        problem = difference(setting.reference, last_run(work))
        assert not problem, (kill, problem)
        assert not list((last_run(work) / "checkpoints").glob(".*")), "leftovers of the killed save must be removed"


def test_a_run_resumes_on_another_number_of_devices(options: list[str], tmp_path: Path) -> None:
    """With the same data.global_batch_size: 2 sharded ranks -> 1 -> 2 replicated -> 2 sharded."""
    args = [*options, *SHORT, ADAMW]
    reference, _ = run_with_kills(Setting("one", args), tmp_path / "uninterrupted", [])
    work = tmp_path / "elastic"
    work.mkdir()
    sharded, one, replicated = Setting("s", args, 2, "fsdp"), Setting("1", args), Setting("r", args, 2, "ddp")
    assert -9 in resume(sharded, work, Kill("forward", 6))
    assert resume(one, work, Kill("forward", 10)) == [-9]
    assert -9 in resume(replicated, work, Kill("forward", 5))
    assert resume(sharded, work) == [0, 0], log_of(work)
    assert len(list((work / "lightning_logs").glob("version_*"))) == 1
    left, right = (checkpoint.read(paths.checkpoints(run)[0]) for run in (reference, last_run(work)))
    for name, tensor in left["state_dict"].items():
        assert torch.allclose(tensor, right["state_dict"][name], atol=1e-4), name
    assert losses(reference)["val_loss"] == pytest.approx(losses(last_run(work))["val_loss"], rel=1e-4)


def test_all_ranks_stop_when_one_dies(options: list[str], tmp_path: Path) -> None:
    setting = Setting("two", [*options, *LONG], 2)
    tmp_path.joinpath("work").mkdir()
    processes = start(run_args(setting, tmp_path / "work"), {1: Kill("forward", 9)}, 2, tmp_path / "work/log.txt")
    processes[1].join(60)
    started = time.monotonic()
    assert finish(processes, 30) == [5, -9]
    assert time.monotonic() - started < 30
    log = log_of(tmp_path / "work")
    assert "error: another process of this run has ended" in log and "--ckpt_path last" in log
    status = run_folder.read_status(last_run(tmp_path / "work"))
    assert status["state"] == "failed"


def test_ranks_with_different_text_or_settings_are_refused(options: list[str], corpus: Path, tmp_path: Path) -> None:
    """The text differs under the same name, as on machines with disks of their own."""
    work = tmp_path / "work"
    relative = [arg for arg in options if "_files" not in arg and "cache_dir" not in arg]
    relative += ["--data.train_files=train.txt", "--data.cache_dir=cache", "--trainer.max_steps=2"]
    machines = {}
    for rank in (0, 1):
        machines[rank] = tmp_path / f"machine{rank}"
        machines[rank].mkdir()
        text = (corpus / "train.txt").read_text()
        (machines[rank] / "train.txt").write_text(text if rank == 0 else text.replace("number 7 ", "number 8 "))
    setting = Setting("two", relative, 2)
    work.mkdir()
    environments = {rank: {"CWD": str(machine)} for rank, machine in machines.items()}
    assert finish(start(run_args(setting, work), {}, 2, work / "log.txt", environments)) == [2, 2], log_of(work)
    log = log_of(work)
    assert log.count("error: ") == 1
    assert "error: rank 1 on " in log and "the train text is" in log and "Use the same files" in log
    assert not list(work.glob("lightning_logs/*/checkpoints"))

    shutil.copy(machines[0] / "train.txt", machines[1] / "train.txt")
    work = tmp_path / "alike"
    work.mkdir()  # equal text on two disks: each machine builds its own store
    assert finish(start(run_args(setting, work), {}, 2, work / "log.txt", environments)) == [0, 0], log_of(work)
    assert all(len(list((machine / "cache").glob("*/index.json"))) >= 1 for machine in machines.values())

    work = tmp_path / "setting"
    work.mkdir()
    environments[1]["ARGS"] = "--model.dropout=0.2"
    assert finish(start(run_args(setting, work), {}, 2, work / "log.txt", environments)) == [2, 2], log_of(work)
    assert "model.dropout is 0.2, on rank 0 0.1" in log_of(work)


def test_errors_in_the_text_name_the_ranks(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    args = [arg for arg in options if "train_files" not in arg] + [f"--data.train_files={tmp_path / 'empty.txt'}"]
    processes = start(run_args(Setting("two", args, 2), tmp_path), {}, 2, tmp_path / "log.txt")
    assert finish(processes)[0] == 3, log_of(tmp_path)
    # torch warns of the lost connection, too
    first, second = sorted(re.findall("^(?:rank 1: )?error: .*", log_of(tmp_path), re.MULTILINE))
    assert first.startswith("error: ") and "no text found" in first
    assert second.startswith("rank 1: error: another process of this run has ended")


def test_errors_in_the_arguments_name_the_ranks(options: list[str], tmp_path: Path) -> None:
    args = [*options, "--trainer.max_steps=0"]
    torchrun = {"TORCHELASTIC_RUN_ID": tmp_path.name, "LOCAL_WORLD_SIZE": "2"}
    environments = {rank: {**torchrun, "RANK": str(rank)} for rank in (0, 1)}
    processes = start(run_args(Setting("two", args, 2), tmp_path), {}, 2, tmp_path / "log.txt", environments)
    assert finish(processes) == [2, 2], log_of(tmp_path)
    lines = log_of(tmp_path).splitlines()
    assert sorted(line.split("trainer.")[0] for line in lines) == ["error: ", "rank 1: error: "]


def test_ranks_that_resume_from_different_checkpoints_are_refused(options: list[str], tmp_path: Path) -> None:
    """Each machine has a folder of its own, and one has lost its newest checkpoint."""
    args = [*options, *SHORT, ADAMW]
    uninterrupted, _ = run_with_kills(Setting("one", args), tmp_path / "uninterrupted", [])
    machines = {rank: tmp_path / f"machine{rank}" for rank in (0, 1)}
    for machine in machines.values():
        shutil.copytree(uninterrupted.parent, machine / "runs" / "lightning_logs")
    checkpoint.remove(paths.checkpoints(machines[1] / "runs/lightning_logs/version_0")[0])
    two = Setting("two", [*args, "--trainer.max_steps=12"], 2)
    relative = [arg for arg in run_args(two, tmp_path) if "root_dir" not in arg]
    relative += ["--trainer.default_root_dir=runs", "--ckpt_path=last"]
    environments = {rank: {"CWD": str(machine)} for rank, machine in machines.items()}
    assert finish(start(relative, {}, 2, tmp_path / "log.txt", environments)) == [2, 2], log_of(tmp_path)
    log = log_of(tmp_path)
    assert log.count("error: ") == 1 and "the checkpoint is epoch=" in log and "step=8" in log
    kept = paths.checkpoints(machines[0] / "runs/lightning_logs/version_0")
    assert [paths.step_of(path) for path in kept] == [
        paths.step_of(path) for path in paths.checkpoints(uninterrupted)
    ], "something was trained or deleted"
