"""Other names of options: old ones, those of tokenizer kinds, and what other programs call them.

On a command line, an old option is unknown, and the error names the new one. Config files and the settings of earlier
runs may still have old names; they are read under their new names, and a note lists them. For options of other
programs there is advice, from the tables of docs/migration.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from collections.abc import Mapping as AnyMapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from gpt2kit.commands import command_name, with_command_names
from gpt2kit.yaml_reader import Mapping

logger = logging.getLogger(__name__)

# Old name -> new name. An old name also matches the end of a longer one, such as `data.reader.on_bad_text`.
RENAMED = {
    "data.valid_share": "data.valid_fraction",
    "data.test_share": "data.test_fraction",
    "data.global_batch": "data.global_batch_size",
    "reader.bad_share": "reader.max_bad_fraction",
    "reader.on_bad_text": "reader.errors",
    "model.schedule.final": "model.schedule.min_lr_ratio",
    "model.schedule.decay": "model.schedule.decay_ratio",
    "model.new_vocabulary": "model.replace_tokenizer",
    "model.lora": "model.lora_r",
    "model.skip_nonfinite": "model.max_nonfinite_steps",
    "model.max_scaler_skips": "model.max_grad_scaler_skips",
    "min_count": "min_frequency",
    "sample": "max_train_bytes",
    "banned_words": "bad_words",
    "strip_special": "no_special_tokens",
    "copies": "memorization",
    "json": "json_output",
    "find": "tune",
    "override": "override_optimizer",
    "at_once": "max_concurrency",
}

# Options of colorfulscoop's GPT-2 trainer, which a config file may have in another section.
MOVED = {
    "model.tokenizer_model": "data.tokenizer",
    "model.train_file": "data.train_files",
    "model.valid_file": "data.valid_files",
    "model.test_file": "data.test_files",
    "model.block_size": "data.block_size",
    "trainer.seed_everything": "seed_everything",
}

# Old tokenizer kind -> new one. These are also accepted on a command line.
RENAMED_KINDS = {"bytebpe": "bpe", "bytefallback": "spm-bpe", "unigram": "spm-unigram"}


class Rename(NamedTuple):
    """An old name that was read under its new name. The place is a config file or an option of the command line."""

    place: str
    old: str
    new: str


def new_name(name: str) -> str | None:
    """Return the new name of an option, if `name` is an old one."""
    for old, new in RENAMED.items():
        if name == old or name.endswith(f".{old}"):
            return name.removesuffix(old) + new
    return None


def new_value(name: str, value: Any) -> Any:
    """Return the value of the new option for a value of the old option `name`."""
    if value is None and name.endswith("model.lora"):
        return 0  # no LoRA
    return value


def new_kind(kind: Any) -> Any:
    """Return the new name of a tokenizer kind, or the value as it is."""
    return RENAMED_KINDS.get(kind, kind) if isinstance(kind, str) else kind


def move_options(config: Mapping, defaults: AnyMapping[str, Any]) -> tuple[list[Rename], list[str]]:
    """Move the options that a config file has in another section to their own; return the renames and the problems.

    --print_config writes every option, so one that is null or at its default, by `defaults`, is not set by the user.
    """
    renames, problems = [], []
    for old, new in MOVED.items():
        (source, old_key), (section, _, key) = old.split("."), new.rpartition(".")
        values = config.get(source)
        if not isinstance(values, Mapping) or old_key not in values:
            continue
        line = values.lines[old_key]
        if section and config.get(section) is None:
            config[section], config.lines[section] = Mapping(config.file), line
        target = config[section] if section else config
        if not isinstance(target, Mapping):  # such as the path of another file
            continue
        value = values.pop(old_key)
        if is_unset(target.get(key), defaults.get(new)) or target[key] == value:
            target[key], target.lines[key] = value, line
            renames.append(Rename(config.file, old, new))
        else:
            place = f"{new} in line {target.lines[key]}"
            problems.append(f"{config.file} line {line}: {old}: contradicts {place}. Omit one of them")
    return renames, problems


def is_unset(value: Any, default: Any) -> bool:
    """Return whether a value in a config file may come from --print_config: it is null, or the option's default."""
    return value is None or (type(value) is type(default) and value == default)


