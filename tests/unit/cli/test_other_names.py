"""Old names of options: an error on the command line names the new one; config files are read, with one note each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import COMMANDS, Outcome

from gpt2kit.cli import parser, train, train_cli
from gpt2kit.cli.other_names import RENAMED, RENAMED_KINDS, rename_settings
from gpt2kit.runs.lifecycle import flatten

# Old options of trainer.py as in a config file: name, old value, and the new value if it differs.
IN_CONFIG: list[tuple[str, Any, Any]] = [
    ("data.valid_share", 0.1, 0.1),
    ("data.test_share", 0.2, 0.2),
    ("data.global_batch", 32, 32),
    ("data.reader.init_args.bad_share", 0.3, 0.3),
    ("data.reader.on_bad_text", "replace", "replace"),
    ("model.schedule.init_args.final", 0.1, 0.1),
    ("model.schedule.init_args.decay", 0.5, 0.5),
    ("model.new_vocabulary", True, True),
    ("model.lora", 8, 8),
    ("model.lora", None, 0),
    ("model.skip_nonfinite", 3, 3),
    ("model.max_scaler_skips", 7, 7),
    ("data.tokenizer.min_count", 2, 2),
    ("data.tokenizer.sample", 1000, 1000),
    ("override", False, False),
    ("find", None, None),
]
# Old options of the other commands.
ON_COMMAND_LINE = {
    "min_count": "train_tokenizer.py",
    "sample": "train_tokenizer.py",
    "banned_words": "generate.py",
    "strip_special": "generate.py",
    "copies": "test.py",
    "json": "test.py",
    "reader.bad_share": "test.py",
    "reader.on_bad_text": "train_tokenizer.py",
    "at_once": "web_demo.py",
}


class Parsed(Exception):
    """Carries the parsed options of trainer.py."""


class ParseOnly(train_cli.TrainCLI):
    def before_instantiate_classes(self) -> None:
        raise Parsed(self.config)


@pytest.fixture
def parse(inside: Path, call: Callable[..., Outcome]) -> Callable[..., tuple[dict[str, Any], str]]:
    """Return the flat options of trainer.py and what was printed on stderr."""

    def parse(*args: str) -> tuple[dict[str, Any], str]:
        settings: dict[str, Any] = {}

        def main(argv: list[str]) -> None:
            try:
                ParseOnly(argv)
            except Parsed as parsed:
                settings.update(flatten(parsed.args[0].as_dict()))

        code, _, err = call(main, "--data.train_files=text.txt", *args)
        assert code == 0, err
        return settings, err

    return parse


def expected_name(old: str) -> str:
    return next(old.removesuffix(name) + RENAMED[name] for name in RENAMED if f".{old}".endswith(f".{name}"))


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(("old", "value", "expected"), IN_CONFIG)
def test_config_file_with_an_old_name_is_read_with_one_note(
    old: str, value: Any, expected: Any, parse: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    config = nested(old, value)
    if "schedule" in old:
        config["model"]["schedule"]["class_path"] = "gpt2kit.optim.WarmupStableDecay"
    if "data.reader.init_args" in old:
        config["data"]["reader"]["class_path"] = "gpt2kit.text.Reader"
    Path("old.yaml").write_text(yaml.safe_dump(config))
    short = old.replace(".init_args", "")
    new = expected_name(short)
    settings, err = parse("--config=old.yaml")
    assert err == f"note: old.yaml uses old names: {short} (now {new})\n"
    [parsed] = [settings[name] for name in settings if name.replace(".init_args", "") == new]
    assert parsed == expected


def test_every_old_name_is_tested() -> None:
    names = [name.replace(".init_args", "") for name, *_ in IN_CONFIG] + list(ON_COMMAND_LINE)
    assert [old for old in RENAMED if not any(f".{name}".endswith(f".{old}") for name in names)] == []


def test_one_note_lists_all_old_names_of_a_file(parse: Callable[..., tuple[dict[str, Any], str]]) -> None:
    Path("configs").mkdir()
    Path("configs/model.yaml").write_text("{lora: 4, n_layer: 3, layer_norm_epsilon: 1e-6}\n")
    Path("configs/old.yaml").write_text(
        "model: model.yaml\ndata: {valid_share: 0.1, test_share: 0.2, tokenizer: {kind: unigram}}\n"
    )
    settings, err = parse("--config=configs/old.yaml", "--data.block_size=64")
    assert err.splitlines() == [
        "note: configs/model.yaml uses old names: model.lora (now model.lora_r)",
        "note: configs/old.yaml uses old names: data.valid_share (now data.valid_fraction), data.test_share (now "
        "data.test_fraction), data.tokenizer.kind unigram (now spm-unigram)",
    ]
    assert (settings["model.lora_r"], settings["model.n_layer"], settings["model.layer_norm_epsilon"]) == (4, 3, 1e-6)
    assert (settings["data.valid_fraction"], settings["data.test_fraction"], settings["data.block_size"]) == (
        0.1,
        0.2,
        64,
    )
    assert settings["data.tokenizer.kind"] == "spm-unigram"


def test_old_and_new_name_in_one_file_are_refused(call: Callable[..., Outcome], inside: Path) -> None:
    Path("old.yaml").write_text("data:\n  valid_share: 0.1\n  valid_fraction: 0.2\n")
    code, _, err = call(train.main, "--data.train_files=a.txt", "--config=old.yaml")
    assert (
        code == 2 and "old.yaml line 2: data.valid_share: an old name of data.valid_fraction, which is also set" in err
    )


@pytest.mark.parametrize("old", sorted({name.replace(".init_args", "") for name, *_ in IN_CONFIG}))
def test_old_option_of_the_trainer_is_unknown_and_the_new_one_is_named(
    old: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(train.main, *options, f"--{old}=1")
    new = expected_name(old)
    assert code == 2 and f"--{old}: " in err and "no such option" in err
    assert f"Did you mean --{new}?" in err or f"Did you mean {new.rpartition('.')[2]}?" in err


@pytest.mark.parametrize(("old", "script"), ON_COMMAND_LINE.items())
def test_old_option_of_a_script_is_unknown_and_the_new_one_is_named(
    old: str, script: str, call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(lambda args: parser.run(COMMANDS[script], args), f"--{old}=1")
    new = expected_name(old)
    assert code == 2 and f"--{old}: no such option. Did you mean --{new}?" in err


@pytest.mark.parametrize(("old", "new"), RENAMED_KINDS.items())
@pytest.mark.parametrize("form", ["--data.tokenizer.kind={}", "--data.tokenizer={{kind: {}, vocab_size: 300}}"])
def test_old_tokenizer_kinds_are_read(
    old: str, new: str, form: str, parse: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    settings, err = parse(form.format(old))
    assert settings["data.tokenizer.kind"] == new
    assert err == f"note: --data.tokenizer.kind uses old names: {old} (now {new})\n"


def test_train_tokenizer_reads_old_kinds(corpus: Path, call: Callable[..., Outcome], inside: Path) -> None:
    def main(args: list[str]) -> None:
        parser.run(COMMANDS["train_tokenizer.py"], args)

    arguments = ["--files", corpus / "train.txt", "--vocab_size", 300]
    code, out, err = call(main, *arguments, "--kind", "bytefallback", "--output_dir", "old")
    assert code == 0 and err.count("note: --kind uses old names: bytefallback (now spm-bpe)\n") == 1
    code, out, err = call(main, *arguments, "--kind", "spm-bpe", "--output_dir", "new")
    assert code == 0 and Path("old/tokenizer.json").read_bytes() == Path("new/tokenizer.json").read_bytes()
    code, out, err = call(main, *arguments, "--compare", "bytebpe:300", "char")
    assert code == 0 and "bpe:300" in out and "note: --compare uses old names: bytebpe (now bpe)\n" in err


def test_settings_of_an_earlier_run_are_compared_under_their_new_names() -> None:
    earlier = {
        "data.valid_share": 0.1,
        "model.lora": None,
        "data.reader.init_args.on_bad_text": "stop",
        "model.schedule.init_args.decay": 0.5,
        "data.tokenizer.kind": "bytebpe",
    }
    current = {
        "data.valid_fraction": 0.1,
        "model.lora_r": 0,
        "data.reader.init_args.errors": "stop",
        "model.schedule.init_args.decay": 0.5,  # of a schedule that is not gpt2kit's
        "data.tokenizer.kind": "bpe",
    }
    assert rename_settings(earlier, current) == current


def test_options_of_another_section_are_moved(parse: Callable[..., tuple[dict[str, Any], str]], inside: Path) -> None:
    values = {"tokenizer_model": "words", "valid_file": "v.txt", "test_file": "t.txt", "block_size": 48, "n_layer": 3}
    config = {"model": values, "trainer": {"seed_everything": 1000}}
    (inside / "theirs.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings, err = parse("--config=theirs.yaml")
    names = ("data.tokenizer", "data.valid_files", "data.test_files", "data.block_size", "seed_everything")
    assert [settings[name] for name in names] == ["words", "v.txt", "t.txt", 48, 1000]
    assert settings["model.n_layer"] == 3 and err.count("note: theirs.yaml uses old names") == 1
    assert "model.block_size (now data.block_size)" in err and "trainer.seed_everything (now seed_everything)" in err


def test_the_options_of_another_program_are_added_to_a_printed_config(
    parse: Callable[..., tuple[dict[str, Any], str]], call: Callable[..., Outcome], inside: Path
) -> None:
    """As the README of colorfulscoop's trainer says: print the defaults to a file, and edit it."""
    code, printed, _ = call(train.main, "--print_config")
    assert code == 0 and "  block_size: 256" in printed and "seed_everything: 1\n" in printed
    moved = {"tokenizer_model": "words", "train_file": "a.txt", "valid_file": "v.txt", "test_file": "t.txt"}
    added = "".join(f"  {name}: {value}\n" for name, value in {**moved, "block_size": 48}.items())
    edited = printed.replace("\nmodel:\n", f"\nmodel:\n{added}").replace("  precision: auto", "  precision: 16")
    edited = edited.replace("\ntrainer:\n", "\ntrainer:\n  seed_everything: 1000\n").replace(
        "n_layer: auto", "n_layer: 3"
    )
    (inside / "default_config.yaml").write_text(edited, encoding="utf-8")
    settings, err = parse("--config=default_config.yaml")
    names = ("data.tokenizer", "data.train_files", "data.valid_files", "data.test_files", "data.block_size")
    assert [settings[name] for name in names] == ["words", "a.txt", "v.txt", "t.txt", 48]
    assert settings["seed_everything"] == 1000 and settings["model.n_layer"] == 3
    assert settings["trainer.precision"] in (16, "16")
    assert err.count("note: default_config.yaml uses old names") == 1 and len(err.splitlines()) == 1


def test_an_option_does_not_replace_another_that_is_set(inside: Path, call: Callable[..., Outcome]) -> None:
    config = "model:\n  block_size: 48\ndata:\n  block_size: 32\n"
    (inside / "both.yaml").write_text(config, encoding="utf-8")
    code, _, err = call(train.main, "--data.train_files=a.txt", "--config=both.yaml")
    assert code == 2
    assert "both.yaml line 2: model.block_size: contradicts data.block_size in line 4. Omit one of them\n" in err


def test_the_same_value_in_both_places_is_read(parse: Callable[..., tuple[dict[str, Any], str]], inside: Path) -> None:
    (inside / "both.yaml").write_text("model: {block_size: 48}\ndata: {block_size: 48}\n", encoding="utf-8")
    settings, err = parse("--config=both.yaml")
    assert settings["data.block_size"] == 48 and "model.block_size (now data.block_size)" in err
