"""Write docs/configs.md: every option of every script, out of the parsers that read them. `make docs` runs it."""

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
from gpt2kit.cli import cache as cli_cache
from gpt2kit.cli import export, generate, plot, test, train, train_tokenizer, web_demo
from gpt2kit.cli import parser as command
from gpt2kit.text import reader
from gpt2kit.tokenization.trainers import TokenizerSpec
from gpt2kit.training.trainer import make_trainer

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configs.md"
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
LIGHTNING = {
    "accelerator": "`cpu`, `gpu`, `mps`; `auto`: the best that is there",
    "strategy": "`ddp`: the whole model on each device; `fsdp`: a share on each (docs/scaling.md)",
    "devices": "how many, or which; under torchrun and srun it follows from what was started",
    "num_nodes": "machines; likewise",
    "accumulate_grad_batches": "forward passes in an optimizer step; `data.global_batch_size` decides it, if given",
    "gradient_clip_val": "the largest norm that a gradient keeps; 1.0 is usual, none clips nothing",
    "gradient_clip_algorithm": "`norm` (the default), or `value`: each number by itself",
    "log_every_n_steps": "optimizer steps between two rows of the log",
    "default_root_dir": "the folder in which `lightning_logs` lies; default: the working directory",
    "callbacks": "any callback of Lightning or your own that does not wait for its epochs; ours is below",
    "logger": "beside TensorBoard and CSV: `configs/logger`; `false`: no log, and no folder",
    "enable_checkpointing": "`false`: save nothing",
    "enable_progress_bar": "`false`: no bar and no lines",
    "deterministic": "the same bits on a GPU, at some cost; a CPU gives them anyway",
    "limit_val_batches": "validate on the first batches only: so many, or a share of them",
    "fast_dev_run": "a step or so many, to see that nothing breaks; nothing is written",
    "num_sanity_val_steps": "validation batches before the first step",
    "profiler": "`simple`, `advanced`, `pytorch`: where the time goes",
    "detect_anomaly": "name the operation that made a NaN; slow",
    "limit_train_batches": "refused: use `trainer.max_steps`",
    "overfit_batches": "refused: use a small text",
    "check_val_every_n_epoch": "refused: use `trainer.val_check_interval`",
    "reload_dataloaders_every_n_epochs": "refused: there is one endless epoch",
}
"""What Lightning's own options are for here, in our words; the others are named without."""
HEAD = """\
# Every option

`make docs` writes this page out of the parsers, and a test fails when it lags behind; `--help` and `python trainer.py
--print_config=comments` say the same. In YAML, `model.n_layer` is `n_layer` under `model:`. Defaults < config files <
command line; `--config` may be given several times, the later file wins; `--print_config` prints the whole and leaves.
A group takes a file: `--model configs/model/tiny.yaml`. A class is named by its path, its options stand under
`init_args`; `--model.optimizer gpt2kit.optim.AdamW --model.optimizer.lr 0.001` is short for that. `--debug` shows an
error's traceback.
"""
_SKIPPED = (
    "_HelpAction",
    "ActionConfigFile",
    "_ActionPrintConfig",
    "ActionLink",
    "_ActionConfigLoad",
    "_ActionHelpClassPath",
)


class _Built(Exception):
    """Carries the parser."""


