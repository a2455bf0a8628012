"""What trainer.py can be told beside the options of model and data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.strategies import DDPStrategy, Strategy

from gpt2kit.model.backends import Precision
from gpt2kit.training.fsdp import FSDP

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fsdp": FSDP,
    "ddp": lambda: DDPStrategy(gradient_as_bucket_view=True),  # else DDP holds each gradient twice
}
"""What `trainer.strategy` means here, where Lightning means something else by it (FSDP1), or something larger."""


def make_trainer(
    precision: Precision = "auto",
    max_epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
    max_time: str | None = None,
    val_check_interval: int | float = 1.0,
    **kwargs: Any,
) -> pl.Trainer:
    """A Lightning Trainer that sees one endless epoch, which is what makes a resume exact.

    Args:
        precision: auto: bf16-mixed where the device computes it fast, 16-mixed on older GPUs, else 32-true.
        max_epochs: stop after so many passes over the text. Of several limits the first one reached holds; with none
            of them, one epoch.
        max_steps: stop after so many optimizer steps.
        max_tokens: stop after so many tokens.
        max_time: stop, saved, after DD:HH:MM:SS. With another limit, each start of the run takes so long at most, and
            the schedule's end is that of the other. Alone: the run takes so long in all, and its schedule ends with it.
        val_check_interval: a whole number: optimizer steps between validations; a fraction: epochs between them. The
            last step is always validated.
        **kwargs: Lightning's own.
    """
    fast = kwargs.get("fast_dev_run")
    endless: dict[str, Any] = (
        {} if fast else {"max_epochs": -1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    )
    kwargs.update(endless)
    if kwargs["strategy"] in STRATEGIES:
        kwargs["strategy"] = STRATEGIES[kwargs["strategy"]]()
    return pl.Trainer(precision=precision if precision != "auto" else None, **kwargs)


def add_options(parser: LightningArgumentParser) -> None:
    """Those of trainer.py that belong to no class."""
    resume = "go on exactly where a run stopped: `last`, a run folder (its newest sound checkpoint) or a .ckpt file"
    parser.add_argument("--ckpt_path", type=str | None, default=None, help=resume)
    every = "optimizer steps between checkpoints; there is also one after each validation"
    parser.add_argument("--save_every", type=int, default=1000, help=every)
    best = "checkpoints with the lowest validation loss to keep, besides the two newest"
    parser.add_argument("--save_top_k", type=int, default=1, help=best)
    override = "on resume, take optimizer and schedule from the config and command line, not from the checkpoint"
    parser.add_argument("--override", action="store_true", help=override)
    verify = "try on these very settings whether a killed and resumed run ends like a straight one; train nothing else"
    parser.add_argument("--verify_resume", action="store_true", help=verify)
    find_help = (
        "try batch sizes (the fastest that fits) or learning rates (where the loss falls fastest) on these very "
        "settings, and print them; train nothing else"
    )
    parser.add_argument("--find", type=Literal["batch_size", "lr"] | None, default=None, help=find_help)
    planned = "show what this run would be, and what is wrong with it; train nothing"
    parser.add_argument("--plan", action="store_true", help=planned)
    part = (
        "tokenize this part of the text, such as 3/16 (`auto`: by the rank under torchrun or srun), and train "
        "nothing; other machines make the others, then --merge 16 joins them"
    )
    parser.add_argument("--part", type=str | None, default=None, help=part)
    merge = "join so many parts that --part has made, and train nothing"
    parser.add_argument("--merge", type=int | None, default=None, help=merge)


def first_words(args: list[str]) -> argparse.Namespace:
    """The few options that are looked at before the real parsing, which also refuses one without its value."""
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--ckpt_path", nargs="?")
    words.add_argument("--trainer.default_root_dir", dest="root", nargs="?", default=".")
    words.add_argument("--verify_resume", nargs="?", const=True, default=False)
    words.add_argument("--find", nargs="?")
    words.add_argument("-c", "--config", nargs="?", action="append", default=[])
    found = words.parse_known_args(args)[0]
    found.verify_resume = found.verify_resume is True
    return found


def first_problems(config: Any, words: argparse.Namespace) -> list[str]:
    """What is looked at before config files are: they must not say it, since nobody would hear it."""
    flags = [name for name in ("plan", "override", "verify_resume") if not isinstance(config[name], bool)]
    unheard = [name for name in ("ckpt_path", "find", "verify_resume") if config[name] and not getattr(words, name)]
    return [f"{name} {config[name]}: must be true or false" for name in flags] + [
        f"{name}: not in a config file; on the command line, as --{name}" for name in unheard if name not in flags
    ]


def without_find(args: list[str]) -> list[str]:
    """The words of a run, without the one that asks for a search."""
    at = args.index("--find") if "--find" in args else len(args)
    return [arg for arg in [*args[:at], *args[at + 2 :]] if not arg.startswith("--find=")]


def as_list(value: Any) -> list[Any]:
    """An option that is none, one or many."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
