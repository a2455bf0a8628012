"""`make prove`: some hundred scripted kills, and kills at random moments, each compared to the last bit.

    python tests/prove_resume.py [--scripted 500] [--random 100]

Prints a table of scenarios, kills that struck, and runs that ended otherwise (which fails). Random kills come with
checkpoints of about 8 MB, every second step, and $TMPDIR on another filesystem where the machine has one.
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
from proofs.kills import Kill, Setting, difference, go_on, last_run, run_with_kills

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
        *("--data.block_size=16", "--data.batch_size=4", "--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32"),
        *("--model.dropout=0.1", "--trainer.precision=32-true", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=3"),
    ]


def settings(base: list[str]) -> list[Setting]:
    found = []
    for accumulate, optimizer in itertools.product((1, 3, 4), ("Muon", "AdamW")):
        words = [f"--trainer.accumulate_grad_batches={accumulate}", f"--model.optimizer=gpt2kit.optim.{optimizer}"]
        steps = [*base, *words, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
        found.append(Setting(f"{optimizer}, accumulating {accumulate}, steps", steps))
    epochs = ["--data.batch_size=64", "--trainer.max_epochs=2", "--trainer.val_check_interval=0.5", "--save_every=3"]
    found += [
        Setting(f"{o}, epochs", [*base, *epochs, f"--model.optimizer=gpt2kit.optim.{o}"]) for o in ("Muon", "AdamW")
    ]
    return found


def scripted(count: int) -> Iterator[tuple[int, list[Kill]]]:
    """Setting and kills, one to three of them, spread evenly over all points; the same at every call."""
    draw = random.Random(1)
    for number in range(count):
        kills = [Kill(POINTS[(number // 8 + i) % len(POINTS)], draw.randint(1, 6)) for i in range(1 + number % 3)]
        yield number % 8, kills


def report(name: str, scenarios: int, struck: int, wrong: list[str], seconds: float) -> None:
    print(f"| {name} | {scenarios} | {struck} | {len(wrong)} | {seconds:,.0f} s |", flush=True)
    for line in wrong[:5]:
        print(line, file=sys.stderr)


def compiled(base: list[str], work: Path, counts: tuple[int, ...] = (6, 11, 14)) -> tuple[int, list[str]]:
    """Compiled blocks, with dropout, accumulation and masked documents: killed in forward passes and before updates."""
    words = [*base, "--model.compile=blocks", "--data.mask_documents=true", "--trainer.accumulate_grad_batches=2"]
    words += ["--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
    setting = Setting("compiled", words)
    reference, _ = run_with_kills(setting, work / "straight" / "compiled", [])
    wrong, struck = [], 0
    for n in counts:
        kills = [Kill("forward", n), Kill("update", 2)]
        run, times = run_with_kills(setting, work / "compiled" / str(n), kills)
        struck += times
        if found := difference(reference, run):
            wrong.append(f"compiled, {kills}: {found}")
    return struck, wrong


def elastic(base: list[str], work: Path) -> str:
    """1 -> 2 -> 4 ranks over two kills: the same samples in each step, so the same weights up to rounding."""
    words = [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3", "--model.dropout=0"]
    shares = {1: 4, 2: 2, 4: 1}
    settings = {r: Setting(f"{r}", [*words, f"--trainer.accumulate_grad_batches={a}"], r) for r, a in shares.items()}
    reference, _ = run_with_kills(settings[1], work / "straight" / "elastic", [])
    place = work / "elastic"
    place.mkdir()
    assert -9 in go_on(settings[1], place, Kill("forward", 14))
    assert -9 in go_on(settings[2], place, Kill("forward", 5))
    codes = go_on(settings[4], place)
    if any(codes):
        return f"exit codes {codes}: {(place / 'log.txt').read_text()[-1000:]}"
    ends = [checkpoint.read(checkpoint.checkpoints(run)[0])["state_dict"] for run in (reference, last_run(place))]
    largest = max(float((tensor - ends[1][name]).abs().max()) for name, tensor in ends[0].items())
    print(f"1 -> 2 -> 4 ranks: weights within {largest:.1e} of the run on one", file=sys.stderr)
    return "" if largest < 1e-3 else f"weights differ by {largest}"


def torchrun(base: list[str], work: Path) -> str:
    """Two ranks under torchrun; one is killed once, torchrun starts both again, and they go on by themselves."""
    straight = Setting(
        "", [*base, "--save_every=2", "--trainer.max_steps=40", "--trainer.val_check_interval=9"], ranks=2
    )
    reference, _ = run_with_kills(straight, work / "straight" / "torchrun", [])
    root = work / "torchrun"
    words = [*straight.words, "--trainer.strategy=ddp", "--trainer.devices=2", f"--trainer.default_root_dir={root}"]
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
parser.guarded(train.main, {words!r} + (["--ckpt_path", "last"] if again else []))
"""
    (work / "worker.py").write_text(script)
    # Without it torch 2.13's ranks find addresses of the killed ones in the shared store, and wait for them.
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
    given = options.parse_args()
    failed = []
    print("| what | scenarios | kills that struck | ended otherwise | time |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = corpus(work)
        places = settings(base)
        for setting in places:
            setting.reference, _ = run_with_kills(setting, work / "straight" / setting.name, [])

        begun, wrong, struck = time.monotonic(), [], 0
        for number, (place, kills) in enumerate(scripted(given.scripted)):
            run, times = run_with_kills(places[place], work / "scripted" / str(number), kills)
            struck += times
            assert places[place].reference is not None
            if found := difference(places[place].reference, run):
                wrong.append(f"{places[place].name}: {kills}: {found}")
        report("scripted, one to three kills each", given.scripted, struck, wrong, time.monotonic() - begun)
        failed += wrong

        if Path("/dev/shm").is_dir():
            os.environ["TMPDIR"] = "/dev/shm"
        large = ["--model.n_embd=160", "--save_every=2", "--trainer.max_steps=60", "--trainer.val_check_interval=7"]
        chaos = Setting("random", [*base, *large])
        chaos.reference, _ = run_with_kills(chaos, work / "straight" / "chaos", [])
        begun, wrong, struck, scenarios = time.monotonic(), [], 0, 0
        draw = random.Random(2)
        while struck < given.random:
            kills = [Kill("seconds", draw.randint(300, 1500)) for _ in range(10)]
            run, times = run_with_kills(chaos, work / "random" / str(scenarios), kills)
            struck, scenarios = struck + times, scenarios + 1
            if found := difference(chaos.reference, run):
                wrong.append(f"random {scenarios}: {found}")
        report("at random moments, 8 MB checkpoints, other $TMPDIR", scenarios, struck, wrong, time.monotonic() - begun)
        failed += wrong

        begun, wrong, struck = time.monotonic(), [], 0
        two = Setting(
            "2 ranks", [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"], 2
        )
        two.reference, _ = run_with_kills(two, work / "straight" / "two", [])
        for n in range(1, 13):
            run, times = run_with_kills(
                two, work / "two" / str(n), [Kill("forward", n % 8 + 1), Kill("update", n % 3 + 1)]
            )
            struck += times
            assert two.reference is not None
            if found := difference(two.reference, run):
                wrong.append(f"two ranks {n}: {found}")
        report("2 ranks, one killed twice", 12, struck, wrong, time.monotonic() - begun)
        failed += wrong

        begun = time.monotonic()
        struck, wrong = compiled(base, work)
        report("compiled blocks, killed twice", 3, struck, wrong, time.monotonic() - begun)
        failed += wrong

        begun = time.monotonic()
        wrong = [found] if (found := elastic(base, work)) else []
        report("1 -> 2 -> 4 ranks, killed twice", 1, 2, wrong, time.monotonic() - begun)
        failed += wrong

        begun = time.monotonic()
        wrong = [found] if (found := torchrun(base, work)) else []
        report("torchrun --max-restarts, one rank killed", 1, 1, wrong, time.monotonic() - begun)
        failed += wrong
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