class _ParserOnly(train.TrainCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Built(parser)


def main() -> None:
    files.write_text(PAGE, page())
    print(PAGE.relative_to(ROOT))


def page() -> str:
    """The whole page."""
    rows = {action.dest: action for action in options(trainer_parser())}
    groups: dict[str, list[argparse.Action]] = {"": [], "data": [], "model": [], "trainer": []}
    for name, action in rows.items():
        groups[name.split(".")[0] if "." in name else ""].append(action)
    ours = set(inspect.signature(make_trainer).parameters)
    limits = [action for action in groups["trainer"] if action.dest.split(".")[1] in ours]
    theirs = [action for action in groups["trainer"] if action not in limits]
    known = [action for action in theirs if action.dest.split(".")[1] in LIGHTNING]
    rest = ", ".join(f"`{action.dest.split('.')[1]}`" for action in theirs if action not in known)
    parts = [
        HEAD,
        "## trainer.py\n",
        table(groups[""], "--"),
        "## data: from text to batches\n",
        table(groups["data"]),
        *described(reader.Reader, "data.reader", "`--reader` of train_tokenizer.py and test.py, too."),
        *described(
            TokenizerSpec, "data.tokenizer", "Instead of a folder's name; docs/tokenizers.md says what to choose."
        ),
        "## model: GPT-2, how it begins, how it learns\n",
        table(groups["model"]),
        "## Optimizers: model.optimizer\n",
        "Any of `torch.optim` may stand here as well.\n",
        *described(optim.Muon),
        *described(optim.AdamW),
        "## Schedules: model.schedule\n",
        *(
            part
            for schedule in (optim.WarmupStableDecay, optim.Linear, optim.Cosine, optim.Constant)
            for part in described(schedule)
        ),
        "## trainer: how long, and on what\n",
        table(limits),
        "Lightning's own that are of use here:\n",
        table(known, words=LIGHTNING),
        f"Passed on as they are: {rest}.\n",
        "## Callbacks of ours: trainer.callbacks\n",
        *(part for callback in (callbacks.EpochExports, callbacks.TextSamples) for part in described(callback)),
    ]
    for script, function in SCRIPTS.items():
        summary = (inspect.getdoc(function) or "").split("\n\n")[0]
        parts += [
            f"## {script}\n",
            f"{' '.join(summary.split())}\n",
            table(own_options(command.parser_of(function)), "--"),
        ]
    return "\n".join(parts)


def trainer_parser() -> ArgumentParser:
    """trainer.py's parser, with nothing parsed."""
    try:
        _ParserOnly([])
    except _Built as built:
        return typing.cast(ArgumentParser, built.args[0])
    raise AssertionError


def described(kind: type, where: str = "", more: str = "") -> Iterator[str]:
    """A class that a config names, and its options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip={"params"})
    name = public_path(kind)
    head = f"### {where}: {name}" if where else f"### {name}"
    summary = (inspect.getdoc(kind) or "").split("\n\nArgs:")[0].split("\n\n")[0]
    yield f"{head}\n"
    yield f"{' '.join(summary.split())}{' ' * bool(more)}{more}\n"
    if found := list(options(parser)):
        yield table(found, f"{where}." if where else "")


def public_path(kind: type) -> str:
    """The shortest path that a config may name the class by."""
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    faces = (importlib.import_module(name) for name in (*packages, "gpt2kit.callbacks"))
    homes = [face.__name__ for face in faces if getattr(face, kind.__name__, None) is kind]
    return f"{min(homes, key=len)}.{kind.__name__}"


def options(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """What a user may set."""
    for action in parser._actions:
        if type(action).__name__ not in _SKIPPED and action.help != argparse.SUPPRESS:
            yield action


def own_options(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a command, without those of the classes that they name."""
    return (action for action in options(parser) if "." not in action.dest)


def table(actions: Iterable[argparse.Action], prefix: str = "", words: dict[str, str] | None = None) -> str:
    """Options as a Markdown table."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for action in actions:
        name = action.dest if not action.option_strings and action.required else f"{prefix}{action.dest}"
        told = (words or {}).get(action.dest.rsplit(".", 1)[-1]) or " ".join((action.help or "").split())
        cells = (f"`{name}`", shown_type(action), shown_default(action), told)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def shown_type(action: argparse.Action) -> str:
    """What may be given, in plain words."""
    if isinstance(action, argparse._StoreTrueAction):
        return "flag"
    several = action.nargs == "+"
    return ("one or more: " if several else "") + of_hint(getattr(action, "_typehint", action.type))


def of_hint(hint: Any) -> str:
    """A type hint in plain words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in dict.fromkeys(map(str, arguments)))
    if origin in (typing.Union, types.UnionType):
        some = dict.fromkeys(of_hint(one) for one in arguments)
        *first, last = sorted(some, key=lambda one: (one == "null", one.startswith("list")))
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, typing.Iterable)):  # type: ignore[arg-type]
        inner = dict.fromkeys(of_hint(one) for one in arguments if one is not ...)
        return f"list of {' or '.join(inner)}" if inner else "list"
    if origin is dict:
        return "mapping"
    if origin is not None:
        return "class"
    if isinstance(hint, type) and hint.__module__.startswith(("gpt2kit", "torch", "pytorch_lightning", "lightning")):
        return "class"
    return {Path: "path"}.get(hint, getattr(hint, "__name__", str(hint).rsplit(".", 1)[-1]))


def shown_default(action: argparse.Action) -> str:
    """The default as one would write it in YAML."""
    if action.required:
        return "required"
    if isinstance(action, argparse._StoreTrueAction):
        return "off"
    return of_value(action.default)


def of_value(value: Any) -> str:
    """A value as in YAML; an object by its class and what it was made of."""
    if isinstance(value, (Namespace, dict)):
        given = dict(value.as_dict() if isinstance(value, Namespace) else value)
        if "class_path" in given:
            inner = {name: one for name, one in (given.get("init_args") or {}).items() if one is not None}
            kind = str(given["class_path"]).rsplit(".", 1)[-1]
            return f"`{kind}`" + (f" ({', '.join(f'{k} {v}' for k, v in inner.items())})" if inner else "")
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
