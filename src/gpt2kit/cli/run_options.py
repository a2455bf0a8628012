"""The options of trainer.py that belong to no class, and those that are needed before the others are parsed."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit.checkpoint import paths
from gpt2kit.data.texts import options_by_name
from gpt2kit.logs import launched_rank
from gpt2kit.runs import lifecycle

# UTF-8 bytes. A file system takes 255, and some loggers add to the name.
_LONGEST_RUN_NAME = 200


@dataclass
class RunOptions:
    """Options of a run."""

    ckpt_path: str | None = None
    """Resume a run exactly where it stopped: `last` (the newest run), a run's name or folder (its newest valid
    checkpoint) or a .ckpt file. `best` resumes the newest run at its best checkpoint."""
    resume_with_new_text: str | None = None
    """Begin another stage of a run, with other training text. The optimizer, the steps and the tokenizer stay, and the
    learning rate rises again. `last` (the newest run), a run's name or folder (its newest checkpoint before the
    learning rate fell, stable.ckpt) or a .ckpt file. The stage has a folder of its own, and its best checkpoint is the
    one that is best on the new text."""
    replay: float = 0.0
    """Fraction of a stage's blocks that are earlier text."""
    run_name: str | None = None
    """Name of the run in lightning_logs, W&B and MLflow. Default: version_N."""
    save_every: int = 1000
    """Optimizer steps between checkpoints. There is also one after each validation."""
    save_top_k: int = 1
    """Checkpoints with the lowest validation loss to keep. The two newest are also kept."""
    best_text: str | None = None
    """Name of the validation text that decides the best checkpoint. Default: all."""
    override_optimizer: bool = False
    """On resume, use the optimizer and schedule of the config and the arguments."""
    verify_resume: bool = False
    """Check that a killed and resumed run ends like an uninterrupted one."""
    tune: Literal["batch_size", "lr"] | None = None
    """Try batch sizes or learning rates, and print the results. The best batch size is the fastest one that fits, the
    best learning rate the one at which the loss falls fastest."""
    plan: bool = False
    """Print the size, memory, time and files of the run, and train nothing. All invalid options are reported."""
    part: str | None = None
    """Tokenize one part of the text, such as 3/16, and train nothing. Other machines tokenize the other parts, and
    --merge 16 joins them. `auto`: the part of this rank, under torchrun or srun."""
    merge: int | None = None
    """Join this many parts that --part has built, and train nothing."""


def parse_early(args: list[str]) -> argparse.Namespace:
    """Parse the few options that decide how the others are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", nargs="?")
    parser.add_argument("--resume_with_new_text", nargs="?")
    parser.add_argument("--verify_resume", nargs="?", const=True, default=False)
    parser.add_argument("--tune", nargs="?")
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    early = parser.parse_known_args(args)[0]
    early.verify_resume = early.verify_resume is True
    return early


def early_problems(config: Any, early: argparse.Namespace) -> list[str]:
    """List options in a config file that are only allowed on the command line, and flags with invalid values."""
    flags = [name for name in ("plan", "override_optimizer", "verify_resume") if not isinstance(config[name], bool)]
    names = ("ckpt_path", "resume_with_new_text", "tune", "verify_resume")
    ignored = [name for name in names if config[name] and not getattr(early, name)]
    return [f"{name} {config[name]}: must be true or false" for name in flags] + [
        f"{name}: not in a config file; on the command line, as --{name}" for name in ignored if name not in flags
    ]


def without_tune(args: list[str]) -> list[str]:
    """Return the arguments without --tune and its value."""
    at = args.index("--tune") if "--tune" in args else len(args)
    return [arg for arg in [*args[:at], *args[at + 2 :]] if not arg.startswith("--tune=")]


def best_text_problems(config: Any) -> list[str]:
    """List why a validation text cannot decide the best checkpoint."""
    names = sorted(_valid_names(config.data))
    if config.best_text is None or config.best_text in names:
        return []
    if not names:
        return [f"--best_text {config.best_text}: only for several texts with names (data.valid_files). Omit it"]
    return [f"--best_text {config.best_text}: must be one of {', '.join(names)}"]


def _valid_names(data: Any) -> set[str]:
    """Return the names of the validation texts: those with files, and the training texts with a held-out part."""
    names = {str(name) for name in data.valid_files} if isinstance(data.valid_files, dict) else set()
    is_automatic = not data.valid_files and not data.test_files and data.test_fraction is None
    default = data.valid_fraction if data.valid_fraction is not None else float(is_automatic)
    for name, text in options_by_name(data.train_files).items() if isinstance(data.train_files, dict) else ():
        if default if text.valid_fraction is None else text.valid_fraction:
            names.add(str(name))
    return names


def run_name_problems(name: str, logs: Path, resumed: Path | None) -> list[str]:
    """List what is invalid in the name of a run."""
    if resumed is not None:
        run = lifecycle.run_of(resumed)
        is_own = run is not None and run.name == name
        return [] if is_own else [f"--run_name {name}: the resumed run is {run or resumed}. Leave out --run_name"]
    is_name = re.fullmatch(r"\w([\w .,+=-]*[\w+=-])?", name) and len(name.encode()) <= _LONGEST_RUN_NAME
    if name in paths.NEWEST or name.endswith(".ckpt") or not is_name:
        return [f"--run_name {name!r:.60}: not a name for a run. Use letters and digits, such as poems-2"]
    exists = (logs / name).exists() and launched_rank() == 0  # rank 0 makes the folder
    advice = f"Resume it with --ckpt_path {shlex.quote(name)}, or choose another name"
    return [f"--run_name {name}: {logs / name} exists. {advice}"] if exists else []
