"""The saved options of a run: merged with the arguments of a resume, and with the texts of another stage."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from gpt2kit import config_files
from gpt2kit.cli import other_names
from gpt2kit.data.texts import HELD_OUT_SPLITS, is_name
from gpt2kit.errors import UserError
from gpt2kit.runs import lifecycle
from gpt2kit.text.splits import HELD_OUT
from gpt2kit.training import auto

# The options of `data` that name texts, or what is held out of them.
_TEXTS = ("train_files", *(f"{split}_{kind}" for split in HELD_OUT_SPLITS for kind in ("files", "fraction")))
_LIMITS = ("max_epochs", "max_steps", "max_tokens", "max_time")
# Options of a logger that name the run that it continues.
_RUN_IDS = ("id", "run_id", "run_name")
# Options of a start, not of a run.
_NOT_COMPARED = ("config", "ckpt_path", "override_optimizer", "plan", "run_name")
Settings = dict[str, Any]

logger = logging.getLogger(__name__)


def write_yaml(path: Path, settings: Settings) -> str:
    """Write settings to a file, and return its path as an argument."""
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(path)


def without_texts(settings: Settings) -> Settings:
    """Return the settings of a run without its texts, its limits and the identities of its loggers."""
    data = {name: value for name, value in settings["data"].items() if name not in _TEXTS}
    trainer = {name: value for name, value in settings["trainer"].items() if name not in _LIMITS}
    loggers = trainer.get("logger")
    for spec in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(spec, dict):
            spec["init_args"] = {k: v for k, v in spec.get("init_args", {}).items() if k not in _RUN_IDS}
    others = ("ckpt_path", "run_name", "best_text", "config")
    return {k: v for k, v in settings.items() if k not in others} | {"data": data, "trainer": trainer}


def join_texts(earlier: Settings, new: Settings, replay: float, sizes: Mapping[str, float]) -> tuple[Settings, str]:
    """Return the options of `data` that name the texts of a stage, and the name of an earlier text that had none.

    Args:
        earlier: the options of `data` of the run so far, with numbers for the fractions.
        new: the options of `data` of the stage.
        replay: the fraction of the blocks that are of earlier texts, which divide it by their sizes.
        sizes: the size of each earlier text, times its weight.
    """
    old = _named(earlier["train_files"], earlier["reader"], ())
    only = "" if isinstance(earlier["train_files"], dict) else next(iter(old))
    of_name = {name or only: size for name, size in sizes.items()}
    total = sum(of_name.get(name, 1.0) for name in old)
    for name, text in old.items():
        text |= {"weight": 1.0, "fraction": replay * of_name.get(name, 1.0) / total}
    texts = _named(new["train_files"], new["reader"], old)
    if same := sorted({*texts} & {*old}):
        raise UserError(f"data.train_files.{same[0]}: an earlier text of the run has this name. Rename it")
    joined: Settings = {"train_files": {**texts, **old}}
    for split in HELD_OUT_SPLITS:
        joined |= {f"{split}_files": _held_out(earlier, split, old) | _held_out(new, split, texts) or None}
        joined |= {f"{split}_fraction": None}  # of texts without their own: automatic
    has_files = any(joined[f"{split}_files"] for split in HELD_OUT_SPLITS)
    is_given = any(new[name] for name in _TEXTS if name != "train_files")
    for option in (f"{split}_fraction" for split in HELD_OUT_SPLITS):
        automatic = HELD_OUT if has_files else None  # beside files, nothing is held out by itself
        _set_default(old, option, earlier[option] or 0.0)
        _set_default(texts, option, (new[option] or 0.0) if is_given else automatic)
    return joined, only


def _set_default(texts: Mapping[str, Settings], option: str, value: float | None) -> None:
    """Set an option of the texts that do not have it."""
    for text in texts.values():
        if text.get(option) is None:
            text[option] = value


def _named(files: Any, reader: Any, names: Collection[str]) -> dict[str, Settings]:
    """Return the options of each text by its name; one without a name gets that of its first file."""
    if not isinstance(files, dict):
        files = {_free_name(files, names): files}
    options = {name: dict(text) if isinstance(text, dict) else {"files": text} for name, text in files.items()}
    return {name: {**text, "reader": text.get("reader") or reader} for name, text in options.items()}


def _held_out(data: Settings, split: str, texts: Iterable[str]) -> dict[str, Settings]:
    """Return the options of a split's own texts by name; one without a name gets that of the training text."""
    files = data[f"{split}_files"]
    return _named(files if isinstance(files, dict) else {"-".join(texts): files}, data["reader"], ()) if files else {}


def _free_name(files: str | Iterable[str], names: Collection[str]) -> str:
    """Return the stem of the first file as a name that no other text has."""
    first = files if isinstance(files, str) else next(iter(files))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(first.rstrip("/*")).name.split(".")[0]).strip("-")
    base = stem if is_name(stem) else "text"
    candidates = (base if number == 1 else f"{base}-{number}" for number in range(1, len(names) + 2))
    return next(name for name in candidates if name not in names)


def refuse_incomplete(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a run's config.yaml lacks options that its checkpoint has: a part of the file is lost."""

    def names(part: Mapping[str, Any]) -> set[str]:
        options = (".".join(name.split(".")[:2]) for name in lifecycle.flatten(part))
        return {other_names.new_name(name) or name for name in options}

    if missing := sorted(names(settings) - names(config_files.load(str(file)))):
        raise UserError(f"{file}: a part of the file is lost, such as {missing[0]}")


def merge_saved_config(config: Any, saved: Any, prefix: str = "") -> None:
    """Keep the saved values of options that are `auto`, and print where the others differ from the saved ones.

    Without --override_optimizer, the optimizer and the schedule stay those of the run. Only names with the prefix are
    compared.
    """
    for name in auto.AUTOMATIC:
        if name.startswith(prefix) and name in saved and auto.is_automatic(name, config.get(name)):
            config[name] = saved[name]
    kept = ["model.init_from", "model.adapter_base", "model.replace_tokenizer"]
    if saved.model.init_from is not None and not saved.model.replace_tokenizer:
        kept.append("data.tokenizer")  # that of the initial weights
    values = lifecycle.flatten(config.clone().as_dict())
    for name, old in lifecycle.flatten(saved.as_dict()).items():
        new = values.get(name, old)
        if old == new or not name.startswith(prefix) or name in _NOT_COMPARED:
            continue
        if name in kept:
            change = f"stays {old} (not {new}: the run has already started)"
        elif name.startswith(("model.optimizer", "model.schedule")) and not config.override_optimizer:
            change = f"stays {old} (not {new}; --override_optimizer changes it)"
        else:
            change = f"was {old}, now {new}"
        logger.info(f"resume: {name} {change}")
    for name in (name for name in kept if name.startswith(prefix)):
        config[name] = saved[name]
    if not config.override_optimizer:
        config.model.optimizer, config.model.schedule = saved.model.optimizer, saved.model.schedule
