"""Write docs/cli.md, the reference of all options, from the parsers of the scripts. `make cli_page` runs it."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

import get
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from gpt2kit import callbacks, files, optim
from gpt2kit.__main__ import COMMANDS
from gpt2kit.cli import cache as cli_cache
from gpt2kit.cli import env, export, generate, plot, runs, test, train, train_tokenizer, web_demo
from gpt2kit.cli import parser as command
from gpt2kit.text import reader
from gpt2kit.tokenization.trainers import TokenizerSpec
from gpt2kit.training.trainer import make_trainer

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"
SCRIPTS: dict[str, Callable[..., object]] = {
    "train_tokenizer.py": train_tokenizer.train_tokenizer,
    "test.py": test.test,
    "generate.py": generate.generate,
    "export.py": export.export,
    "plot.py": plot.plot,
    "web_demo.py": web_demo.serve,
    "cache.py": cli_cache.manage,
    "data/get.py": get.get,
}
# Commands without a script.
VERBS: dict[str, Callable[..., object]] = {"gpt2kit runs": runs.runs, "gpt2kit env": env.env}
# The classes that options of trainer.py name.
NESTED: dict[str, list[type]] = {
    "data.reader": [reader.Reader],
    "data.tokenizer": [TokenizerSpec],
    "model.optimizer": [optim.Muon, optim.AdamW],
    "model.schedule": [optim.WarmupStableDecay, optim.Linear, optim.Cosine, optim.Constant],
}
# Descriptions of Lightning's trainer options. The page only names options that are not in this table.
LIGHTNING = {
    "accelerator": "`cpu`, `gpu`, `mps`; `auto`: the best one available.",
    "strategy": "`ddp` replicates the model on every device, `fsdp` shards it (docs/distributed.md).",
    "devices": "Number of devices, or which ones. Under torchrun and srun it follows from the launcher.",
    "num_nodes": "Number of machines. Under torchrun and srun it follows from the launcher.",
    "accumulate_grad_batches": "Forward passes per optimizer step. `data.global_batch_size` sets it, if given.",
    "gradient_clip_val": "Maximum gradient norm; 1.0 is usual. Default: no clipping.",
    "gradient_clip_algorithm": "`norm` (the default), or `value`: each element by itself.",
    "log_every_n_steps": "Optimizer steps between two rows of the log.",
    "default_root_dir": "The folder that contains `lightning_logs`. Default: the working directory.",
    "callbacks": "Callbacks of Lightning, of gpt2kit (below) or your own, except those that need Lightning's epochs: "
    "BaseFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging and Timer.",
    "logger": "Loggers in addition to TensorBoard and CSV: `configs/logger`. `false`: no log, and no folder.",
    "enable_checkpointing": "`false`: save nothing.",
    "enable_progress_bar": "`false`: no progress bar and no progress lines.",
    "deterministic": "Deterministic operations on a GPU, at some cost. Those of a CPU are deterministic anyway.",
    "limit_val_batches": "Validate on the first batches only: a number, or a fraction of them.",
    "fast_dev_run": "Run one step, or this many, as a smoke test. Nothing is written.",
    "num_sanity_val_steps": "Validation batches before the first step.",
    "profiler": "`simple`, `advanced`, `pytorch`: where the time is spent.",
    "detect_anomaly": "Name the operation that produced a NaN. Slow.",
    "limit_train_batches": "Refused: use `trainer.max_steps`.",
    "overfit_batches": "Refused: use a small text.",
    "check_val_every_n_epoch": "Refused: use `trainer.val_check_interval`.",
    "reload_dataloaders_every_n_epochs": "Refused: training is one endless epoch for Lightning.",
}
HEAD = """\
# Command line: all options and config keys

    gpt2kit train my_texts/ --model.n_layer 8 --trainer.max_steps 2000
    gpt2kit train --config recipe/python
    gpt2kit train --print_config > config.yaml     # all options with their values

In a clone, each command is also a script: `python trainer.py my_texts/` is `gpt2kit train my_texts/`.

{commands}
* Arguments before the first option are text or checkpoints: `gpt2kit train my_texts/` is `gpt2kit train
  --data.train_files my_texts/`, `gpt2kit test last` is `gpt2kit test --ckpt_path last`.
* Options can be arguments (`--model.n_layer 8`) or YAML (`n_layer: 8` under `model:`).
* Later settings win: defaults, then config files, then arguments. `--config` may be given several times.
* A section can be a file: `--model configs/model/tiny.yaml`. The files in `configs` also have names: `--model
  model/tiny`.
