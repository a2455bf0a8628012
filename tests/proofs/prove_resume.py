"""`make prove`: hundreds of scripted kills, and kills at random moments; resumed runs must end bit-identically.

    python tests/proofs/prove_resume.py [--scripted 500] [--random 100]

Prints a table of scenarios, kills that struck, and runs that ended differently (which fails). For random kills,
checkpoints have about 8 MB and are written every second step, and $TMPDIR is on another filesystem if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from helpers import train_tokenizer
from proofs.kills import Kill, Setting, difference, last_run, resume, run_with_kills

from gpt2kit.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[2]
LINE = "the quick brown fox jumps over the lazy dog and number {} says good morning\n"
POINTS = ("forward", "update", "validation", "write", "renaming", "renamed", "purge", "purged")


def corpus(folder: Path) -> list[str]:
    for name, numbers in {"train": range(300), "valid": range(300, 340)}.items():
        (folder / f"{name}.txt").write_text("".join(LINE.format(n) for n in numbers))
    train_tokenizer([str(folder / "train.txt")], folder / "tokenizer", vocab_size=320)
    return [
        f"--data.train_files={folder / 'train.txt'}",
        f"--data.valid_files={folder / 'valid.txt'}",
        f"--data.tokenizer={folder / 'tokenizer'}",
        f"--data.cache_dir={folder / 'cache'}",
        "--data.reader.document=line",
        *("--data.block_size=16", "--data.batch_size=4", "--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32"),
        *("--model.dropout=0.1", "--trainer.precision=32-true", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=3"),
    ]


def settings(base: list[str]) -> list[Setting]:
    cases = []
    for accumulate, optimizer in itertools.product((1, 3, 4), ("Muon", "AdamW")):
        args = [f"--trainer.accumulate_grad_batches={accumulate}", f"--model.optimizer=gpt2kit.optim.{optimizer}"]
        steps = [*base, *args, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
        cases.append(Setting(f"{optimizer}, accumulating {accumulate}, steps", steps))
    epochs = ["--data.batch_size=64", "--trainer.max_epochs=2", "--trainer.val_check_interval=0.5", "--save_every=3"]
    cases += [
        Setting(f"{o}, epochs", [*base, *epochs, f"--model.optimizer=gpt2kit.optim.{o}"]) for o in ("Muon", "AdamW")
    ]
    return cases


def scripted(count: int) -> Iterator[tuple[int, list[Kill]]]:
    """Yield the number of a setting and one to three kills, spread evenly over all points; the same at every call."""
    draw = random.Random(1)
    for number in range(count):
        kills = [Kill(POINTS[(number // 8 + i) % len(POINTS)], draw.randint(1, 6)) for i in range(1 + number % 3)]
        yield number % 8, kills


def report(name: str, scenarios: int, struck: int, wrong: list[str], seconds: float) -> None:
    print(f"| {name} | {scenarios} | {struck} | {len(wrong)} | {seconds:,.0f} s |", flush=True)
    for line in wrong[:5]:
        print(line, file=sys.stderr)


def compiled(base: list[str], work: Path, counts: tuple[int, ...] = (6, 11, 14)) -> tuple[int, list[str]]:
    """Kill runs with compiled blocks, dropout, accumulation and masked documents, in forward passes and updates."""
    args = [*base, "--model.compile=blocks", "--data.mask_documents=true", "--trainer.accumulate_grad_batches=2"]
    args += ["--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
    setting = Setting("compiled", args)
    reference, _ = run_with_kills(setting, work / "uninterrupted" / "compiled", [])
    wrong, struck = [], 0
    for n in counts:
        kills = [Kill("forward", n), Kill("update", 2)]
        run, kills_struck = run_with_kills(setting, work / "compiled" / str(n), kills)
        struck += kills_struck
        if problem := difference(reference, run):
            wrong.append(f"compiled, {kills}: {problem}")
    return struck, wrong


def elastic(base: list[str], work: Path) -> str:
    """Resume on 1, 2 and 4 ranks over two kills: the samples of each step, so the weights up to rounding, are equal."""
    args = [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3", "--model.dropout=0"]
    accumulation = {1: 4, 2: 2, 4: 1}
    settings = {
        r: Setting(f"{r}", [*args, f"--trainer.accumulate_grad_batches={a}"], r) for r, a in accumulation.items()
    }
    reference, _ = run_with_kills(settings[1], work / "uninterrupted" / "elastic", [])
    place = work / "elastic"
    place.mkdir()
    assert -9 in resume(settings[1], place, Kill("forward", 14))
    assert -9 in resume(settings[2], place, Kill("forward", 5))
    codes = resume(settings[4], place)
    if any(codes):
        return f"exit codes {codes}: {(place / 'log.txt').read_text()[-1000:]}"
    ends = [checkpoint.read(checkpoint.checkpoints(run)[0])["state_dict"] for run in (reference, last_run(place))]
    largest = max(float((tensor - ends[1][name]).abs().max()) for name, tensor in ends[0].items())
    print(f"1 -> 2 -> 4 ranks: weights within {largest:.1e} of the run on one", file=sys.stderr)
    return "" if largest < 1e-3 else f"weights differ by {largest}"


def torchrun(base: list[str], work: Path) -> str:
    """Kill one of two ranks once: torchrun starts both again, and they resume."""
    uninterrupted = Setting(
        "", [*base, "--save_every=2", "--trainer.max_steps=40", "--trainer.val_check_interval=9"], ranks=2
    )
    reference, _ = run_with_kills(uninterrupted, work / "uninterrupted" / "torchrun", [])
    root = work / "torchrun"
    args = [*uninterrupted.args, "--trainer.strategy=ddp", "--trainer.devices=2", f"--trainer.default_root_dir={root}"]
    script = f"""import os, sys, threading, time
