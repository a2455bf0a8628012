"""Resolve the options of trainer.py: config files, the settings of a resumed run, and the defaults of `init_from`.

Everything that is invalid is reported before anything is built.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, initialize, paths
from gpt2kit.cli import config_files, renamed
from gpt2kit.cli.known_options import CommandLine
from gpt2kit.cli.renamed import Rename
from gpt2kit.data.problems import data_problems
from gpt2kit.errors import DataError, MachineError, UserError, refuse
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

# UTF-8 bytes. A file system takes 255, and some loggers add to the name.
_LONGEST_RUN_NAME = 200


class TrainOptions:
    """The resolved options of a command line.

    Args:
        parser: the parser of all options.
        args: the arguments of the command line.
    """

    config: Any
    """The options, as the run's config.yaml will hold them."""

    def __init__(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.is_plan = False
        """Whether --plan is set: problems are then collected, and reported together."""
        self.problems: list[str] = []
        self.resumed: Path | None = None
        """The checkpoint to resume from."""
        self.source: checkpoint.LoadedCheckpoint | None = None
        """The checkpoint of `model.init_from`."""
        self._renames: list[Rename] = []
        self.linked_values: dict[str, Any] = {}
        """The user's values of options that the tokenizer decides."""
        early = parse_early(args)
        if early.ckpt_path is None:
            self._parse_new_run(parser, args)
        else:
            self._parse_resumed_run(parser, args, early)
        self.problems += early_problems(self.config, early)
        if seed_problems := range_problems({"seed_everything": self.config.seed_everything}):
            self.problems += seed_problems
            self.config.seed_everything = 0  # Lightning seeds before the problems are reported
        self.override_optimizer, self.config.override_optimizer = self.config.override_optimizer, False
        self.config.plan = False
        self.run_name, self.config.run_name = self.config.run_name, None
        self.config.ckpt_path = None  # the saved config starts a new run, with a folder of its own
        if self.run_name is not None:
            self.problems += run_name_problems(self.run_name, self._logs, self.resumed)
            name_loggers(self.config, self.run_name)
        renamed.log_renames(self._renames)

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
        try:
            if not self.builds_text:
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

    def _command(self, parser: LightningArgumentParser, args: list[str]) -> CommandLine:
        command = CommandLine(parser, args, LINKED)
        self._renames += command.renames
        return command

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> None:
        command = self._command(parser, args)
        self._set_config(command.parse())
        self.linked_values = command.linked_values

    def _parse_new_run(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self._parse(parser, args)
        if self.config.model.init_from is None:
            return
        with self.collect():
            self.source = initialize.open_source(self.config.model.init_from)
        if self.source is not None:
            parser.set_defaults(initialize.source_defaults(self.source, self.config))
            self._parse(parser, args)
            self.problems += initialize.apply_defaults(self.config, self.source)
            # The saved config names the run: `last` may be another one tomorrow.
            self.config.model.init_from = str(paths.resolve(self.config.model.init_from))

    def _parse_resumed_run(self, parser: LightningArgumentParser, args: list[str], early: argparse.Namespace) -> None:
        """Find the run to resume. The arguments override its own config, and each difference is printed."""
        settings, at_default = None, set[str]()
        command = self._command(parser, args)
        missing = command.missing  # the run's own config has them
        self._set_config(command.parse(*(f"--{name}=[]" for name in missing)))
        if missing and early.config and not self.is_plan:
            command.parse()  # raises: a config file identifies the run, so it must be complete
        if not missing:
            early.root = self.config.trainer.default_root_dir or "."
            settings = yaml.safe_load(parser.dump(self.config, skip_validation=True))
            if self.config.model.init_from is not None:
                at_default = initialize.options_at_default(self.config, parser.get_defaults())
            values = lifecycle.flatten(settings)
            at_default |= {name for name in auto.AUTOMATIC if auto.is_automatic(name, values.get(name))}
        with self.collect():
            runs = Path(early.root) / paths.LOGS
            rename = renamed.rename_settings
            self.resumed = lifecycle.find_resumable(early.ckpt_path, runs, settings, at_default, rename)
        if self.resumed is None:
            refuse(self.problems if missing else [])
            return
        run = lifecycle.run_of(self.resumed)
        if run and launched_rank() == 0 and not self.is_plan:
            lifecycle.rename_damaged_files(run)
        with tempfile.TemporaryDirectory() as scratch:
            file = self._saved_config(parser, run, Path(scratch)) if run else None
            saved_args = ["--config", str(file)] if file else []
            self._parse(parser, [*saved_args, *args])
            if saved_args:
                merge_saved_config(self.config, self._command(parser, saved_args).parse())
        initialize.restore_tokenizer(self.config, self.resumed)
        with contextlib.suppress(DataError):  # a damaged file, which rank 0 renames
            reuse_logger_ids(self.config, run_folder.read_starts(run) if run else [])

    def _saved_config(self, parser: LightningArgumentParser, run: Path, scratch: Path) -> Path | None:
        """Return the config.yaml of the resumed run; None if it was never written.

        If it is damaged, the settings in the checkpoint replace it, in a file in `scratch`.
        """
        assert self.resumed is not None
        file, copy = run / run_folder.CONFIG, scratch / run_folder.CONFIG
        if not file.exists() and not file.with_name(f"{file.name}.damaged").exists():
            return None
        settings = lifecycle.checkpoint_settings(self.resumed)
        try:
            with run_folder.refuse_damaged(file):
                if file.exists():
                    files.read_limited(file)
            refuse_incomplete(file, settings)
            self._command(parser, ["--config", str(file)]).parse()
            return file
        except UserError as error:
            if not settings:
                raise
            problem = f"{str(error).partition('. ')[0]}. The settings in the checkpoint replace it"
        if file.exists() and launched_rank() == 0 and not self.is_plan:
            lifecycle.rename_damaged(file, problem)
        else:
            logger.warning(problem)
        copy.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return copy


# The options of trainer.py that belong to no class: name, type, default, help.
OPTIONS: list[tuple[str, Any, Any, str]] = [
    (
        "ckpt_path",
        str | None,
        None,
        "Resume a run exactly where it stopped: `last` (the newest run), a run's name or folder (its newest valid "
        "checkpoint) or a .ckpt file. `best` resumes the newest run at its best checkpoint.",
    ),
    (
        "run_name",
        str | None,
        None,
        "Name of the run's folder in lightning_logs, and of the run in W&B and MLflow. Default: version_N.",
    ),
    ("save_every", int, 1000, "Optimizer steps between checkpoints. There is also one after each validation."),
    ("save_top_k", int, 1, "Checkpoints with the lowest validation loss to keep. The two newest are kept, too."),
    (
        "override_optimizer",
        bool,
        False,
        "On resume, use the optimizer and schedule of the config and the arguments.",
    ),
    (
        "verify_resume",
        bool,
        False,
        "Check that a killed and resumed run ends like an uninterrupted one.",
    ),
    (
        "tune",
        Literal["batch_size", "lr"] | None,
        None,
        "Try batch sizes or learning rates, and print the results. The best batch size is the fastest one that fits, "
        "the best learning rate the one at which the loss falls fastest.",
    ),
    (
        "plan",
        bool,
        False,
        "Print the size, memory, time and files of the run, and train nothing. All invalid options are reported.",
    ),
    (
        "part",
        str | None,
        None,
        "Tokenize one part of the text, such as 3/16, and train nothing. Other machines tokenize the other parts, and "
        "--merge 16 joins them. `auto`: the part of this rank, under torchrun or srun.",
    ),
    ("merge", int | None, None, "Join this many parts that --part has built, and train nothing."),
]


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options of trainer.py that belong to no class."""
    for name, kind, default, text in OPTIONS:
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def parse_early(args: list[str]) -> argparse.Namespace:
    """Parse the few options that decide how the others are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", nargs="?")
    parser.add_argument("--trainer.default_root_dir", dest="root", nargs="?", default=".")
    parser.add_argument("--verify_resume", nargs="?", const=True, default=False)
    parser.add_argument("--tune", nargs="?")
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    early = parser.parse_known_args(args)[0]
    early.verify_resume = early.verify_resume is True
    return early


def early_problems(config: Any, early: argparse.Namespace) -> list[str]:
    """List options in a config file that are only allowed on the command line, and flags with invalid values."""
    flags = [name for name in ("plan", "override_optimizer", "verify_resume") if not isinstance(config[name], bool)]
    ignored = [name for name in ("ckpt_path", "tune", "verify_resume") if config[name] and not getattr(early, name)]
    return [f"{name} {config[name]}: must be true or false" for name in flags] + [
        f"{name}: not in a config file; on the command line, as --{name}" for name in ignored if name not in flags
    ]


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


def name_loggers(config: Any, name: str) -> None:
    """Give the name of the run to W&B and MLflow, unless the user has set another."""
    _set_in_loggers(config, {"WandbLogger": ("name", name), "MLFlowLogger": ("run_name", name)})


def _set_in_loggers(config: Any, values: dict[str, tuple[str, Any]]) -> None:
    """Set an option of each logger that `values` names, unless it is set or the value is None."""
    for spec in as_list(config.trainer.logger):
        kind = str(getattr(spec, "class_path", "")).rsplit(".", 1)[-1]
        option, value = values.get(kind, ("", None))
        if value is not None and spec.init_args.get(option) is None:
            spec.init_args[option] = value


def without_tune(args: list[str]) -> list[str]:
    """Return the arguments without --tune and its value."""
    at = args.index("--tune") if "--tune" in args else len(args)
    return [arg for arg in [*args[:at], *args[at + 2 :]] if not arg.startswith("--tune=")]


def as_list(value: Any) -> list[Any]:
    """Return the value of an option, which may be None, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def refuse_incomplete(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a run's config.yaml lacks options that its checkpoint has: a part of the file is lost."""

    def names(part: Mapping[str, Any]) -> set[str]:
        options = (".".join(name.split(".")[:2]) for name in lifecycle.flatten(part))
        return {renamed.new_name(name) or name for name in options}

    if missing := sorted(names(settings) - names(config_files.load(str(file)))):
        raise UserError(f"{file}: a part of the file is lost, such as {missing[0]}")


def merge_saved_config(config: Any, saved: Any) -> None:
    """Keep the saved values of options that are `auto`, and print where the others differ from the saved ones.

    Without --override_optimizer, the optimizer and the schedule stay those of the run.
    """
    for name in auto.AUTOMATIC:
        if name in saved and auto.is_automatic(name, config.get(name)):
            config[name] = saved[name]
    values = lifecycle.flatten(config.clone().as_dict())
    for name, old in lifecycle.flatten(saved.as_dict()).items():
        new = values.get(name, old)
        if old == new or name in ("config", "ckpt_path", "override_optimizer", "plan"):
            continue
        is_initial = name in ("model.init_from", "model.replace_tokenizer")
        is_kept = name.startswith(("model.optimizer", "model.schedule")) and not config.override_optimizer
        line = f"resume: {name} was {old}, now {new}"
        if is_initial:
            line = f"resume: {name} stays {old} (not {new}: the run has already started)"
        elif is_kept:
            line = f"resume: {name} stays {old} (not {new}; --override_optimizer changes it)"
        logger.info(line)
    config.model.init_from, config.model.replace_tokenizer = saved.model.init_from, saved.model.replace_tokenizer
    if not config.override_optimizer:
        config.model.optimizer, config.model.schedule = saved.model.optimizer, saved.model.schedule


def reuse_logger_ids(config: Any, starts: list[dict[str, Any]]) -> None:
    """Continue the runs of W&B and MLflow that belong to this one."""
    ids = starts[-1].get("loggers", {}) if starts else {}
    options = {"WandbLogger": "id", "MLFlowLogger": "run_id"}
    _set_in_loggers(config, {kind: (option, ids.get(kind)) for kind, option in options.items()})