* A class is named by its path, with its options under `init_args`. The short form on the command line is
  `--model.optimizer gpt2kit.optim.AdamW --model.optimizer.lr 0.001`.
* `--debug` shows the traceback of an error.

This page is generated from the parsers by `make cli_page`, and a test fails if it is out of date. `--help` and
`--print_config=comments` print the same texts, except for the options of Lightning's Trainer: for these they print
Lightning's descriptions, some of which do not apply here.
"""
_SKIPPED = (
    "_HelpAction",
    "ActionConfigFile",
    "_ActionPrintConfig",
    "ActionLink",
    "_ActionConfigLoad",
    "_ActionHelpClassPath",
)


class _ParserReady(Exception):
    """Carries the parser of trainer.py out of its constructor."""


class _ParserOnly(train.TrainCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _ParserReady(parser)


def main() -> None:
    files.write_text(PAGE, page())
    print(PAGE.relative_to(ROOT))


def page() -> str:
    """Return the content of docs/cli.md."""
    rows = {action.dest: action for action in options(trainer_parser())}
    groups: dict[str, list[argparse.Action]] = {"": [], "data": [], "model": [], "trainer": []}
    for name, action in rows.items():
        groups[name.split(".")[0] if "." in name else ""].append(action)
    own = set(inspect.signature(make_trainer).parameters)
    limits = [action for action in groups["trainer"] if action.dest.split(".")[1] in own]
    lightning = [action for action in groups["trainer"] if action not in limits]
    described = [action for action in lightning if action.dest.split(".")[1] in LIGHTNING]
    others = ", ".join(f"`{action.dest.split('.')[1]}`" for action in lightning if action not in described)
    parts = [
        HEAD.replace("{commands}", commands()),
        "## trainer.py\n",
        table(groups[""], "--"),
        "## data: text files, tokenizer and batches\n",
        table(groups["data"]),
        *describe(reader.Reader, "data.reader", "Also `--reader` of train_tokenizer.py and test.py."),
        *describe(TokenizerSpec, "data.tokenizer", "Use a folder's name instead to load a tokenizer."),
        "## model: architecture, initial weights, optimization\n",
        table(groups["model"]),
        "## Optimizers: model.optimizer\n",
        "Other optimizers of `torch.optim` work as well, except torch.optim.Muon (it refuses parameters that are not\n"
        "matrices) and LBFGS (it takes no parameter groups).\n",
        *describe(optim.Muon),
        *describe(optim.AdamW),
        "## Schedules: model.schedule\n",
        *(
            part
            for schedule in (optim.WarmupStableDecay, optim.Linear, optim.Cosine, optim.Constant)
            for part in describe(schedule)
        ),
        "## trainer: limits, precision and devices\n",
        table(limits),
        "Options of Lightning's Trainer:\n",
        table(described, texts=LIGHTNING),
        f"Passed to Lightning unchanged: {others}.\n",
        "## Callbacks: trainer.callbacks\n",
        *(part for callback in (callbacks.EpochExports, callbacks.TextSamples) for part in describe(callback)),
    ]
    for script, function in (SCRIPTS | VERBS).items():
        summary = (inspect.getdoc(function) or "").split("\n\n")[0]
        parts += [
            f"## {script}\n",
            f"{' '.join(summary.split())}\n",
            table(own_options(command.parser_of(function)), "--") if inspect.signature(function).parameters else "",
        ]
    return "\n".join(parts)


def commands() -> str:
    """Return a table of the verbs of gpt2kit."""
    lines = ["| command | script | |", "|---|---|---|"]
    for verb, each in COMMANDS.items():
        script = script_of(verb)
        lines.append(f"| `gpt2kit {verb}` | {f'`{script}`' if script.endswith('.py') else ''} | {each.summary} |")
    return "\n".join(lines) + "\n"


def script_of(verb: str) -> str:
    """Return the script that is the same as a verb, by which its section is named; `gpt2kit VERB` if there is none."""
    script = "trainer.py" if verb == "train" else f"{COMMANDS[verb].module}.py"
    return script if (ROOT / script).is_file() else f"gpt2kit {verb}"


def trainer_parser() -> ArgumentParser:
    """Return the parser of trainer.py, before it parses anything."""
    try:
        _ParserOnly([])
    except _ParserReady as ready:
        return typing.cast(ArgumentParser, ready.args[0])
    raise AssertionError


def option_names(script: str) -> set[str]:
    """Return the names of all options of a script, including those of classes such as the reader."""
    parser = trainer_parser() if script == "trainer.py" else command.parser_of((SCRIPTS | VERBS)[script])
    names = {action.dest for action in options(parser)}
    if script == "trainer.py":
        names.add("config")
        for prefix, kinds in NESTED.items():
            for kind in kinds:
                inner = ArgumentParser(exit_on_error=False)
                inner.add_class_arguments(kind, skip={"params"})
                names |= {f"{prefix}.{action.dest}" for action in options(inner)}
    elif script in ("train_tokenizer.py", "test.py"):
        inner = ArgumentParser(exit_on_error=False)
        inner.add_class_arguments(reader.Reader)
        names |= {f"reader.{action.dest}" for action in options(inner)}
    return names


def describe(kind: type, where: str = "", more: str = "") -> Iterator[str]:
    """Yield the section of a class that configs may name: its summary and its options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip={"params"})
    name = public_path(kind)
    head = f"### {where}: {name}" if where else f"### {name}"
    summary = (inspect.getdoc(kind) or "").split("\n\nArgs:")[0].split("\n\n")[0]
    yield f"{head}\n"
    yield f"{' '.join(summary.split())}{' ' * bool(more)}{more}\n"
    if actions := list(options(parser)):
        yield table(actions, f"{where}." if where else "")


