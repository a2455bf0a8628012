"""What a command line asks for, with its config files, the run to go on with and the weights to begin with; and all
that is wrong with it, before anything is made of it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser

from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.cli import earlier
from gpt2kit.cli.known_options import CommandLine
from gpt2kit.data.datamodule import data_problems
from gpt2kit.errors import MachineError, UserError, refuse
from gpt2kit.model.config import shape_problems
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import launch
from gpt2kit.training.limits import callback_problems, config_problems
from gpt2kit.training.trainer import as_list, first_problems, first_words

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
        self.source: checkpoint.Opened | None = None
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
        parser.set_defaults(initialize.defaults(self.source, self.config))
        self._take(_read(parser, args).parse())
        self.problems += initialize.settle(self.config, self.source)

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
                unsaid = initialize.unsaid(self.config, parser.get_defaults())
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
            earlier.settle(self.config, parser.parse_args(own))
        initialize.keep_tokenizer(self.config, self.resumed)
        if folder:
            earlier.same_ids(self.config, run_folder.starts(folder))

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
        problems += data_problems(config.data.as_dict()) + shape + initialize.problems(config.model)
        problems += callback_problems(as_list(trainer.callbacks), trainer.strategy)
        if config.model.freeze and not shape and (self.source or config.model.init_from is None):
            problems += initialize.freeze_problems(config.model)
        if self.planned and trainer.fast_dev_run:
            problems.append("--plan: tries some steps by itself. Leave trainer.fast_dev_run out")
        if self.planned and self.builds_text:
            problems.append("--plan: not with --part or --merge, which train nothing either")
        try:
            if not self.builds_text:
                launch.refuse_missing_devices(trainer.accelerator, trainer.devices, torch.cuda.device_count())
        except MachineError as error:
            if not self.planned and not problems:
                raise
            problems += [str(error)] if self.planned else []
        return problems


def _read(parser: LightningArgumentParser, args: list[str]) -> CommandLine:
    command = CommandLine(parser, LINKED)
    command.read(args)
    return command
