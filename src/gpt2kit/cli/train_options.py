"""What a command line asks for, with its config files, the run to go on with and the weights to begin with; and all
that is wrong with it, before anything is made of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.cli import LightningArgumentParser

from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.cli.known_options import CommandLine
from gpt2kit.data.datamodule import data_problems
from gpt2kit.errors import MachineError, UserError, refuse
from gpt2kit.model.backends import REQUESTED
from gpt2kit.model.config import shape_problems
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import distributed, run_info
from gpt2kit.training.trainer import callback_problems, config_problems

LINKED = {
    "data.seed": "seed_everything",
    "model.n_positions": "data.block_size",
    "model.vocab_size": "data.tokenizer",
    "model.document_start": "data.mask_documents",
}
"""Options of a class that others decide."""


class Asked:
    """What the words of a command line ask for.

    Args:
        parser: of all options.
        args: the words.
    """

    config: Any

    def __init__(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.planned = False
        """Whether the run is only to be planned: then what is wrong is gathered, and told together."""
        self.problems: list[str] = []
        self.resumed: Path | None = None
        """The checkpoint to go on with."""
        self.source: checkpoint.LoadedCheckpoint | None = None
        """The weights to begin with."""
        words = first_words(args)
        if words.ckpt_path is None:
            self._take(_read(parser, args).parse())
            if self.config.model.init_from is not None:
                self._parse_begun(parser, args)
        else:
            self._parse_resumed(parser, args, words)
        self.problems += first_problems(self.config, words)
        if not 0 <= self.config.seed_everything < 2**32:
            self.problems.append(f"seed_everything {self.config.seed_everything}: must be from 0 to {2**32 - 1}")
            self.config.seed_everything = 0
        self.override, self.config.override = self.config.override, False
        self.config.plan = False
        self.config.ckpt_path = None  # so that the config which is saved with the run starts a new run

    def _take(self, config: Any) -> None:
        self.config = config
        self.planned = config.plan is True

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """In a plan, keep what is wrong, to be told with all else that is."""
        try:
            yield
        except UserError as error:
            if not self.planned:
                raise
            self.problems.append(str(error))

    def _parse_begun(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Open the weights to begin with: they decide what options are by default. A plan goes on without them."""
        with self.gathered():
            self.source = initialize.open_source(self.config.model.init_from)
        if self.source is None:
            return
        parser.set_defaults(initialize.source_defaults(self.source, self.config))
        self._take(_read(parser, args).parse())
        self.problems += initialize.apply_defaults(self.config, self.source)

    def _parse_resumed(self, parser: LightningArgumentParser, args: list[str], words: argparse.Namespace) -> None:
        """Find the run to go on with; its own config comes before the user's words, and each difference is said."""
        wanted, unsaid = None, set[str]()
        command = _read(parser, args)
        lacking = command.missing  # the run's own config has them
        self._take(command.parse(*(f"--{name}=[]" for name in lacking)))
        if lacking and words.config and not self.planned:
            command.parse()  # refuses: a config file says what run is meant, so it must say all
        if not lacking:
            words.root = self.config.trainer.default_root_dir or "."
            wanted = yaml.safe_load(parser.dump(self.config, skip_validation=True))
            if self.config.model.init_from is not None:
                unsaid = initialize.options_at_default(self.config, parser.get_defaults())
        with self.gathered():
            self.resumed = lifecycle.resumable(words.ckpt_path, Path(words.root) / lifecycle.LOGS, wanted, unsaid)
        if self.resumed is None:
            refuse(self.problems if lacking else [])
            return
        folder = lifecycle.run_of(self.resumed)
        config_file = folder / run_folder.CONFIG if folder else None
        own = ["--config", str(config_file)] if config_file and config_file.is_file() else []
        self._take(_read(parser, [*own, *args]).parse())
        if own:
            settle(self.config, parser.parse_args(own))
        initialize.restore_tokenizer(self.config, self.resumed)
        if folder:
            same_ids(self.config, run_folder.starts(folder))

    @property
    def builds_text(self) -> bool:
        """Whether the text is to be tokenized, and nothing trained."""
        return self.config.part is not None or self.config.merge is not None

    def refuse_wrong(self, problems: list[str]) -> None:
        """Refuse all that is wrong: what was found before, and these problems of values."""
        if problems or not self.planned:
            refuse(list(dict.fromkeys([*self.problems, *problems])))

    def wrong_values(self) -> list[str]:
        """What is wrong with the options' values, before anything is made of them."""
        config, trainer = self.config, self.config.trainer
        problems = config_problems(trainer.as_dict(), config.save_every, config.save_top_k, config.data.global_batch)
        shape = shape_problems(config.model.as_dict())
        problems += data_problems(config.data.as_dict()) + shape + initialize.option_problems(config.model)
        problems += callback_problems(as_list(trainer.callbacks), trainer.strategy)
        if config.model.freeze and not shape and (self.source or config.model.init_from is None):
            problems += initialize.freeze_problems(config.model)
        if self.planned and trainer.fast_dev_run:
            problems.append("--plan: tries some steps by itself. Leave trainer.fast_dev_run out")
        if self.planned and self.builds_text:
            problems.append("--plan: not with --part or --merge, which train nothing either")
        try:
            if not self.builds_text:
                distributed.refuse_missing_devices(trainer.accelerator, trainer.devices, torch.cuda.device_count())
        except MachineError as error:
            if not self.planned and not problems:
                raise
            problems += [str(error)] if self.planned else []
        return problems


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


