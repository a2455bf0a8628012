"""`trainer.py --verify_resume`: does a killed and resumed run end like a straight one, on these very settings?

Two short runs of `trainer.py` in processes of their own: one straight through, one killed with SIGKILL in its middle
and continued with `--ckpt_path last`. Their last checkpoints are compared tensor by tensor.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from gpt2kit.checkpoint import checkpoint
from gpt2kit.errors import MachineError, UserError
from gpt2kit.runs import lifecycle

STEPS = 8


def verify_resume(args: list[str]) -> None:
    """Print the largest difference of each group of tensors, and `exact`, or fail with what differs."""
    common = ["--trainer.max_steps", str(STEPS), "--save_every", "1", "--trainer.log_every_n_steps", "1"]
    with tempfile.TemporaryDirectory(prefix="gpt2kit-verify-") as folder:
        ends = {}
        for name in ("straight", "killed"):
            words = [*args, *common, "--trainer.default_root_dir", str(Path(folder) / name)]
            run = Path(folder) / name / lifecycle.LOGS / "version_0"
            if name == "killed":
                _kill_in_the_middle(words, run)
                words += ["--ckpt_path", "last"]
            print(f"{name}: {STEPS} steps", file=sys.stderr)
            _finish(words)
            ends[name] = checkpoint.read(checkpoint.checkpoints(run)[0])
        differences = compare(ends["straight"], ends["killed"])
    for group, largest in differences.items():
        print(f"{group:<28} max |difference| {largest:g}")
    if any(differences.values()):
        worst = max(differences, key=lambda group: differences[group])
        raise MachineError(f"--verify_resume: not exact, most of all {worst}. On a GPU, set trainer.deterministic true")
    print("exact: the killed and resumed run ended like the straight one")


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest absolute difference in each group of tensors of two checkpoints."""
    left, right = _tensors(one), _tensors(other)
    found: dict[str, float] = defaultdict(float)
    for name in sorted({*left, *right}):
        group = name[0]
        if name not in left or name not in right or left[name].shape != right[name].shape:
            found[group] = float("inf")
        elif left[name].numel():
            difference = (left[name].double() - right[name].double()).abs().max().item()
            found[group] = max(found[group], difference if difference == difference else float("inf"))
    return dict(found)


def _tensors(raw: dict[str, Any]) -> dict[tuple[str, str], torch.Tensor]:
    """All that decides how a run goes on, as (group, name): weights by layer, optimizer state, learning rates."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    for name, tensor in raw["state_dict"].items():
        place = name.removeprefix("model.transformer.")
        layer = ".".join(place.split(".")[:2]) if place.startswith("h.") else place.split(".")[0]
        found[f"weights {layer}", name] = tensor
    for number, state in enumerate(raw["optimizer_states"]):
        for parameter, values in state["state"].items():
            for key, value in values.items():
                found[f"optimizer {key}", f"{number}.{parameter}"] = torch.as_tensor(value)
        found["learning rates", str(number)] = torch.tensor([group["lr"] for group in state["param_groups"]])
    return found


def _command(words: list[str]) -> list[str]:
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *words]


def _kill_in_the_middle(words: list[str], run: Path) -> None:
    """Start a run and kill it as soon as it has saved a step of its middle."""
    print("killed: up to some step, then SIGKILL", file=sys.stderr)
    process = subprocess.Popen(_command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if any(checkpoint.step_of(path) >= STEPS // 3 for path in checkpoint.checkpoints(run)):
            process.kill()
        time.sleep(0.01)
    with contextlib.suppress(IndexError):
        if checkpoint.step_of(checkpoint.checkpoints(run)[0]) < STEPS:
            return
    raise UserError(
        "--verify_resume: the run ended before it could be killed; its steps are too short. Nothing is wrong"
    )


def _finish(words: list[str]) -> None:
    done = subprocess.run(_command(words), capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"--verify_resume: the run failed (exit code {done.returncode}): {reason[0]}")
