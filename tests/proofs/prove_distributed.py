"""`make prove`: 1, 2 and 4 gloo ranks, replicated and sharded, kills in all phases of a save, launchers.

    python tests/proofs/prove_distributed.py [--only NAME]

Prints a table of the proofs and how many of them failed. Results are kept, as by prove_resume.py.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from proofs.journal import run_proofs
from proofs.kills import Kill, Setting, difference, finish, last_run, logged, resume, run_args, run_with_kills, start
from prove_resume import corpus

from gpt2kit.checkpoint import checkpoint, paths

ROOT = Path(__file__).resolve().parents[2]
FIFTY = ["--data.global_batch_size=16", "--trainer.max_steps=50", "--trainer.gradient_clip_val=0.5", "--save_every=20"]
EIGHT = ["--data.global_batch_size=16", "--trainer.max_steps=8", "--trainer.gradient_clip_val=0.5", "--save_every=2"]
OPTIMIZERS = {
    "AdamW": ["--model.optimizer=gpt2kit.optim.AdamW"],
    "Muon": ["--model.optimizer=gpt2kit.optim.Muon", "--model.optimizer.lr=1e-3", "--model.optimizer.adamw_lr=1e-3"],
}


def losses(run: Path) -> list[float]:
    return [float(row[name]) for row in logged(run) for name in ("train_loss", "val_loss") if name in row]


def equal(base: list[str], work: Path, optimizer: str) -> str:
    """Train 50 steps on 1, 2 and 4 ranks, replicated and sharded: all logged losses must agree within 0.1 %."""
    args = [*base, *FIFTY, "--trainer.val_check_interval=20", "--trainer.limit_val_batches=1.0"]
    args += OPTIMIZERS[optimizer]
    alone, _ = run_with_kills(Setting("1", args), work / "1", [])
    worst = 0.0
    for ranks in (2, 4):
        for strategy in ("ddp", "fsdp"):
            run, _ = run_with_kills(Setting("", args, ranks, strategy), work / f"{ranks}-{strategy}", [])
            pairs = zip(losses(alone), losses(run), strict=True)
            worst = max(worst, *(abs(one - other) / one for one, other in pairs))
    return "" if worst < 1e-3 else f"losses differ by {worst:.1e}"


def killed_saves(base: list[str], work: Path, ranks: int) -> str:
    """Kill each rank in each phase of a sharded save: a resume on as many ranks must end bit-identically."""
    args = [*base, *EIGHT, "--trainer.val_check_interval=3"]
    setting = Setting("", args, ranks, "fsdp")
    reference, _ = run_with_kills(setting, work / "uninterrupted", [])
    for rank in range(ranks):
        for kill in (Kill("write", 1), Kill("write", 2), Kill("renaming", 2), Kill("renamed", 3), Kill("update", 5)):
            place = work / f"{rank}-{kill.point}-{kill.n}"
            place.mkdir(parents=True)
            codes = resume(setting, place, kill, rank)
            log = (place / "log.txt").read_text()
            if codes[rank] != -9 and any(codes):
                return f"{kill} of rank {rank}: {codes}: {log[-1000:]}"
            if codes[rank] == -9 and resume(setting, place) != [0] * ranks:
                return f"{kill} of rank {rank}: cannot resume: {(place / 'log.txt').read_text()[-1000:]}"
            if problem := difference(reference, last_run(place)):
                return f"{kill} of rank {rank}: {problem}"
    return ""


def elastic(base: list[str], work: Path) -> str:
    """Resume on 4 (sharded), 2 (replicated), 1, 2 (sharded) and 4 ranks (sharded), killed each time."""
    args = [*base, *FIFTY, "--save_every=3", "--trainer.val_check_interval=20", *OPTIMIZERS["AdamW"]]
    reference, _ = run_with_kills(Setting("", args), work / "uninterrupted", [])
    place = work / "run"
    place.mkdir(parents=True)
    for ranks, strategy, n in ((4, "fsdp", 9), (2, "ddp", 16), (1, "auto", 30), (2, "fsdp", 20)):
        if -9 not in resume(Setting("", args, ranks, strategy), place, Kill("forward", n)):
            return f"the kill on {ranks} {strategy} did not strike"
    if any(resume(Setting("", args, 4, "fsdp"), place)):
        return (place / "log.txt").read_text()[-2000:]
    ends = [checkpoint.read(paths.checkpoints(run)[0])["state_dict"] for run in (reference, last_run(place))]
    worst = max((ends[0][name] - ends[1][name]).abs().max().item() for name in ends[0])
    return "" if worst < 1e-3 else f"weights differ by {worst}"


def dead_rank(base: list[str], work: Path) -> str:
    """Kill each of 4 ranks in turn: the others must stop within 30 s."""
    setting = Setting("", [*base, *FIFTY, "--trainer.val_check_interval=20"], 4)
    for rank in range(4):
        place = work / str(rank)
        place.mkdir(parents=True)
        processes = start(run_args(setting, place), {rank: Kill("update", 5)}, 4, place / "log.txt")
        processes[rank].join(60)
        started = time.monotonic()
        codes = finish(processes, 30)
        log = (place / "log.txt").read_text()
        if sorted(codes) != [-9, 5, 5, 5] or time.monotonic() - started > 30:
            return f"rank {rank}: {codes}, after {time.monotonic() - started:.0f} s: {log[-1500:]}"
    return ""


def launched(base: list[str], work: Path, launcher: list[str], devices: str) -> str:
    """Start trainer.py as a user does, then test.py on its run."""
    args = [*base, *EIGHT, f"--trainer.default_root_dir={work}", f"--trainer.devices={devices}"]
    args += ["--trainer.strategy=fsdp", "--trainer.val_check_interval=3"]
    trained = subprocess.run([*launcher, str(ROOT / "trainer.py"), *args], capture_output=True, text=True, check=False)
    if trained.returncode or "4 x cpu" not in trained.stderr or trained.stderr.count("model  ") != 1:
        return f"exit code {trained.returncode}: {trained.stderr[-2000:]}"
    if not paths.checkpoints(last_run(work))[0].is_file():
        return "the checkpoint is not a file"
    valid = next(arg.split("=")[1] for arg in base if "valid_files" in arg)
    test = [sys.executable, str(ROOT / "test.py"), "--ckpt_path", str(last_run(work)), "--files", valid]
    tested = subprocess.run(test, capture_output=True, text=True, check=False)
    return tested.stderr[-1000:] if tested.returncode else ""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="run the proofs whose name contains this")
    only = options.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = corpus(work)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
        proofs: dict[str, Callable[[Path], str]] = {
            "1, 2, 4 ranks, replicated and sharded: AdamW, 50 steps": lambda place: equal(base, place, "AdamW"),
            "1, 2, 4 ranks, replicated and sharded: Muon, 50 steps": lambda place: equal(base, place, "Muon"),
            "2 sharded ranks, each killed in 5 phases of a save": lambda place: killed_saves(base, place, 2),
            "4 sharded ranks, each killed in 5 phases of a save": lambda place: killed_saves(base, place, 4),
            "4 (sharded) -> 2 (replicated) -> 1 -> 2 -> 4 (sharded) ranks, killed": lambda place: elastic(base, place),
            "each of 4 ranks killed: the others stop": lambda place: dead_rank(base, place),
            "trainer.py starts 4 ranks itself": lambda place: launched(base, place, [sys.executable], "4"),
            "torchrun starts 4 ranks": lambda place: launched(base, place, torchrun, "auto"),
        }
        for number in range(len(proofs)):
            (work / str(number)).mkdir()
        placed = {
            name: functools.partial(proof, work / str(number)) for number, (name, proof) in enumerate(proofs.items())
        }
        failed = run_proofs(placed, only)
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
