"""Near duplicates are left out of a run, which reports them, resumes exactly and is tested on what it held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import Outcome, final_weights, logged_rows, same_weights

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import parser, train, train_tokenizer
from gpt2kit.cli import test as evaluate

pytestmark = pytest.mark.usefixtures("own_runs")

Call = Callable[..., Outcome]
RUN = Path("lightning_logs/version_0")
NOTE = "train text: 400 near duplicates left out (50.0%)"


@pytest.fixture
def arguments(options: list[str], inside: Path) -> list[str]:
    """Arguments of a run on 400 lines and a near copy of each, and on separate validation and test text."""
    chance = random.Random(1)
    lines = [" ".join(f"word{chance.randrange(1000)}" for _ in range(12)) for _ in range(440)]
    copies = [line.replace(" ", ", ") + "." for line in lines]
    for name, own in {"train": lines[:400] + copies[:400], "valid": lines[400:420], "test": lines[420:]}.items():
        (inside / f"{name}.txt").write_text("".join(f"{line}\n" for line in own))
    kept = [option for option in options if not option.startswith(("--data.cache_dir", "--data.t", "--data.v"))]
    files = [f"--data.{split}_files={split}.txt" for split in ("train", "valid", "test")]
    tokenizer = next(option for option in options if option.startswith("--data.tokenizer"))
    return [*kept, *files, tokenizer, "--data.reader.drop_near_duplicates=0.8", "--save_every=2"]


def test_a_run_reports_what_it_leaves_out_and_keeps_it(arguments: list[str], call: Call) -> None:
    code, out, err = call(train.main, *arguments, "--trainer.max_steps=2", "--plan")
    assert code == 0 and NOTE in out and "train 400 documents" in out, err
    code, _, err = call(train.main, *arguments, "--trainer.max_steps=4")
    assert code == 0 and NOTE in err and "train 400 documents" in err, err
    (start,) = json.loads((RUN / "start.json").read_text())
    assert start["text"]["notes"] == [NOTE] and start["text"]["splits"]["valid"]["documents"] == 20
    assert checkpoint.peek(RUN).metadata["reader"]["drop_near_duplicates"] == 0.8
    code, out, err = call(partial(parser.run, evaluate.test), RUN, "--json_output", "-")
    assert code == 0 and json.loads(out)["text"]["documents"] == 20, err


def test_a_run_is_resumed_exactly_also_where_the_text_is_searched_again(arguments: list[str], call: Call) -> None:
    for cache in ("first", "second"):
        own = [*arguments, "--trainer.log_every_n_steps=1", f"--run_name={cache}"]
        assert call(train.main, *own, "--data.cache_dir=first", "--trainer.max_steps=4")[0] == 0
        more = ["--ckpt_path", f"lightning_logs/{cache}", f"--data.cache_dir={cache}", "--trainer.max_steps=8"]
        code, _, err = call(train.main, *more)
        assert code == 0 and NOTE in err, err
    first, second = (Path("lightning_logs") / name for name in ("first", "second"))
    assert same_weights(final_weights(first), final_weights(second))
    losses = [[row["train_loss"] for row in logged_rows(run) if "train_loss" in row] for run in (first, second)]
    assert len(losses[0]) == 8 and losses[0] == losses[1]


def test_a_run_is_not_resumed_with_other_documents(arguments: list[str], call: Call) -> None:
    assert call(train.main, *arguments, "--trainer.max_steps=2")[0] == 0
    more = ["--data.reader.drop_near_duplicates=null", "--trainer.max_steps=4"]
    code, _, err = call(train.main, "--ckpt_path=last", *more)
    assert code == 4 and "a different run: text was" in err


def test_commands_that_leave_nothing_out_say_so(arguments: list[str], call: Call, inside: Path) -> None:
    option = "--reader.drop_near_duplicates=0.8"
    run = partial(parser.run, train_tokenizer.train_tokenizer)
    code, _, err = call(run, "--files=train.txt", "--output_dir=out", "--vocab_size=300", option)
    assert code == 0 and f"{option.partition('=')[0]}: no effect here" in err
    assert call(train.main, *arguments, "--trainer.max_steps=2")[0] == 0
    both = ["--files=train.txt", "--reader.document=line", option]
    code, out, err = call(partial(parser.run, evaluate.test), RUN, *both, "--json_output=-")
    assert code == 0 and f"{option.partition('=')[0]}: no effect here" in err
    assert json.loads(out)["text"]["documents"] == 800
