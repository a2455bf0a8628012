"""All that a command line and its config files say wrong is told at once, a line for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from gpt2kit.cli import train
from gpt2kit.cli.parsing import nearest

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
    "data.blok_size: no such option. Did you mean data.block_size?",
    "model.n_layr: no such option. Did you mean model.n_layer?",
    "model.n_head four: must be a whole number",
    "model.schedule.warmp: gpt2kit.optim.Cosine has no such option. Did you mean warmup?",
    "trainer.max_steeps: no such option. Did you mean trainer.max_steps?",
    "trainer.callbacks.promts: gpt2kit.callbacks.TextSamples has no such option. Did you mean prompts?",
)
WORDS = ["stray", "--model.n_embed", "32", "--data.batch_size=x", "--trainer.precision=half", "--model.lora=1.5"]
IN_WORDS = (
    "--model.n_embed: no such option. Did you mean model.n_embd?",
    "--data.batch_size x: must be a whole number",
    "--trainer.precision half: must be one of auto, 32-true, bf16-mixed",
    "--model.lora 1.5: must be a whole number or null",
    "stray: belongs to no option",
)


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_every_mistake_is_told_once(
    plan: list[str], options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_text(CONFIG)
    code, out, err = call(train.main, *options[:1], "--config", "config.yaml", *options[1:], *WORDS, *plan)
    assert code == 2 and not out and err.count("\n") == 1
    for said in (*IN_CONFIG, *IN_WORDS):
        assert err.count(said) == 1, f"{said}: {err}"
    assert "EarlyStoping" in err


def test_a_plan_goes_on_without_what_it_does_not_know(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "bad.txt").write_bytes(b"\xff\xfe\xfa broken \x80\n" * 5)
    (inside / "config.yaml").write_text("model:\n  n_layr: 4\n")
    typos = ["--data.blok_size=3", "--config=config.yaml", "--plan"]
    told = ["blok_size: no such option", "n_layr: no such option"]
    for words, said in (
        (["--save_every=0", "--data.valid_files=nowhere.txt"], ["save_every 0", "nowhere.txt"]),
        (["--save_every=0", "--data.valid_files=bad.txt"], ["save_every 0", "bad.txt"]),
        (["--data.global_batch=9"], ["data.global_batch 9: not a multiple"]),
        (["--ckpt_path=none"], ["none: no such checkpoint"]),
        (["--model.init_from=./none"], ["none: no such checkpoint"]),
        (["--trainer.max_time=1h"], ["trainer.max_time 1h: must be DD:HH:MM:SS"]),
    ):
        code, out, err = call(train.main, *options, *typos, *words)
        assert code == 2 and not out and err.count("\n") == 1
        for problem in (*told, *said):
            assert err.count(problem) == 1, f"{problem}: {err}"
    code, _, err = call(train.main, *options, *typos[:2])
    assert code == 2 and all(problem in err for problem in told), "a run is refused with the same words"


def test_a_default_in_the_place_of_a_wrong_value_is_not_blamed(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    _, _, err = call(train.main, *options, "--model.n_head=four", "--model.n_embd=30", "--save_every=0", "--plan")
    assert "n_head four: must be" in err and "save_every 0" in err and "n_head 12" not in err
    rest = [word for word in options if not word.startswith("--data.train_files")]
    _, _, err = call(train.main, *rest, "--data.train_fils=a.txt", "--data.valid_files=nowhere.txt", "--plan")
    assert err.count("train_files") == 2 and "data.train_files: missing" in err and "nowhere.txt" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model=3"], "--model 3: a section, not an option"),
        (["--model.optimizer=Moun"], "--model.optimizer Moun: no such class. Did you mean gpt2kit.optim.Muon?"),
        (["--model.optimizer=Muon"], "one of several. Say which: torch.optim.Muon, gpt2kit.optim.Muon"),
        (["--model.optimizer.lrr=3"], "--model.optimizer.lrr: gpt2kit.optim.Muon has no such option. Did you mean lr?"),
        (["--model.optimizer.lr=x"], "--model.optimizer.lr x: must be a number"),
        (["--data.train_files"], "--data.train_files: expected one argument"),
        (["", "--model.n_layer=1"], "belongs to no option"),
        (["my text.txt", "other", "--model.n_layer=1"], "my text.txt: belongs to no option"),
        (["--model.n_layr=3", "--print_config"], "--model.n_layr: no such option"),
        (["--trainer.callbacks=[EarlyStopping]"], "pytorch_lightning.callbacks.EarlyStopping needs monitor"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.patience=b"],
            "--trainer.callbacks.patience b: must be a whole number",
        ),
        (["--data.train_files=[]"], "data.train_files: names no file"),
        (["--trainer.strategy=ddpp"], "trainer: You selected an invalid strategy name"),
        (["--seed_everything=-5"], "seed_everything -5: must be from 0 to 4294967295"),
        (["--config=."], "cannot be read"),
    ],
)
def test_what_is_said(
    words: list[str], said: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    code, _, err = call(train.main, *options, *words)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_build_of_parts_and_a_schedule_know_the_mistakes_of_a_plan(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    for words, said in (
        (["--part=1/2"], "--plan: not with --part"),
        (["--merge=2"], "--plan: not with --part"),
        (["--model.schedule.warmup=-5"], "model.schedule warmup -5"),
        (["--trainer.accelerator=xpu9"], "invalid accelerator name"),
    ):
        code, out, err = call(train.main, *options, *words, "--data.blokc_size=3", "--plan")
        assert code == 2 and not out and said in err and err.count("blokc_size: no such option") == 1
    assert not (inside / "cache").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ckpt_path: none.ckpt\n", "ckpt_path: not in a config file; on the command line, as --ckpt_path"),
        ("find: lr\nverify_resume: true\n", "verify_resume: not in a config file"),
        ('plan: "false"\n', "plan false: must be true or false"),
        ("override: maybe\n", "override maybe: must be true or false"),
        ("? [a, b]\n: 3\n", "config.yaml line 1: a key must be the name of an option"),
        ("a: \0\n", "Is this a config file?"),
    ],
)
def test_a_config_file_says_nothing_that_nobody_hears(
    content: str, said: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "config.yaml").write_text(content)
    code, _, err = call(train.main, *options, "-cconfig.yaml")
    assert code == 2 and said in err and err.count("\n") == 1


def test_print_config_needs_nothing_given(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.main(["--print_config", "--model.n_layer=3"])
    assert left.value.code == 0 and "n_layer: 3" in capsys.readouterr().out


def test_typos_beside_a_checkpoint_that_is_not_there(call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(train.main, "--ckpt_path=last", "--model.n_lyer=3")
    assert code == 2 and "n_lyer: no such option" in err and "missing" not in err


@pytest.mark.parametrize("content", ["model:\ndata: {}\n", "model: 3\n", "trainer: [a]\n"])
def test_a_section_without_options(
    content: str, options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    """A section whose lines are all commented out would take every default of that section away."""
    (inside / "config.yaml").write_text(content)
    (inside / "other.yaml").write_text("")
    code, _, err = call(train.main, "--config=config.yaml", "-c", "other.yaml", *options)
    assert code == 2 and "has no options under it" in err and "other.yaml: empty" in err and err.count("\n") == 1


def test_nearest() -> None:
    assert nearest("n_layr", ["model.n_layer", "data.n"]) == ". Did you mean model.n_layer?"
    assert nearest("qqq", ["model.n_layer"]) == ""
