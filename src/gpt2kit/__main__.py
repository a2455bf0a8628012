"""The command `gpt2kit`, also `python -m gpt2kit`: a verb, then the arguments of the function that implements it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NamedTuple

from gpt2kit import __version__, launch
from gpt2kit.cli import failures, parser
from gpt2kit.commands import command_name
from gpt2kit.errors import UserError, nearest


class Command(NamedTuple):
    """A verb of the command line."""

    module: str  # in gpt2kit.cli; imported when it is needed, so that --help is quick
    function: str
    summary: str


COMMANDS = {
    "train": Command("train", "main", "train a model on text files, or resume a run"),
    "test": Command("test", "test", "measure models on text: loss, perplexity, bits per byte"),
    "generate": Command("generate", "generate", "generate text with a model"),
    "tokenize": Command("train_tokenizer", "train_tokenizer", "train a tokenizer, or report how it fits a text"),
    "export": Command("export", "export", "write a model as a Hugging Face folder, a GGUF file or an adapter"),
    "plot": Command("plot", "plot", "draw the curves of runs, or write a report"),
    "demo": Command("web_demo", "serve", "generate text on a page in the browser"),
    "cache": Command("cache", "manage", "list and delete tokenized text"),
    "runs": Command("runs", "runs", "list the runs in lightning_logs"),
    "env": Command("env", "env", "print versions and devices, for a bug report"),
}


def main(args: list[str] | None = None) -> None:
    """Run the command that the first argument names."""
    verb, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if verb in ("-h", "--help"):
        failures.guarded(lambda _: print(usage()), rest)
    elif verb == "--version":
        print(f"gpt2kit {__version__}")
    else:
        run(verb, rest)


def run(verb: str, args: list[str]) -> None:
    """Run a command."""
    if verb not in COMMANDS:
        failures.print_error(
            UserError(f"{verb or repr(verb)}: no such command{nearest(verb, COMMANDS) or '. See gpt2kit --help'}")
        )
        sys.exit(UserError.exit_code)
    if verb == "train":
        # A rank whose peer has exited is then reported in one line, without stacks. torch reads it when it is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        launch.follow_launcher()

    def call(argv: list[str]) -> None:
        command = COMMANDS[verb]
        function = getattr(importlib.import_module(f"gpt2kit.cli.{command.module}"), command.function)
        if verb == "train":
            function(argv)
        else:
            parser.call(function, parser.parse(function, argv, command_name(verb)))

    failures.guarded(call, args)


def usage() -> str:
    """Return the help of gpt2kit itself."""
    verbs = "\n".join(f"  {verb:<10}{command.summary}" for verb, command in COMMANDS.items())
    return f"usage: gpt2kit COMMAND [arguments]\n\n{verbs}\n\ngpt2kit COMMAND --help lists the options of a command."


if __name__ == "__main__":
    main()
