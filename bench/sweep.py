"""Settings against each other at equal tokens and at equal time: each a run of trainer.py, on a corpus, over seeds.

    python bench/sweep.py --train_files train.txt --valid_files valid.txt --kind char --output_dir sweep \\
        --way "Muon 0.01" model.optimizer=configs/optimizer/muon.yaml model.optimizer.init_args.lr=0.01 \\
        --way "AdamW 2e-3" model.optimizer=configs/optimizer/adamw.yaml

Each `--way` is a name and trainer.py's options without their dashes, `trainer.max_steps` among them where a way's steps
are cheaper. The runs go `--jobs` at a time, on one thread each, so that their losses can be had beside other work; what
a step takes is measured by bench/train_step.py and bench/muon.py on a quiet machine. A run that the output folder has
already is not done again. Writes results.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from machine import ROOT, finish
from time_to_loss import add_options, figures, options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--way", nargs="+", action="append", required=True, metavar="NAME OPTION")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    wanted = [(way, seed) for way in given.way for seed in given.seeds]
    # The first run makes tokenizer and tokens for all.
    done = {wanted[0][0][0]: [run(given, *wanted[0])]}
    with ThreadPoolExecutor(given.jobs) as pool:
        rest = [(way, pool.submit(run, given, way, seed)) for way, seed in wanted[1:]]
        for way, result in rest:
            done.setdefault(way[0], []).append(result.result())
    finish([row(name, losses) for name, losses in done.items()], given.output_dir / "results.json")


def run(given: argparse.Namespace, way: list[str], seed: int) -> dict[int, float]:
    """Validation losses by step."""
    words = [*options(given, seed, given.steps), *(f"--{word}" for word in way[1:])]
    name = f"{way[0]}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]}".replace("/", "_")
    folder = given.output_dir / name
    finished = folder / "finished"
    if not finished.exists():
        log = given.output_dir / f"{name}.log"
        words += [f"--trainer.default_root_dir={folder.resolve()}", "--trainer.enable_progress_bar=false"]
        with open(log, "w", encoding="utf-8") as told:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(ROOT / "trainer.py"), *words]
            if subprocess.run(command, stdout=told, stderr=told, env=environment, check=False).returncode:
                sys.exit(log.read_text(encoding="utf-8"))
        finished.touch()
    found = figures(folder, "val_loss")
    last = max(found)
    print(f"{way[0]}, seed {seed}: {found[last]:.4f} after {last} steps, lowest {min(found.values()):.4f}", flush=True)
    return found


def row(name: str, runs: list[dict[int, float]]) -> dict[str, object]:
    """Means over the seeds."""
    last = [losses[max(losses)] for losses in runs]
    return {
        "way": name,
        "steps": max(runs[0]),
        "seeds": len(runs),
        "val_loss": f"{statistics.mean(last):.4f}",
        "from, to": f"{min(last):.4f}, {max(last):.4f}",
        "lowest on the way": f"{statistics.mean(min(losses.values()) for losses in runs):.4f}",
    }


if __name__ == "__main__":
    main()