def public_path(kind: type) -> str:
    """Return the shortest path by which a config may name the class."""
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    modules = (importlib.import_module(name) for name in (*packages, "gpt2kit.callbacks"))
    names = [module.__name__ for module in modules if getattr(module, kind.__name__, None) is kind]
    return f"{min(names, key=len)}.{kind.__name__}"


def options(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options of a parser that users may set."""
    for action in parser._actions:
        if type(action).__name__ not in _SKIPPED and action.help != argparse.SUPPRESS:
            yield action


def own_options(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """Return the options of a command, without those of its classes."""
    return (action for action in options(parser) if "." not in action.dest)


def table(actions: Iterable[argparse.Action], prefix: str = "", texts: dict[str, str] | None = None) -> str:
    """Return options as a Markdown table; `texts` replaces the parser's descriptions."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for action in actions:
        name = action.dest if not action.option_strings and action.required else f"{prefix}{action.dest}"
        text = (texts or {}).get(action.dest.rsplit(".", 1)[-1]) or " ".join((action.help or "").split())
        cells = (f"`{name}`", format_type(action), format_default(action), text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def format_type(action: argparse.Action) -> str:
    """Return a readable type of an option."""
    if isinstance(action, argparse._StoreTrueAction):
        return "flag"
    prefix = "one or more: " if action.nargs == "+" else ""
    return prefix + format_hint(getattr(action, "_typehint", action.type))


def format_hint(hint: Any) -> str:
    """Return a type hint in readable form."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in dict.fromkeys(map(str, arguments)))
    if origin in (typing.Union, types.UnionType):
        names = dict.fromkeys(format_hint(argument) for argument in arguments)
        *first, last = sorted(names, key=lambda name: (name == "null", name.startswith("list")))
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, typing.Iterable)):  # type: ignore[arg-type]
        inner = dict.fromkeys(format_hint(argument) for argument in arguments if argument is not ...)
        return f"list of {' or '.join(inner)}" if inner else "list"
    if origin is dict:
        return "mapping"
    if origin is not None:
        return "class"
    if isinstance(hint, type) and hint.__module__.startswith(("gpt2kit", "torch", "pytorch_lightning", "lightning")):
        return "class"
    return {Path: "path"}.get(hint, getattr(hint, "__name__", str(hint).rsplit(".", 1)[-1]))


def format_default(action: argparse.Action) -> str:
    """Return the default of an option as in YAML."""
    if action.required:
        return "required"
    if isinstance(action, argparse._StoreTrueAction):
        return "off"
    return format_value(action.default)


def format_value(value: Any) -> str:
    """Return a value as in YAML; an object by its class and its arguments."""
    if isinstance(value, (Namespace, dict)):
        spec = dict(value.as_dict() if isinstance(value, Namespace) else value)
        if "class_path" in spec:
            arguments = [f"{name} {v}" for name, v in (spec.get("init_args") or {}).items() if v is not None]
            kind = str(spec["class_path"]).rsplit(".", 1)[-1]
            return f"`{kind}`" + (f" ({', '.join(arguments)})" if arguments else "")
    if value is None or value is argparse.SUPPRESS:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Path):
        return f"`{value.as_posix()}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`" if value else "none"
    if isinstance(value, (int, float, str)):
        return f"`{value}`" if value != "" else "empty"
    return f"`{type(value).__name__}`"


if __name__ == "__main__":
    main()
