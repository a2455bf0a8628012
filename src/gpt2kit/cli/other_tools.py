"""Advice for options that other programs have: what gpt2kit calls them, from the tables of docs/migration.md."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import yaml


@cache
def read_tables() -> dict[str, dict[str, str]]:
    """Return the table of each program: what it calls something, and what gpt2kit calls it."""
    text = files("gpt2kit.cli").joinpath("other_tools.yaml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = yaml.safe_load(text)
    return tables


@cache
def _advice() -> dict[str, str]:
    """Return what to use instead of each option name; the first program that has it wins."""
    advice: dict[str, str] = {}
    for program, rows in read_tables().items():
        for old, new in rows.items():
            # A span with several options is a whole command, not the name of one of them.
            names = [_name(span) for span in re.findall("`([^`]+)`", old) if span.count("--") < 2]
            # `n_layer`, `n_head` and `model.n_layer`, `model.n_head` go together; other rows stay whole.
            pairs = re.findall("`([^`]+)`", new.partition(";")[0])
            for i, name in enumerate(names):
                text = pairs[i] if 1 < len(pairs) == len(names) else new.replace("`", "")
                if not text.startswith("the same"):
                    advice.setdefault(name, f". For {program}'s {name}: {text}")
    return advice


def _name(span: str) -> str:
    """Return the name of an option in a code span such as `--lr`, `init_from=gpt2*` or `generate.py --length`."""
    option = re.search(r"(?<!\S)--([\w.]+)", span)
    return option[1] if option else span.partition("=")[0].split(" ")[0]


def advise(name: str) -> str:
    """Return a sentence on what gpt2kit has instead of another program's option; empty if none is known."""
    name = name.lstrip("-")
    return _advice().get(name) or _advice().get(name.rpartition(".")[2], "")
