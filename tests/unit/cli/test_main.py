"""The command `gpt2kit`: its verbs, their arguments, and the files that an installed package has."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Outcome, run_python
from setuptools import find_packages

from gpt2kit import __main__, __version__, config_files
from gpt2kit.cli import export, generate, parser, plot, test, train, train_cli, train_tokenizer
from gpt2kit.errors import UserError

_HELP = """
import contextlib, io, sys
sys.path.insert(0, sys.argv[1])
sys.argv = ["/usr/bin/gpt2kit"]
from gpt2kit.__main__ import COMMANDS, main
for verb in COMMANDS:
    if verb == "train":
        continue
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([verb, "--help"])
    assert out.getvalue().startswith(f"usage: gpt2kit {verb} "), out.getvalue()
assert "torch" not in sys.modules
print("checked")
"""


def test_every_verb_prints_its_help_without_loading_torch(tmp_path: Path) -> None:
    assert run_python(tmp_path, "-c", _HELP, ROOT / "src").stdout == "checked\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_gpt2kit_alone_lists_its_verbs(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main(args)
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in __main__.COMMANDS)


def test_a_wrong_verb_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(["genrate", "last"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: genrate: no such command. Did you mean generate?\n"
    __main__.main(["--version"])
    assert capsys.readouterr().out == f"gpt2kit {__version__}\n"


@pytest.mark.parametrize(
    ("function", "name", "values"),
    [
        (test.test, "ckpt_path", ["last", "poems"]),
        (generate.generate, "ckpt_path", ["last"]),
        (export.export, "ckpt_path", ["last"]),
        (plot.plot, "runs", ["last", "best"]),
        (train_tokenizer.train_tokenizer, "files", ["a.txt", "my texts"]),
    ],
)
def test_arguments_before_the_options_are_checkpoints_or_files(
    function: Callable[..., object], name: str, values: list[str]
) -> None:
    options = ["--output_dir=out"] if function is export.export else []
    assert parser.parse(function, [*values, *options]) == parser.parse(function, [*options, f"--{name}", *values])
    with pytest.raises(UserError, match=rf"{values[0]}: --{name} is also given"):
        parser.parse(function, [*values, *options, f"--{name}=x"])


def test_only_one_checkpoint_is_generated_from() -> None:
    with pytest.raises(UserError, match=r"unexpected argument 'Once' after 'last'\. Options begin with --"):
        parser.parse(generate.generate, ["last", "Once"])
    with pytest.raises(UserError, match="Text and checkpoints come before the options"):
        parser.parse(generate.generate, ["--seed", "1", "last"])


def test_arguments_of_train_are_its_text(call: Callable[..., Outcome], inside: Path) -> None:
    assert call(train.main, "none/", "--data.tokenizer=x")[2].startswith("error: none/")
    err = call(train.main, "none/", "--data.train_files=a.txt")[2]
    assert err == "error: none/: --data.train_files is also given. Leave out one of the two\n"
    (inside / "a.yaml").write_text("data: {train_files: other.txt}\n")
    for files in (["none/"], ["[none]"], ["none, 1.txt", "[b].txt"]):  # they come after config files
        err = call(train.main, *files, "--config=a.yaml", "--data.tokenizer=x")[2]
        assert files[0] in err and "other.txt" not in err


def test_config_files_have_names(options: list[str], inside: Path, call: Callable[..., Outcome]) -> None:
    def read(*arguments: str) -> Any:
        return train_cli.TrainCLI([*(option for option in options if "n_embd" not in option), *arguments]).config

    assert read("--model", "model/nano", "--trainer=trainer/debug").model.n_embd == 128
    assert read("--model.optimizer=optimizer/adamw.yaml").model.optimizer.class_path == "gpt2kit.optim.AdamW"
    (inside / "model").mkdir()
    (inside / "model/nano").write_text("n_embd: 64\n")
    assert read("--model=model/nano").model.n_embd == 64, "a file in the current folder comes first"
    code, _, err = call(train.main, "--config", "recipe/poem")
    assert code == 2 and err.endswith("Did you mean recipe/poems?\n") and "recipe/poem: cannot be read" in err


def test_an_installed_package_has_every_package_and_config_file() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {f"gpt2kit.configs.{path.parent.name}" for path in config_files.folder().rglob("*.yaml")}
    assert set(setuptools["packages"]) == {*find_packages(str(ROOT / "src")), *folders}
    assert setuptools["package-dir"]["gpt2kit.configs"] == "configs" and setuptools["package-data"]["*"] == ["*.yaml"]
