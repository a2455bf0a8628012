"""Resolve the options of trainer.py: config files, the settings of a resumed run, and the defaults of `init_from`.

Everything that is invalid is reported before anything is built.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, initialize, paths, saved_text
from gpt2kit.cli import other_names
from gpt2kit.cli.command_line import CommandLine
from gpt2kit.cli.other_names import Rename
from gpt2kit.cli.run_options import best_text_problems, early_problems, parse_early, run_name_problems
from gpt2kit.cli.saved_options import join_texts, merge_saved_config, refuse_incomplete, without_texts, write_yaml
from gpt2kit.data.problems import data_problems
from gpt2kit.errors import CheckpointError, DataError, MachineError, UserError, refuse
from gpt2kit.logs import launched_rank
from gpt2kit.model.config import shape_problems
from gpt2kit.ranges import range_problems
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import auto, distributed
from gpt2kit.training.trainer import callback_problems, trainer_problems

logger = logging.getLogger(__name__)

# Options that others decide. They may only be set to the same value.
LINKED: dict[str, str | None] = {
    "data.seed": "seed_everything",
    "model.n_positions": "data.block_size",
    "model.vocab_size": None,  # known when the tokenizer is loaded
    "model.document_start": None,
}


class TrainOptions:
    """The resolved options of a command line.

    Args:
        parser: the parser of all options.
        args: the arguments of the command line.
    """

    config: Any
    """The options, as the run's config.yaml will hold them."""

    def __init__(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self._parser = parser
        self.is_plan = False
        """Whether --plan is set: problems are then collected, and reported together."""
        self.problems: list[str] = []
        self.resumed: Path | None = None
        """The checkpoint to resume from."""
        self.begins_stage = False
        """Whether another stage begins from this checkpoint, with a folder of its own."""
        self.only_text = ""
        """The name that the only text of the earlier stages has in this one."""
        self.source: checkpoint.LoadedCheckpoint | None = None
        """The checkpoint of `model.init_from`."""
        self._renames: list[Rename] = []
        self.linked_values: dict[str, Any] = {}
        """The user's values of options that the tokenizer decides."""
        early = parse_early(args)
        if early.resume_with_new_text is not None:
            self._parse_new_stage(args, early.resume_with_new_text)
        elif early.ckpt_path is None:
            self._parse_new_run(args)
        else:
            self._parse_resumed_run(args, early)
        self.problems += early_problems(self.config, early)
        if seed_problems := range_problems({"seed_everything": self.config.seed_everything}):
            self.problems += seed_problems
            self.config.seed_everything = 0  # Lightning seeds before the problems are reported
        self.override_optimizer, self.config.override_optimizer = self.config.override_optimizer, False
        self.config.plan = False
        self.run_name, self.config.run_name = self.config.run_name, None
        # The saved config starts a new run, with a folder of its own.
        self.config.ckpt_path = self.config.resume_with_new_text = None
        if self.config.replay and not self.begins_stage:
            self.problems.append(f"--replay {self.config.replay}: only with --resume_with_new_text. Omit it")
        self.config.replay = 0.0  # the fractions of texts have it
        if self.run_name is not None:
            own = None if self.begins_stage else self.resumed
            self.problems += run_name_problems(self.run_name, self._logs, own)
            set_in_loggers(self.config, WandbLogger=("name", self.run_name), MLFlowLogger=("run_name", self.run_name))
        other_names.log_renames(self._renames)

    @property
    def _logs(self) -> Path:
        return Path(self.config.trainer.default_root_dir or ".") / paths.LOGS

    @property
    def builds_text(self) -> bool:
        """Whether text is tokenized and nothing is trained."""
        return self.config.part is not None or self.config.merge is not None

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Under --plan, keep an error among the problems instead of raising it."""
        try:
            yield
        except UserError as error:
            if not self.is_plan:
                raise
            self.problems.append(str(error))

    def refuse(self, problems: list[str]) -> None:
        """Raise one error with the problems so far and these. A plan without new ones continues, to find more."""
        if problems or not self.is_plan:
            refuse(list(dict.fromkeys([*self.problems, *problems])))

    def value_problems(self) -> list[str]:
        """List the options whose values are invalid."""
        config, trainer = self.config, self.config.trainer
        problems = range_problems(lifecycle.flatten(config.clone().as_dict()))
        problems += trainer_problems(trainer.as_dict(), config.data.global_batch_size)
        shape = shape_problems({**config.model.as_dict(), "n_positions": None})  # data.block_size decides it
        problems += data_problems(config.data.as_dict()) + shape + initialize.option_problems(config.model)
        problems += callback_problems(as_list(trainer.callbacks), trainer.strategy)
        if config.model.freeze and not shape and (self.source or config.model.init_from is None):
            problems += initialize.freeze_problems(config.model)
        if self.is_plan and trainer.fast_dev_run:
            problems.append("--plan: runs a few steps anyway. Leave out trainer.fast_dev_run")
        if self.is_plan and self.builds_text:
            problems.append("--plan: not with --part or --merge, which train nothing. Leave out one of the two")
        problems += best_text_problems(config)
        if self.builds_text:
            return problems
        try:
            distributed.refuse_missing_devices(trainer.accelerator, trainer.devices, torch.cuda.device_count())
        except MachineError as error:
            if not self.is_plan and not problems:
                raise
            problems += [str(error)] if self.is_plan else []
        except UserError as error:
            problems.append(str(error))
        return problems

    def _set_config(self, config: Any) -> None:
        self.config = config
        self.is_plan = config.plan is True

    def _command(self, args: list[str]) -> CommandLine:
        command = CommandLine(self._parser, args, LINKED)
        self._renames += command.renames
        return command

    def _parse(self, args: list[str]) -> None:
        command = self._command(args)
        self._set_config(command.parse())
        self.linked_values = command.linked_values

    def _parse_new_run(self, args: list[str]) -> None:
        self._parse(args)
        if self.config.model.init_from is None:
            return
        with self.collect():
            self.source = initialize.open_source(self.config.model.init_from, initialize.foreign_options(self.config))
        if self.source is not None:
            self._parser.set_defaults(initialize.source_defaults(self.source, self.config))
            self._parse(args)
            self.problems += initialize.apply_defaults(self.config, self.source)
            # The saved config names the run: `last` may be another one tomorrow.
            self.config.model.init_from = str(paths.resolve(self.config.model.init_from))

    def _parse_resumed_run(self, args: list[str], early: argparse.Namespace) -> None:
        """Find the run to resume. The arguments override its own config, and each difference is printed."""
        command = self._command(args)
        missing = command.missing  # the run's own config has them
        self._set_config(command.parse(*(f"--{name}=[]" for name in missing)))
        if missing and early.config and not self.is_plan:
            command.parse()  # raises: a config file identifies the run, so it must be complete
        settings, at_default = (None, set[str]()) if missing else self._identifying_settings()
        with self.collect():
            self.resumed = lifecycle.find_resumable(
                early.ckpt_path, self._logs, settings, at_default, other_names.rename_settings
            )
        if self.resumed is None:
            refuse(self.problems if missing else [])
            return
        run = lifecycle.run_of(self.resumed)
        if run and launched_rank() == 0 and not self.is_plan:
            lifecycle.rename_damaged_files(run)
        with tempfile.TemporaryDirectory() as scratch:
            file = self._saved_config(self.resumed, run, Path(scratch)) if run else None
            saved_args = ["--config", str(file)] if file else []
            self._parse([*saved_args, *args])
            if saved_args:
                merge_saved_config(self.config, self._command(saved_args).parse())
        initialize.restore_tokenizer(self.config, self.resumed)
        with contextlib.suppress(DataError):  # a damaged file, which rank 0 renames
            starts = run_folder.read_starts(run) if run else []
            ids = starts[-1].get("loggers", {}) if starts else {}
            names = {"WandbLogger": "id", "MLFlowLogger": "run_id"}
            set_in_loggers(self.config, **{kind: (name, ids.get(kind)) for kind, name in names.items()})

    def _parse_new_stage(self, args: list[str], name: str) -> None:
        """Find the run whose next stage this is. The arguments override its config, but for texts and limits."""
        self._parse(args)
        replay = self.config.replay
        problems = range_problems({"replay": replay}) + data_problems(self.config.data.as_dict())
        if self.config.model.init_from is not None:
            problems.append("--resume_with_new_text: continues the weights of a run. Omit --model.init_from")
        self.refuse(problems)
        with self.collect():
            self.resumed = lifecycle.find_stage_start(name, self._logs)
        if self.resumed is None:
            return
        self.begins_stage = True
        with tempfile.TemporaryDirectory() as scratch:
            saved = self._command(["--config", str(self._config_of(self.resumed, Path(scratch)))]).parse()
            base = write_yaml(Path(scratch) / "run.yaml", without_texts(self._plain(saved)))
            new, metadata = (
                self._command(["--config", base, *args]).parse(),
                checkpoint.read(self.resumed)[checkpoint.KEY],
            )
            texts, self.only_text = join_texts(
                self._plain(saved)["data"], self._plain(new)["data"], replay, saved_text.sizes(metadata)
            )
            joined = write_yaml(Path(scratch) / "texts.yaml", {"data": texts})
            self._parse(["--config", base, *args, "--config", joined])
        first = next(iter(texts["train_files"]))  # the new text, if it is only one
        if self.config.best_text is None and not isinstance(new.data.train_files, dict):
            self.config.best_text = first
            self.config.best_text = None if best_text_problems(self.config) else first
        if self.config.seed_everything != saved.seed_everything:
            self.problems.append(
                f"--seed_everything {self.config.seed_everything}: a stage keeps the seed of its run, "
                f"{saved.seed_everything}, which decides what is held out. Omit it"
            )
        if self.config.data.tokenizer == saved.data.tokenizer:
            own = checkpoint.read_tokenizer(self.resumed, metadata)
            self.config.data.tokenizer = initialize.cache_tokenizer(own, self.config.data.cache_dir)
        merge_saved_config(self.config, saved, "model.")

    def _config_of(self, resumed: Path, scratch: Path) -> Path:
        """Return the config.yaml of a checkpoint's run, or a file with the settings in the checkpoint."""
        run = lifecycle.run_of(resumed)
        if run and (file := self._saved_config(resumed, run, scratch)):
            return file
        settings = lifecycle.checkpoint_settings(resumed)
        if not settings:
            raise CheckpointError(f"{resumed}: has no settings of its run. Name a checkpoint in a run's folder")
        return Path(write_yaml(scratch / "settings.yaml", settings))

    def _plain(self, config: Any) -> dict[str, Any]:
        """Return a config as plain types."""
        settings: dict[str, Any] = yaml.safe_load(self._parser.dump(config, skip_none=False, skip_validation=True))
        return settings

    def _identifying_settings(self) -> tuple[dict[str, Any], set[str]]:
        """Return the settings that identify a run, and those among them that the user did not set."""
        settings = yaml.safe_load(self._parser.dump(self.config, skip_validation=True))
        values = lifecycle.flatten(settings)
        at_default = {name for name in auto.AUTOMATIC if auto.is_automatic(name, values.get(name))}
        if self.config.model.init_from is not None:
            at_default |= initialize.options_at_default(self.config, self._parser.get_defaults())
        return settings, at_default

    def _saved_config(self, resumed: Path, run: Path, scratch: Path) -> Path | None:
        """Return the config.yaml of the resumed run; None if it was never written.

        If it is damaged, the settings in the checkpoint replace it, in a file in `scratch`.
        """
        file, copy = run / run_folder.CONFIG, scratch / run_folder.CONFIG
        if not file.exists() and not file.with_name(f"{file.name}.damaged").exists():
            return None
        settings = lifecycle.checkpoint_settings(resumed)
        try:
            if file.exists():
                with run_folder.refuse_damaged(file):
                    files.read_limited(file)
            refuse_incomplete(file, settings)
            self._command(["--config", str(file)]).parse()
            return file
        except UserError as error:
            if not settings:
                raise
            problem = f"{str(error).partition('. ')[0]}. The settings in the checkpoint replace it"
        if file.exists() and launched_rank() == 0 and not self.is_plan:
            lifecycle.rename_damaged(file, problem)
        else:
            logger.warning(problem)
        return Path(write_yaml(copy, settings))


def set_in_loggers(config: Any, **options: tuple[str, Any]) -> None:
    """Set one option of each kind of logger, unless it is set or the new value is None."""
    for spec in as_list(config.trainer.logger):
        kind = str(getattr(spec, "class_path", "")).rpartition(".")[2]
        option, value = options.get(kind, ("", None))
        if value is not None and spec.init_args.get(option) is None:
            spec.init_args[option] = value


def as_list(value: Any) -> list[Any]:
    """Return the value of an option, which may be None, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
