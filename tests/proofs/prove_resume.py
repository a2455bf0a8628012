"""`make prove`: hundreds of scripted kills, and kills at random moments; resumed runs must end bit-identically.

    python tests/proofs/prove_resume.py [--scripted 500] [--random 100]

Prints a table of scenarios, kills that struck, and runs that ended differently (which fails). For random kills,
checkpoints have about 8 MB and are written every second step, and $TMPDIR is on another filesystem if there is one.
Results are kept in .cache/proofs.jsonl: after a stop, the same command continues if the source code is the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from helpers import train_tokenizer
from proofs.journal import Journal, Result
from proofs.kills import Kill, Setting, difference, last_run, resume, run_with_kills

from gpt2kit.checkpoint import checkpoint, paths

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


def mixed(base: list[str], folder: Path) -> list[str]:
    """Return the arguments of a run on two texts with weights."""
    (folder / "other.txt").write_text("".join(f"{n} times {n} is {n * n}\n" for n in range(300)))
    texts = {"lines": f"{folder}/train.txt", "other": {"files": f"{folder}/other.txt", "weight": 3}}
    files = [arg for arg in base if not arg.startswith("--data.train_files")]
    return [*files, f"--data.train_files={json.dumps(texts)}"]


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


def random_kills() -> Iterator[list[Kill]]:
    """Yield ten kills at random moments, again and again; the same at every call."""
    draw = random.Random(2)
    while True:
        yield [Kill("seconds", draw.randint(300, 1500)) for _ in range(10)]


def report(title: str, results: Sequence[Result]) -> bool:
    """Print a line of the table and the first problems; return whether any scenario failed."""
    wrong = [result.problem for result in results if result.problem]
    kills, seconds = sum(result.kills for result in results), sum(result.seconds for result in results)
    print(f"| {title} | {len(results)} | {kills} | {len(wrong)} | {seconds:,.0f} s |", flush=True)
    for problem in wrong[:5]:
        print(problem, file=sys.stderr)
    return bool(wrong)


def compare_with_uninterrupted(setting: Setting, work: Path, kills: list[Kill]) -> tuple[int, str]:
    """Run with kills; return how many struck, and how the run differs from an uninterrupted one."""
    if setting.reference is None:
        setting.reference, _ = run_with_kills(setting, work / "uninterrupted", [])
    run, struck = run_with_kills(setting, Path(tempfile.mkdtemp(dir=work)) / "run", kills)
    problem = difference(setting.reference, run)
    return struck, f"{setting.name}, {kills}: {problem}" if problem else ""


def stage(base: list[str], work: Path) -> tuple[list[str], tuple[str, ...]]:
    """Train a first stage; return the arguments of a second one, and those of its first start only."""
    first, _ = run_with_kills(Setting("first stage", [*base, "--trainer.max_steps=8"]), work / "first_stage", [])
    args = [arg for arg in base if arg.startswith("--trainer.")]
    return args, (f"--data.train_files={work}/other.txt", f"--resume_with_new_text={first}", "--replay=0.3")


def elastic(base: list[str], work: Path, name: str = "elastic", start: tuple[str, ...] = ()) -> str:
    """Resume on 1, 2 and 4 ranks over two kills: the samples of each step, so the weights up to rounding, are equal."""
    args = [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3", "--model.dropout=0"]
    accumulation = {1: 4, 2: 2, 4: 1}
    settings = {
        r: Setting(f"{r}", [*args, f"--trainer.accumulate_grad_batches={a}"], r, start=start)
        for r, a in accumulation.items()
    }
    reference, _ = run_with_kills(settings[1], work / "uninterrupted" / name, [])
    place = work / name
    place.mkdir()
    assert -9 in resume(settings[1], place, Kill("forward", 14))
    assert -9 in resume(settings[2], place, Kill("forward", 5))
    codes = resume(settings[4], place)
    if any(codes):
        return f"exit codes {codes}: {(place / 'log.txt').read_text()[-1000:]}"
    ends = [checkpoint.read(paths.checkpoints(run)[0])["state_dict"] for run in (reference, last_run(place))]
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
from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import failures, train
run = Path({str(root)!r}) / "lightning_logs/version_0"
def kill():
    while not any(paths.step_of(p) >= 10 for p in paths.checkpoints(run)):
        time.sleep(0.002)
    os.kill(os.getpid(), 9)
again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
if os.environ["RANK"] == "1" and not again:
    threading.Thread(target=kill, daemon=True).start()
failures.guarded(train.main, {args!r} + (["--ckpt_path", "last"] if again else []))
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


def verified(base: list[str]) -> str:
    """Run `trainer.py --verify_resume`, which kills and resumes a run of its own."""
    command = [
        sys.executable,
        str(ROOT / "trainer.py"),
        *base,
        "--trainer.accumulate_grad_batches=2",
        "--verify_resume",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 and "exact:" in done.stdout else f"{done.returncode}: {done.stderr[-1000:]}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--scripted", type=int, default=500)
    options.add_argument("--random", type=int, default=100)
    arguments = options.parse_args()
    journal = Journal()
    failed = False
    print("| scenarios | number | kills that struck | ended differently | time |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = corpus(work)
        folders = (work / f"setting_{number}" for number in itertools.count())

        def compare(group: str, setting: Setting, scenarios: Iterable[list[Kill]]) -> Iterator[Result]:
            place = next(folders)
            place.mkdir()
            for number, kills in enumerate(scenarios):
                name = f"{group}: {setting.name} {number}"
                yield journal.run(name, lambda kills=kills: compare_with_uninterrupted(setting, place, kills))

        cases = settings(base)
        by_case: list[list[list[Kill]]] = [[] for _ in cases]
        for index, kills in scripted(arguments.scripted):
            by_case[index].append(kills)
        results = [
            result for case, kills in zip(cases, by_case, strict=True) for result in compare("scripted", case, kills)
        ]
        failed |= report("scripted, one to three kills each", results)

        if Path("/dev/shm").is_dir():
            os.environ["TMPDIR"] = "/dev/shm"
        large = ["--model.n_embd=160", "--save_every=2", "--trainer.max_steps=60", "--trainer.val_check_interval=7"]
        results = []
        for result in compare("random", Setting("8 MB checkpoints", [*base, *large]), random_kills()):
            results.append(result)
            if sum(result.kills for result in results) >= arguments.random:
                break
        failed |= report("at random moments, 8 MB checkpoints, other $TMPDIR", results)

        short = [*base, "--save_every=2", "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
        pairs = [[Kill("forward", n % 8 + 1), Kill("update", n % 3 + 1)] for n in range(1, 13)]
        results = list(compare("2 ranks", Setting("2 ranks", short, 2), pairs))
        failed |= report("2 ranks, one killed twice", results)

        # Compiled blocks, dropout, accumulation and masked documents.
        args = ["--model.compile=blocks", "--data.mask_documents=true", "--trainer.accumulate_grad_batches=2"]
        pairs = [[Kill("forward", n), Kill("update", 2)] for n in (6, 11, 14)]
        results = list(compare("compiled", Setting("compiled", [*short, *args]), pairs))
        failed |= report("compiled blocks, killed twice", results)

        several = mixed(base, work)
        setting = Setting("two texts", [*several, *short[len(base) :]])
        pairs = [[Kill(POINTS[n % len(POINTS)], n % 5 + 1), Kill("forward", 3)] for n in range(24)]
        results = list(compare("two texts", setting, pairs))
        failed |= report("two texts with weights, killed twice", results)
        results = [journal.run("elastic, two texts", lambda: (2, elastic(several, work, "elastic_mixed")))]
        failed |= report("two texts with weights, 1 -> 2 -> 4 ranks, killed twice", results)

        second, start = stage(base, work)
        setting = Setting("second stage", [*second, *short[len(base) :]], start=start)
        pairs = [[Kill(POINTS[n % len(POINTS)], n % 5 + 1), Kill("forward", 3)] for n in range(24)]
        results = list(compare("second stage", setting, pairs))
        failed |= report("a second stage with replay, killed twice", results)
        results = [journal.run("elastic, stage", lambda: (2, elastic(second, work, "elastic_stage", start)))]
        failed |= report("a second stage with replay, 1 -> 2 -> 4 ranks, killed twice", results)

        results = [journal.run("elastic", lambda: (2, elastic(base, work)))]
        failed |= report("1 -> 2 -> 4 ranks, killed twice", results)
        results = [journal.run("verify_resume", lambda: (1, verified(base)))]
        failed |= report("trainer.py --verify_resume", results)
        results = [journal.run("torchrun", lambda: (1, torchrun(base, work)))]
        failed |= report("torchrun --max-restarts, one rank killed", results)
    sys.exit(failed)


if __name__ == "__main__":
    main()
