"""`trainer.py --help`: options in groups, common ones first, with one sentence each; `--help=all`: everything."""

from __future__ import annotations

import argparse
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from jsonargparse import ArgumentParser

from gpt2kit.cli.help import HelpFormatter, Parser, is_option
from gpt2kit.training.trainer import LIGHTNING_OPTIONS, make_trainer

FLAGS = ("-h", "--help", "--help=all")
# The groups of `--help`. The longest name or pattern that matches an option decides its group.
GROUPS = {
    "Config files and help": "config print_config help",
    "Text": "data.train_files data.valid_files data.test_files data.tokenizer data.reader",
    "Model": "data.block_size model.n_layer model.n_head model.n_embd model.dropout model.init_from",
    "Training length": "trainer.max_time trainer.max_epochs trainer.max_steps trainer.max_tokens",
    "Machine": "trainer.accelerator trainer.devices trainer.precision data.batch_size",
    "Runs and checkpoints": "*",
    "Instead of training": "plan tune verify_resume part merge",
    "More about the text": "data.*",
    "More about the model": "model.*",
    "Optimizer": "model.optimizer model.schedule data.global_batch_size trainer.accumulate_* trainer.gradient_* "
    "model.max_*",
    "More about the trainer": "trainer.*",
}
# The classes that options name, by the paths that configs use.
CLASSES = {
    "data.reader": ["gpt2kit.text.Reader"],
    "data.tokenizer": ["gpt2kit.tokenization.TokenizerSpec"],
    "model.optimizer": ["gpt2kit.optim.Muon", "gpt2kit.optim.AdamW"],
    "model.schedule": [
        "gpt2kit.optim.WarmupStableDecay",
        "gpt2kit.optim.Linear",
        "gpt2kit.optim.Cosine",
        "gpt2kit.optim.Constant",
    ],
    "trainer.callbacks": ["gpt2kit.callbacks.TextSamples", "gpt2kit.callbacks.EpochExports"],
}
SECTIONS = {
    "data": "Text files, tokenizer and batches",
    "model": "Architecture, initial weights, optimization",
    "trainer": "Limits, precision and devices",
}
# Texts that replace those of jsonargparse and Lightning.
_TEXTS = {
    "config": "Config file in YAML. May be given several times; later files override earlier ones.",
    "print_config": "Print all options with their values as YAML, and exit; =comments adds descriptions.",
    "help": "Print the options, and exit. =all prints their full descriptions.",
    **{f"trainer.{name}": text for name, text in LIGHTNING_OPTIONS.items()},
}
_UNCHANGED = "Passed to Lightning's Trainer, whose documentation describes it."
_METAVARS = {"config": "FILE", "print_config": "[=comments]", "help": "[=all]"}
_HEAD = """\
usage: {prog} [FILE ...] [options]

{description}

  {run} my_texts/                        train on a folder of text
  {run} --config recipe/python --plan    show what a run would do, without training
  {run} --ckpt_path last                 resume the newest run

Options can also be in config files: --model.n_layer 8 is n_layer: 8 under model: in YAML. --debug shows the traceback
of an error.

"""


def set_texts(parser: ArgumentParser) -> None:
    """Replace the texts of Lightning and jsonargparse in `--help`, `--print_config=comments` and docs/cli.md."""
    own = inspect.signature(make_trainer).parameters
    for action in parser._actions:
        section, _, name = action.dest.partition(".")
        is_lightnings = section == "trainer" and is_option(action) and name not in own
        action.help = _TEXTS.get(action.dest, _UNCHANGED if is_lightnings else action.help)
        action.metavar = _METAVARS.get(action.dest, action.metavar)
    for section, title in SECTIONS.items():
        (parser.groups or {})[section].title = title


def print_if_requested(parser: ArgumentParser, args: Iterable[str]) -> None:
    """Print the help and exit, if one of its flags is among the arguments."""
    for flag in (arg for arg in args if arg in FLAGS):
        print(format_help(parser, is_full=flag == "--help=all"), end="")
        parser.exit()


def format_help(parser: ArgumentParser, is_full: bool) -> str:
    """Return the options in groups. The short form only names those that are passed to Lightning unchanged."""
    run = f"python {parser.prog}" if parser.prog.endswith(".py") else parser.prog
    formatter = HelpFormatter(parser.prog, is_short=not is_full)
    unchanged = [action for action in parser._actions if is_unchanged(action)]
    sections = grouped([action for action in parser._actions if is_full or action not in unchanged])
    if is_full:
        for option, paths in CLASSES.items():
            sections |= {f"{path} ({option})": list(class_options(path, option)) for path in paths}
    for title, actions in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    if not is_full:
        names = ", ".join(action.dest.removeprefix("trainer.") for action in unchanged)
        formatter.add_text(
            f"Other options of Lightning's Trainer: {names}. --help=all prints them, and the full descriptions."
        )
    return _HEAD.format(prog=parser.prog, run=run, description=parser.description) + formatter.format_help()


def grouped(actions: Iterable[argparse.Action]) -> dict[str, list[argparse.Action]]:
    """Return the options by the titles of their groups, in the order of the names in a group."""
    by_pattern: dict[str, list[argparse.Action]] = {}
    patterns = [pattern for names in GROUPS.values() for pattern in names.split()]
    for action in actions:
        matching = [pattern for pattern in patterns if fnmatchcase(action.dest, pattern)]
        by_pattern.setdefault(max(matching, key=len), []).append(action)
    return {
        title: [action for pattern in names.split() for action in by_pattern.get(pattern, [])]
        for title, names in GROUPS.items()
    }


def is_unchanged(action: argparse.Action) -> bool:
    """Return whether an option is passed to Lightning's Trainer and gpt2kit has no text for it."""
    return action.help == _UNCHANGED


def class_options(path: str, option: str | None = None) -> Iterator[argparse.Action]:
    """Yield the options of a class, under the option that names it."""
    parser = Parser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(pkgutil.resolve_name(path), option, skip={"params"})
    return filter(is_option, parser._actions)
