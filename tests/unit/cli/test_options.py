"""All unknown options are reported at once, before values are parsed; then all values that are invalid."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import Outcome

from gpt2kit.cli import export, parser, train, train_cli
from gpt2kit.errors import nearest

CONFIG = """
data: {blok_size: 3}
model:
  n_layr: 4
  n_head: four
  schedule: {class_path: gpt2kit.optim.Cosine, init_args: {warmp: 0.1}}
trainer:
  max_steeps: 3
  callbacks:
    - {class_path: gpt2kit.callbacks.TextSamples, init_args: {promts: [a]}}
    - {class_path: EarlyStoping}
"""
IN_CONFIG = (
    "config.yaml line 2: data.blok_size: no such option. Did you mean data.block_size?",
    "config.yaml line 4: model.n_layr: no such option. Did you mean model.n_layer?",
    "config.yaml line 6: model.schedule.warmp: gpt2kit.optim.Cosine has no such option. Did you mean warmup?",
    "config.yaml line 8: trainer.max_steeps: no such option. Did you mean trainer.max_steps?",
    "trainer.callbacks.promts: gpt2kit.callbacks.TextSamples has no such option. Did you mean prompts?",
    "trainer.callbacks EarlyStoping: no such class. Did you mean",
)
ARGUMENTS = ["stray", "--model.n_embed", "32", "--data.batch_size=x", "--save_every"]
IN_ARGUMENTS = (
    "--model.n_embed: no such option. Did you mean --model.n_embd?",
    "unexpected argument 'stray'",
    "--save_every: needs a value",
)


def refusal(outcome: Outcome) -> str:
    """Check that a command was refused with a one-line error; return the line."""
    code, out, err = outcome
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_all_unknown_options_are_reported_once(
    plan: list[str], options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_text(CONFIG)
    arguments = [*options[:1], "--config", "config.yaml", *ARGUMENTS[:1], *options[1:], *plan, *ARGUMENTS[1:]]
    err = refusal(call(train.main, *arguments))
    for message in (*IN_CONFIG, *IN_ARGUMENTS):
        assert err.count(message) == 1, f"{message}: {err}"
    assert "n_head" not in err and "batch_size" not in err, "values are parsed when all options are known"


def test_unknown_options_in_included_files_are_reported(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "sub").mkdir()
    (inside / "sub/model.yaml").write_text("n_layr: 1\n")
    (inside / "sub/optimizer.yaml").write_text("class_path: gpt2kit.optim.Muon\ninit_args:\n  lrr: 1\n")
    (inside / "sub/config.yaml").write_text("model: model.yaml\n")
    (inside / "ok.yaml").write_text("trainer: sub/none.yaml\n")
    arguments = ["--model.optimizer=sub/optimizer.yaml", "--config=sub/config.yaml", "--config=ok.yaml"]
    err = refusal(call(train.main, *options, *arguments))
    assert "sub/model.yaml line 1: model.n_layr: no such option" in err
    assert "sub/optimizer.yaml line 3: model.optimizer.lrr: gpt2kit.optim.Muon has no such option" in err
    assert "ok.yaml line 1: trainer sub/none.yaml: neither options nor a config file" in err
    err = refusal(call(train.main, *options, "--model", "sub/model.yaml"))
    assert "sub/model.yaml line 1: model.n_layr: no such option" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=3"], "--model 3: neither options nor a config file"),
        (["--model.optimizer=Moun"], "--model.optimizer Moun: no such class. Did you mean gpt2kit.optim.Muon?"),
        (["--model.optimizer=Muon"], "torch.optim.Muon, gpt2kit.optim.Muon"),
        (["--model.optimizer.lrr=3"], "--model.optimizer.lrr: gpt2kit.optim.Muon has no such option. Did you mean lr?"),
        (["--model.optimizer.lr=x"], "--model.optimizer.lr x: must be a number"),
        (
            ["--model.n_layer", "x", "--data.batch_size=y"],
            "--model.n_layer x: must be a whole number or auto; --data.batch_size y: must be a whole number\n",
        ),
        (["--trainer.precision=half"], "--trainer.precision half: must be one of auto, 32-true, bf16-mixed"),
        (["--model.lora_r=1.5"], "--model.lora_r 1.5: must be a whole number"),
        (["--data.reader.min_chars=x"], "--data.reader.min_chars x: must be a whole number"),
        (["--data.train_files"], "--data.train_files: needs a value"),
        (["--ckpt_path"], "--ckpt_path: needs a value"),
        (["--tune", "--plan"], "--tune: needs a value"),
        (["-c"], "-c: needs a value"),
        (["-model.n_layer=3"], "-model.n_layer: no such option. Did you mean --model.n_layer?"),
        (["--model.n_layer3"], "--model.n_layer3: no such option. Did you mean --model.n_layer?"),
        (["--model.n_layer.deep=3"], "--model.n_layer.deep: no such option"),
        (["model.n_layer=3"], "unexpected argument 'model.n_layer=3'. Did you mean --model.n_layer=3?"),
        (["", "--model.n_layer=1"], "unexpected argument ''"),
        (["my text.txt", "--model.n_layer=1"], "unexpected argument 'my text.txt'"),
        (["--plan", "true"], "unexpected argument 'true' after --plan, which takes no value"),
        (["--plan=true"], "unexpected argument 'true' after --plan, which takes no value"),
        (["--verify_resume=true"], "unexpected argument 'true' after --verify_resume, which takes no value"),
        (["--data.train_files", "a", "b"], "unexpected argument 'b' after --data.train_files, which takes one value"),
        (["--model.n_layr=3", "--print_config"], "--model.n_layr: no such option"),
        (["--trainer.callbacks=[EarlyStopping]"], "--trainer.callbacks: EarlyStopping needs monitor"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.patience=b"],
            "--trainer.callbacks.patience b: must be a whole number",
        ),
        (["--data.train_files=[]"], "data.train_files: empty"),
        (["--data.train_files={a: {files: x, wieght: 2}}"], "TextOptions has no such option. Did you mean weight?"),
        (["--data.train_files={a: {weight: 2}}"], "--data.train_files.a: needs files"),
        (["--data.train_files={a: {files: x, weight: much}}"], "--data.train_files.a.weight much: must be a number"),
        (["--data.train_files={a: {files: x, weight: 0}}"], "data.train_files.a.weight 0.0: must be above 0"),
        (["--data.train_files={a: {files: x, reader: {min_char: 1}}}"], "no such option. Did you mean min_chars?"),
        (
            ["--data.train_files={a b: x}"],
            "--data.train_files.a b: not a name: a letter, then letters, digits, - and _",
        ),
        (["--data.train_files={null: x}"], "--data.train_files.null: not a name"),
        (["--data.train_files={a: 3}"], "--data.train_files.a 3: must be options or a list or text"),
        (["--data.valid_files={a: {files: x, weight: 2}}"], "data.valid_files.a.weight 2.0: only for data.train_files"),
        (["--data.train_files={a: x}", "--data.streaming=true"], "not supported with several texts with names"),
        (["--best_text=a"], "--best_text a: only for several texts with names (data.valid_files)"),
        (["--trainer.strategy=ddpp"], "trainer: You selected an invalid strategy name"),
        (["--seed_everything=-5"], "seed_everything -5: must be at least 0"),
        (["--config=."], ".: cannot be read"),
        (["--help=full"], "--help=full: unknown kind of help. Use --help or --help=all"),
    ],
)
def test_mistakes_on_the_command_line_are_reported(
    arguments: list[str], message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    assert message in refusal(call(train.main, *options, *arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ckpt_path: none.ckpt\n", "ckpt_path: not in a config file; on the command line, as --ckpt_path"),
        ("tune: lr\nverify_resume: true\n", "verify_resume: not in a config file"),
        ('plan: "false"\n', "plan false: must be true or false"),
        ("override_optimizer: maybe\n", "override_optimizer maybe: must be true or false"),
        ("? [a, b]\n: 3\n", "config.yaml line 1: (a key without a name): no such option"),
        ("a: \0\n", "Is this a config file?"),
        ("model:\n  n_head: four\n", "config.yaml line 2: model.n_head four: must be a whole number"),
        ("model:\n  optimizer: 3\n", "config.yaml line 2: model.optimizer 3: must be a class"),
        (
            "model:\n  optimizer: {class_path: gpt2kit.optim.Muon, lr: 1}\n",
            "config.yaml line 2: model.optimizer.lr: not accepted next to class_path. Move it under init_args",
        ),
        ("[a, b\n", "config.yaml line 2, column 1: "),
        ("- a\n", "config.yaml: not a mapping of options"),
        ("model: &a\n  optimizer: *a\n", "config.yaml: nested more than 100 levels deep"),
        ("[" * 100_000, "nest"),  # PyYAML 6.0.4 has a limit of its own
        (b"\xff\xfe\x00", "config.yaml: not UTF-8 text"),
        ("a: !!bool x\n", "config.yaml line 1, column 4: 'x' is no bool"),
        ("a: !!int ''\n", "config.yaml line 1, column 4: '' is no int"),
        ("print_config: true\nhelp: true\n", "line 1: print_config: no such option"),
    ],
)
def test_mistakes_in_a_config_file_are_reported(
    content: str | bytes, message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refusal(call(train.main, *options, "-cconfig.yaml"))


@pytest.mark.parametrize("kind", ["keys", "aliases", "merges"])
def test_a_hostile_config_file_is_refused_quickly(
    kind: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    tens = [(f"a{i}", f"*a{i - 1}, " * 10) for i in range(1, 10)]
    texts = {
        "keys": "".join(f"key_{i}: 3\n" for i in range(20_000)),
        "aliases": "a0: &a0 [x]\n" + "".join(f"{name}: &{name} [{ten}]\n" for name, ten in tens),
        "merges": "a0: &a0 {k: 1}\n" + "".join(f"{name}: &{name} {{<<: [{ten}]}}\n" for name, ten in tens),
    }
    (inside / "config.yaml").write_text(texts[kind])
    (inside / "small.yaml").write_text("key: 3\n")
    seconds = []
    for name in ("small.yaml", "config.yaml"):
        start = time.process_time()
        err = refusal(call(train.main, *options, "--config", name))
        seconds.append(time.process_time() - start)
    assert seconds[1] - seconds[0] < 10  # half a second; minutes if every unknown key were compared with every option
    if kind == "keys":
        assert err.count("no such option") == 20 and "; and 19,980 more" in err
    else:
        assert "its aliases expand to more than 100,000 values" in err


@pytest.mark.parametrize(("kind", "message"), [("pipe", "a named pipe"), ("device", "more than 4,194,304 characters")])
def test_an_endless_config_file_is_refused(kind: str, message: str, call: Callable[..., Outcome], inside: Path) -> None:
    path = inside / "config.yaml"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert message in refusal(call(train.main, "--config", "config.yaml"))


def test_aliases_and_merges_are_accepted(options: list[str], inside: Path) -> None:
    (inside / "config.yaml").write_text("model: {<<: &size {n_layer: 1, n_embd: 64}}\n")
    others = [option for option in options if "n_layer" not in option and "n_embd" not in option]
    assert train_cli.TrainCLI([*others, "--config=config.yaml"]).model.shape["n_embd"] == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.seed=3"], "--data.seed 3: seed_everything decides it"),
        (["--model.n_positions=99"], "--model.n_positions 99: data.block_size decides it"),
        (["--model.vocab_size=321"], "model.vocab_size 321: the tokenizer decides it, and gives 320"),
        (["--model.vocab_size=big"], "model.vocab_size big: the tokenizer decides it, and gives 320"),
        (["--model.document_start=0"], "model.document_start 0: the tokenizer decides it, and gives None"),
        (["--config=config.yaml"], "config.yaml line 1: model.n_positions 8: data.block_size decides it"),
    ],
)
def test_linked_options_with_different_values_are_refused(
    arguments: list[str], message: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_text("model: {n_positions: 8}\n")
    assert message in refusal(call(train.main, *options, *arguments))


def test_a_run_accepts_linked_options_with_equal_values(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    linked = ["--data.seed=1", "--model.n_positions=16", "--model.vocab_size=320", "--model.document_start=0"]
    code, _, err = call(train.main, *options, *linked, "--data.mask_documents=true", "--trainer.max_steps=1")
    assert code == 0, err


def test_linked_options_with_equal_values_are_parsed(options: list[str], inside: Path) -> None:
    (inside / "config.yaml").write_text("model: {n_positions: 16}\n")
    arguments = ["--config=config.yaml", "--data.seed=3", "--model.n_positions", "16", "--seed_everything=3"]
    cli = train_cli.TrainCLI([*options, *arguments])
    assert cli.datamodule.seed == 3 and cli.model.shape["n_positions"] == 16


def test_a_plan_reports_all_invalid_values_and_files(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "bad.txt").write_bytes(b"\xff\xfe\xfa broken \x80\n" * 5)
    for arguments, problems in (
        (["--save_every=0", "--data.valid_files=nowhere.txt"], ["save_every 0", "nowhere.txt"]),
        (["--save_every=0", "--data.valid_files=bad.txt"], ["save_every 0", "bad.txt"]),
        (["--data.global_batch_size=9"], ["data.global_batch_size 9: not a multiple"]),
        (["--ckpt_path=none", "--save_every=0"], ["none: no such checkpoint", "save_every 0"]),
        (["--model.init_from=./none", "--save_every=0"], ["none: no such checkpoint", "save_every 0"]),
        (["--trainer.max_time=1 hour", "--save_every=0"], ["trainer.max_time 1 hour: not a duration", "save_every 0"]),
        (["--part=1/2"], ["--plan: not with --part"]),
        (["--merge=2"], ["--plan: not with --part"]),
        (["--model.schedule.warmup=-5"], ["model.schedule.warmup -5"]),
        (["--trainer.accelerator=xpu9"], ["invalid accelerator name"]),
    ):
        err = refusal(call(train.main, *options, "--plan", *arguments))
        for problem in problems:
            assert err.count(problem) == 1, f"{problem}: {err}"
        err = refusal(call(train.main, *options, "--plan", *arguments, "--data.blok_size=3"))
        assert err == "error: --data.blok_size: no such option. Did you mean --data.block_size?\n"
    assert not (inside / "cache").exists()


def test_all_missing_options_are_reported(call: Callable[..., Outcome], inside: Path) -> None:
    assert refusal(call(train.main)) == (
        "error: --data.train_files: missing, and has no default. Add --data.train_files VALUE\n"
    )

    def copy(source: str, target: str, force: bool = False) -> None:
        raise AssertionError

    err = refusal(call(lambda args: parser.run(copy, args), "--force"))
    assert err == (
        "error: --source: missing, and has no default. Add --source VALUE; --target: missing, and has no default. Add "
        "--target VALUE\n"
    )


def test_a_flag_takes_no_value(call: Callable[..., Outcome], inside: Path) -> None:
    arguments = ["--ckpt_path", "a", "--output_dir", "b", "--gguf", "true"]
    err = refusal(call(lambda args: parser.run(export.export, args), *arguments))
    assert err == "error: unexpected argument 'true' after --gguf, which takes no value\n"


def test_print_config_needs_no_required_options(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["--print_config", "--model.n_layer=3"])
    assert stop.value.code == 0 and "n_layer: 3" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--model.optimizer.help=Moun", "--trainer.logger.help", "--print_config=x"])
def test_a_wrong_request_for_help_is_reported_before_missing_options(
    option: str, call: Callable[..., Outcome], inside: Path
) -> None:
    err = refusal(call(train.main, option))
    assert option.partition("=")[0] in err and "missing" not in err


def test_a_typo_is_reported_before_a_missing_checkpoint(call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(train.main, "--ckpt_path=last", "--model.n_lyer=3")
    assert code == 2 and "n_lyer: no such option" in err and "missing" not in err


@pytest.mark.parametrize("content", ["model:\ndata: {}\n", "model: 3\n", "trainer: [a]\n"])
def test_a_section_without_options_is_refused(
    content: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    """A section whose lines are all commented out would remove all defaults of that section."""
    (inside / "config.yaml").write_text(content)
    (inside / "other.yaml").write_text("")
    err = refusal(call(train.main, "--config=config.yaml", "-c", "other.yaml", *options))
    assert "neither options nor a config file" in err and "other.yaml: empty" in err


@pytest.mark.parametrize("value", ["other.yaml", "{x: 3}"])
def test_a_config_file_cannot_name_another(
    value: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    """The options in the other file would not be checked."""
    (inside / "config.yaml").write_text(f"config: {value}\n")
    (inside / "other.yaml").write_text("trainer: {max_steps: 3}\n")
    err = refusal(call(train.main, "--config=config.yaml", *options))
    assert "config.yaml line 1: config: a config file cannot name another one. Give each with --config" in err


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("n_layr", ["model.n_layer", "data.n"]) == ". Did you mean model.n_layer?"
    assert nearest("qqq", ["model.n_layer"]) == ""


@pytest.mark.parametrize("option", ["--verify_resume", "--tune=lr"])
def test_verify_resume_and_tune_refuse_a_checkpoint(
    option: str, options: list[str], call: Callable[..., Outcome]
) -> None:
    code, _, err = call(train.main, *options, option, "--ckpt_path=last")
    assert code == 2 and "Leave out --ckpt_path" in err


@pytest.mark.parametrize(
    ("named", "lr", "weight_decay"), [("gpt2kit.optim.AdamW", "auto", "auto"), ("gpt2kit.optim.Muon", 0.5, 0.3)]
)
def test_only_the_same_class_keeps_the_options_in_a_config_file(
    named: str, lr: object, weight_decay: object, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    muon = "{class_path: gpt2kit.optim.Muon, init_args: {lr: 0.5, weight_decay: 0.3}}"
    (inside / "config.yaml").write_text(f"model: {{optimizer: {muon}}}\n")
    with pytest.raises(SystemExit):
        train.main(["--config=config.yaml", f"--model.optimizer={named}", "--print_config"])
    init_args = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]["init_args"]
    assert (init_args["lr"], init_args["weight_decay"]) == (lr, weight_decay)


def test_another_optimizer_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--print_config"])
    init_args = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]["init_args"]
    assert (init_args["lr"], init_args["momentum"]) == (0.1, 0.0), "not those of Muon"
