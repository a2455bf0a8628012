"""The names of commands and options in messages."""

from __future__ import annotations

import pytest

from gpt2kit import commands


@pytest.mark.parametrize(
    ("argv", "option", "command"),
    [
        (["trainer.py"], "--data.reader.field", "test.py"),
        (["/usr/bin/gpt2kit", "train"], "--data.reader.field", "gpt2kit test"),
        (["train_tokenizer.py", "a.txt"], "--reader.field", "test.py"),
        (["/lib/gpt2kit/__main__.py", "test", "last"], "--reader.field", "gpt2kit test"),
        (["my_script.py"], "data.reader.field", "gpt2kit test"),
    ],
)
def test_options_and_commands_are_named_as_the_user_types_them(
    argv: list[str], option: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert commands.reader_option("field") == option
    assert commands.command_name("test") == command