def settle(config: Any, saved: Any) -> None:
    """Of what differs from the run's own config, the optimizer and its schedule stay unless --override is given."""
    asked = lifecycle.flat(config.clone().as_dict())
    for name, was in lifecycle.flat(saved.as_dict()).items():
        now = asked.get(name, was)
        if was == now or name in ("config", "ckpt_path", "override", "plan"):
            continue
        begun = name in ("model.init_from", "model.new_vocabulary")
        stays = name.startswith(("model.optimizer", "model.schedule")) and not config.override
        rank_zero_only(print)(
            f"resume: {name} stays {was} (asked for {now}{'' if begun else '; --override takes it'})"
            if stays or begun
            else f"resume: {name} was {was}, now {now}",
            file=sys.stderr,
        )
    for name in ("init_from", "new_vocabulary"):  # what the run began with is over
        config.model[name] = saved.model[name]
    if not config.override:
        config.model.optimizer, config.model.schedule = saved.model.optimizer, saved.model.schedule


def same_ids(config: Any, starts: list[dict[str, Any]]) -> None:
    """Go on in the runs that W&B and MLflow know this one by."""
    ids = starts[-1].get("loggers", {}) if starts else {}
    for spec in as_list(config.trainer.logger):
        name = str(getattr(spec, "class_path", "")).rsplit(".", 1)[-1]
        option = {"WandbLogger": "id", "MLFlowLogger": "run_id"}.get(name)
        if option and name in ids and spec.init_args.get(option) is None:
            spec.init_args[option] = ids[name]


def say_other_choices(before: list[dict[str, Any]], now: run_info.Facts) -> None:
    """What `auto` or another machine has changed since the last start; the settings may be the same."""
    known = before[-1].get("start", {}) if before else {}
    for name, was in known.get("chosen", {}).items():
        value, reason = now["chosen"].get(name, was)
        if value != was[0] and reason != REQUESTED:  # what is asked for is said with the other settings
            told = f"resume: {name} was {was[0]}, now {value} ({reason}); equal but for rounding from here on"
            print(told, file=sys.stderr)


def _read(parser: LightningArgumentParser, args: list[str]) -> CommandLine:
    command = CommandLine(parser, LINKED)
    command.read(args)
    return command
