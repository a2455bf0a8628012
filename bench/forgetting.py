"""Measure how much of its first text a run forgets in a second stage, with and without replay.

    python bench/forgetting.py --first code/ --second input.txt --folder forgetting --plot forgetting.png
    python bench/forgetting.py --poems train.jsonl.gz --folder forgetting --plot forgetting.png

Runs `gpt2kit train` on the first text, and another stage on the second one for each fraction of `--replay`. Prints the
bits per byte of the held-out text of both, before and after the second stage, and draws them over its steps. With
`--poems`, the first text is of poems whose lines all have the same length, the second of the others. Runs that are in
the folder already are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from machine import ROOT, report

from gpt2kit.runs import folder as runs
from gpt2kit.runs.folder import Series

MODEL = ["--model.n_layer=4", "--model.n_head=4", "--model.n_embd=128", "--data.block_size=128", "--data.batch_size=32"]
POEMS = {"regular": 5_000_000, "irregular": 2_000_000}  # bytes


def split_poems(source: Path, folder: Path) -> list[Path]:
    """Write poems whose lines all have the same length, and the others; return both files."""
    kinds: dict[str, list[str]] = {name: [] for name in POEMS}
    sizes = dict.fromkeys(POEMS, 0)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            lengths = {len(part) for part in re.split("[，。！？；、\n]+", text) if part}
            kind = "regular" if len(lengths) == 1 else "irregular"
            if sizes[kind] < POEMS[kind]:
                kinds[kind].append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                sizes[kind] += len(text.encode())
    paths = [folder / f"{name}.jsonl" for name in kinds]
    for path, lines in zip(paths, kinds.values(), strict=True):
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def train(root: Path, name: str, text: Path, *arguments: str) -> dict[str, Series]:
    """Run `gpt2kit train`, unless the run is there already; return its metrics."""
    run = root / "lightning_logs" / name
    if runs.read_status(run).get("state") != "done":
        places = [f"--trainer.default_root_dir={root}", f"--run_name={name}", f"--data.cache_dir={root / 'cache'}"]
        subprocess.run([sys.executable, str(ROOT / "trainer.py"), str(text), *places, *arguments], check=True)
    return runs.read_metrics(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path)
    parser.add_argument("--second", type=Path)
    parser.add_argument("--poems", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=[600, 300])
    parser.add_argument("--replay", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    first, second = split_poems(args.poems, args.folder) if args.poems else (args.first, args.second)
    interval = f"--trainer.val_check_interval={max(args.steps[1] // 10, 1)}"
    held_out = "--data.valid_fraction=0.02"
    train(args.folder, "first", first, *MODEL, held_out, f"--trainer.max_steps={args.steps[0]}")
    alone = train(args.folder, "alone", second, *MODEL, held_out, f"--trainer.max_steps={args.steps[1]}")
    curves, rows = {}, []
    for fraction in args.replay:
        stage = [f"--resume_with_new_text={args.folder}/lightning_logs/first", f"--replay={fraction}"]
        steps = f"--trainer.max_steps={args.steps[1]}"
        metrics = train(args.folder, f"replay-{fraction:g}", second, *stage, held_out, steps, interval)
        old, new = (metrics[f"val_bpb/{path.name.split('.')[0]}"] for path in (first, second))
        begin = min(new)  # the first step of the stage
        curves[fraction] = [{step - begin: bits for step, bits in text.items() if step >= begin} for text in (old, new)]
        end = max(new)
        rows.append({"replay": f"{fraction:g}", **{"first text, before": old[begin], "after": old[end]}})
        rows[-1] |= {"second text, before": new[begin], "after ": new[end]}
    rows.append({"replay": "second text alone", "after ": list(alone["val_bpb"].values())[-1]})
    report([{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows], args.output)
    if args.plot:
        draw(curves, args.plot)


def draw(curves: dict[float, list[Series]], path: Path) -> None:
    """Draw the bits per byte of both texts over the steps of the second stage."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, (panel, title) in enumerate(zip(panels, ("first text", "second text"), strict=True)):
        for fraction, texts in curves.items():
            label = f"replay {fraction:g}" if fraction else "no replay"
            panel.plot(list(texts[number]), list(texts[number].values()), label=label)
        panel.set(title=title, xlabel="steps of the second stage", ylabel="bits per byte, held out")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
