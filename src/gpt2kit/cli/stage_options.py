"""The options of a stage that begins with other text: those of its run, with the new texts and the earlier ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from gpt2kit.data.texts import HELD_OUT_SPLITS, is_name
from gpt2kit.errors import UserError
from gpt2kit.text.splits import HELD_OUT

# The options of `data` that name texts, or what is held out of them.
_TEXTS = ("train_files", *(f"{split}_{kind}" for split in HELD_OUT_SPLITS for kind in ("files", "fraction")))
_LIMITS = ("max_epochs", "max_steps", "max_tokens", "max_time")
# Options of a logger that name the run that it continues.
_RUN_IDS = ("id", "run_id", "run_name")
Settings = dict[str, Any]


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
    for split in HELD_OUT_SPLITS:
        option = f"{split}_fraction"
        of_new = (new[option] or 0.0) if is_given else HELD_OUT if has_files else None
        for text, default in [
            *((text, earlier[option] or 0.0) for text in old.values()),
            *((text, of_new) for text in texts.values()),
        ]:
            text[option] = default if text.get(option) is None else text[option]
    return joined, only


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