def rename_settings(settings: AnyMapping[str, Any], current: AnyMapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings of an earlier run under the names that `current` has."""
    renamed: dict[str, Any] = {}
    for name, value in settings.items():
        new = new_name(name.replace(".init_args.", "."))
        if new and ".init_args." in name:
            new = ".init_args.".join(new.rsplit(".", 1))
        if new is not None and new in current and name not in current:
            renamed[new] = new_value(name, value)
        else:
            renamed[name] = new_kind(value) if name.endswith("tokenizer.kind") else value
    return renamed


def log_renames(renames: Iterable[Rename]) -> None:
    """Log one note for each place that lists the old names in it."""
    places: dict[str, dict[str, None]] = {}
    for place, old, new in renames:
        places.setdefault(place, {})[f"{old} (now {new})"] = None
    for place, names in places.items():
        logger.info(f"{place} uses old names: {', '.join(names)}")


@cache
def read_tables() -> dict[str, dict[str, str]]:
    """Return the table of each program: what it calls something, and what gpt2kit calls it."""
    text = files("gpt2kit.cli").joinpath("other_tools.yaml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = yaml.safe_load(text)
    return tables


class _Advice(NamedTuple):
    """What gpt2kit has instead of an option of another program, and the names of its options in that text."""

    program: str
    text: str
    options: frozenset[str]
    is_for_training: bool


@cache
def _advice() -> dict[str, list[_Advice]]:
    """Return what to use instead of each option name, in the order of the tables."""
    advice: dict[str, list[_Advice]] = {}
    for program, rows in read_tables().items():
        for old, new in rows.items():
            _, colon, names_of_file = old.partition("`: `")  # `model.json`: `n_layer`, `n_head`
            spans = re.findall("`([^`]+)`", f"`{names_of_file}" if colon else old)
            # A span with several options is a whole command, not the name of one of them.
            names = [_name(span) for span in spans if span.count("--") < 2]
            # `n_layer`, `n_head` and `model.n_layer`, `model.n_head` go together; other rows stay whole.
            pairs = re.findall("`([^`]+)`", new.partition(";")[0])
            for i, name in enumerate(names):
                text = f"`{pairs[i]}`" if 1 < len(pairs) == len(names) else new
                if not text.startswith("the same"):
                    advice.setdefault(name, []).append(_describe(program, text))
    return advice


def _describe(program: str, text: str) -> _Advice:
    """Find the options in the code spans of a text; those without the name of a script are of trainer.py."""
    spans = re.findall("`([^`]+)`", text)
    options = {span: re.findall(r"(?:(?<=--)|\b(?=(?:data|model|trainer)\.))\w[\w.]*", span) for span in spans}
    is_for_training = any(options[span] and not re.match(r"\w+\.py ", span) for span in spans)
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")  # a link is for the page
    return _Advice(program, plain, frozenset(name for names in options.values() for name in names), is_for_training)


def _name(span: str) -> str:
    """Return the name of an option in a code span such as `--lr`, `init_from=gpt2*` or `generate.py --length`."""
    option = re.search(r"(?<!\S)--([\w.]+)", span)
    return option[1] if option else span.partition("=")[0].split(" ")[0]


def advise(name: str, options: Collection[str]) -> str:
    """Return a sentence on what gpt2kit has instead of another program's option; empty if none is known.

    Several programs may have it. One whose counterpart is among `options`, those of the command, comes first.
    """
    name = name.lstrip("-")
    name = name if name in _advice() else name.rpartition(".")[2]
    rows = _advice().get(name, [])
    if not rows:
        return ""
    row = next((row for row in rows if not row.options.isdisjoint(options)), rows[0])
    is_elsewhere = row.is_for_training and row.options.isdisjoint(options)
    place = f" (in {command_name('train')})" if is_elsewhere else ""
    return f". For {row.program}'s {name}{place}: {with_command_names(row.text)}"
