"""What is invalid in the options of the data module: numbers, files, and options that exclude each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from gpt2kit.data.texts import HELD_OUT_SPLITS, TextFiles, TextOptions, is_name, options_by_name
from gpt2kit.errors import Problems, problems_of
from gpt2kit.ranges import range_problems
from gpt2kit.text.sources import find_files
from gpt2kit.text.splits import Split
from gpt2kit.tokenization.cache import load_named


def data_problems(options: dict[str, Any]) -> list[str]:
    """List what is invalid in the data module's options."""
    problems = Problems(range_problems({f"data.{name}": value for name, value in options.items()}))
    problems.check(options["train_files"], "data.train_files: empty. Name the text to train on")
    for split in get_args(Split):
        problems.messages += _name_problems(split, options[f"{split}_files"])
    problems.messages += _fraction_problems(options)
    problems.check(
        not (options["streaming"] and isinstance(options["train_files"], Mapping)),
        "data.streaming: not supported with several texts with names. Omit the names, or data.streaming",
    )
    problems.check(options["cache_dir"], "data.cache_dir: empty. Name a folder, or omit it")
    stride, block_size, workers = options["stride"], options["block_size"], options["num_workers"]
    problems.check(
        stride is None or stride <= block_size,
        f"data.stride {stride}: must be at most data.block_size {block_size}",
    )
    problems.check(
        options["append_eos"] or not options["mask_documents"],
        "data.mask_documents: needs data.append_eos, which marks where documents end",
    )
    problems.check(
        options["streaming"] or "://" not in options["cache_dir"],
        f"data.cache_dir {options['cache_dir']}: a URL needs data.streaming true. Set it, or name a local folder",
    )
    problems.check(
        workers <= 0 or not options["streaming"],
        f"data.num_workers {workers}: not supported with data.streaming, which reads ahead by itself. Omit it",
    )
    return problems.messages + _split_problems(options)


def file_problems(options: Mapping[str, Any]) -> list[str]:
    """List what is invalid in the text files and the tokenizer that the options name."""
    problems: list[str] = []
    for split in get_args(Split):
        for text in options_by_name(options[f"{split}_files"]).values():
            problems += problems_of(find_files, [text.files] if isinstance(text.files, str) else text.files)
    tokenizer = options["tokenizer"]
    if isinstance(tokenizer, str):
        problems += problems_of(load_named, tokenizer, Path(options["cache_dir"]))
    return problems


def _name_problems(split: Split, texts: TextFiles | None) -> list[str]:
    """List what is invalid in the names and weights of a split's texts."""
    problems, option = Problems(), f"data.{split}_files"
    for name, text in options_by_name(texts).items() if isinstance(texts, dict) else ():
        problems.check(
            is_name(name), f"{option}: {name!r:.60} is not a name: a letter, then letters, digits, - and _. Rename it"
        )
        problems.check(text.files, f"{option}.{name}: has no files. Name the text")
        weight = text.weight
        is_valid = 0 < weight < math.inf
        problems.check(is_valid, f"{option}.{name}.weight {weight}: must be above 0")
        problems.check(
            text.fraction is None or weight == 1,
            f"{option}.{name}.weight {weight}: not with a fraction, which decides how often the text is read. Omit one",
        )
        own = {"weight": weight if weight != 1 else None, "fraction": text.fraction, **_own_fractions(text)}
        for key, value in own.items() if split != "train" else ():
            problems.check(value is None, f"{option}.{name}.{key} {value}: only for data.train_files. Omit it")
    return problems.messages


def _fraction_problems(options: dict[str, Any]) -> list[str]:
    """List what is invalid in the fractions of training texts, and in the fractions that are held out of each."""
    problems, texts = Problems(), options_by_name(options["train_files"])
    fractions = [text.fraction for text in texts.values() if text.fraction is not None]
    for name, text in texts.items():
        for key, value in {"fraction": text.fraction, **_own_fractions(text)}.items():
            option = f"data.train_files.{name}.{key}"
            problems.check(value is None or 0 <= value < 1, f"{option} {value}: must be from 0 to below 1")
        for split in HELD_OUT_SPLITS:
            others, own = options[f"{split}_files"], _own_fractions(text)[f"{split}_fraction"]
            problems.check(
                not (own and others) or (isinstance(others, Mapping) and name not in others),
                f"data.train_files.{name}.{split}_fraction {own}: data.{split}_files is set, too. Give its texts other "
                "names, or omit one of the two",
            )
        held_out = sum(filter(None, _own_fractions(text).values()))
        problems.check(
            held_out < 1, f"data.train_files.{name}: nothing is left to train on. Hold out less than {held_out}"
        )
    problems.check(
        not fractions or (sum(fractions) < 1 and len(fractions) < len(texts)),
        f"data.train_files: the fractions are {sum(fractions):g} together. Decrease them, and leave one text without",
    )
    return problems.messages


def _own_fractions(text: TextOptions) -> dict[str, float | None]:
    return {"valid_fraction": text.valid_fraction, "test_fraction": text.test_fraction}


def _split_problems(options: dict[str, Any]) -> list[str]:
    """List what is invalid in the data module's options for splits."""
    problems = Problems()
    fractions = {split: options[f"{split}_fraction"] or 0.0 for split in ("valid", "test")}
    for split, fraction in fractions.items():
        option = f"data.{split}_fraction"
        problems.check(0 <= fraction < 1, f"{option} {fraction}: must be from 0 to below 1")
        problems.check(
            not (fraction and options[f"{split}_files"]),
            f"{option} {fraction}: data.{split}_files is set, too. Remove one of the two",
        )
    total = sum(fractions.values())
    problems.check(
        problems.messages or total < 1,
        f"data.valid_fraction and data.test_fraction: together {total}, which leaves no training text. Decrease one",
    )
    return problems.messages