sys.path.insert(0, {str(ROOT / "src")!r})
from pathlib import Path
from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import parser, train
run = Path({str(root)!r}) / "lightning_logs/version_0"
def kill():
    while not any(checkpoint.step_of(p) >= 10 for p in checkpoint.checkpoints(run)):
        time.sleep(0.002)
    os.kill(os.getpid(), 9)
again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
if os.environ["RANK"] == "1" and not again:
    threading.Thread(target=kill, daemon=True).start()
parser.guarded(train.main, {args!r} + (["--ckpt_path", "last"] if again else []))
"""
    (work / "worker.py").write_text(script)
    # Without this the ranks of torch 2.13 find the addresses of killed ranks in the shared store, and wait for them.
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    done = subprocess.run(
        [*launcher, str(work / "worker.py")], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode or "exitcode: -9" not in done.stderr:
        return f"torchrun: exit code {done.returncode}: {done.stderr[-2000:]}"
    return difference(reference, last_run(root))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--scripted", type=int, default=500)
    options.add_argument("--random", type=int, default=100)
    arguments = options.parse_args()
    failed = []
    print("| scenarios | number | kills that struck | ended differently | time |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = corpus(work)
        cases = settings(base)
        for setting in cases:
            setting.reference, _ = run_with_kills(setting, work / "uninterrupted" / setting.name, [])

        started, wrong, struck = time.monotonic(), [], 0
        for number, (index, kills) in enumerate(scripted(arguments.scripted)):
            run, kills_struck = run_with_kills(cases[index], work / "scripted" / str(number), kills)
            struck += kills_struck
            assert cases[index].reference is not None
            if problem := difference(cases[index].reference, run):
                wrong.append(f"{cases[index].name}: {kills}: {problem}")
        report("scripted, one to three kills each", arguments.scripted, struck, wrong, time.monotonic() - started)
        failed += wrong

        if Path("/dev/shm").is_dir():
            os.environ["TMPDIR"] = "/dev/shm"
        large = ["--model.n_embd=160", "--save_every=2", "--trainer.max_steps=60", "--trainer.val_check_interval=7"]
        chaos = Setting("random", [*base, *large])
        chaos.reference, _ = run_with_kills(chaos, work / "uninterrupted" / "chaos", [])
        started, wrong, struck, scenarios = time.monotonic(), [], 0, 0
        draw = random.Random(2)
        while struck < arguments.random:
            kills = [Kill("seconds", draw.randint(300, 1500)) for _ in range(10)]
            run, kills_struck = run_with_kills(chaos, work / "random" / str(scenarios), kills)
            struck, scenarios = struck + kills_struck, scenarios + 1
            if problem := difference(chaos.reference, run):
                wrong.append(f"random {scenarios}: {problem}")
        report(
            "at random moments, 8 MB checkpoints, other $TMPDIR", scenarios, struck, wrong, time.monotonic() - started
        )
        failed += wrong

        started, wrong, struck = time.monotonic(), [], 0
        two = Setting(
            "2 ranks", [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"], 2
        )
        two.reference, _ = run_with_kills(two, work / "uninterrupted" / "two", [])
        for n in range(1, 13):
            run, kills_struck = run_with_kills(
                two, work / "two" / str(n), [Kill("forward", n % 8 + 1), Kill("update", n % 3 + 1)]
            )
            struck += kills_struck
            assert two.reference is not None
            if problem := difference(two.reference, run):
                wrong.append(f"two ranks {n}: {problem}")
        report("2 ranks, one killed twice", 12, struck, wrong, time.monotonic() - started)
        failed += wrong

        started = time.monotonic()
        struck, wrong = compiled(base, work)
        report("compiled blocks, killed twice", 3, struck, wrong, time.monotonic() - started)
        failed += wrong

        started = time.monotonic()
        problem = elastic(base, work)
        wrong = [problem] if problem else []
        report("1 -> 2 -> 4 ranks, killed twice", 1, 2, wrong, time.monotonic() - started)
        failed += wrong

        started = time.monotonic()
        problem = torchrun(base, work)
        wrong = [problem] if problem else []
        report("torchrun --max-restarts, one rank killed", 1, 1, wrong, time.monotonic() - started)
        failed += wrong
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
