"""--help prints gpt2kit's own texts, in groups; that of trainer.py is short, and --help=all has everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from helpers import Outcome

from gpt2kit.cli import parser, train

Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def row(page: str, option: str) -> str:
    """Return an option of a help page with its text, as one line."""
    return " ".join(page.split(f"\n  --{option} ")[1].split("\n  --")[0].split())


def test_help_of_trainer_is_one_page(call: Call) -> None:
    code, page, _ = call(train.main, "--help")
    assert code == 0 and page.startswith("usage: ")
    assert len(page.splitlines()) <= 150 and max(map(len, page.splitlines())) <= 120
    titles = [line[:-1] for line in page.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[1:5] == ["Text", "Model", "Training length", "Machine"], "common options come first"


def test_help_describes_what_the_tool_does_with_options_of_lightning(call: Call) -> None:
    _, page, _ = call(train.main, "--help")
    assert row(page, "trainer.log_every_n_steps").endswith("Optimizer steps between two rows of the log. (default: 10)")
    for name in ("limit_train_batches", "overfit_batches", "check_val_every_n_epoch"):
        assert "Refused: use " in row(page, f"trainer.{name}")
    assert "\n  --trainer.barebones" not in page and " barebones" in page, "only its name"


def test_full_help_has_every_option_and_no_internal_class(call: Call) -> None:
    _, short, _ = call(train.main, "--help")
    _, page, _ = call(train.main, "--help=all")
    assert {line.split()[0] for line in short.splitlines() if line.startswith("  --")} <= set(page.split())
    assert "If several limits are set, the first one reached ends training." in row(page, "trainer.max_epochs")
    assert "--trainer.barebones BOOL" in page and "--data.reader.encoding TEXT" in page
    assert "known subclasses" not in page and "gpt2kit.training" not in page


def test_help_needs_no_valid_options(call: Call) -> None:
    page = call(train.main, "--help")
    assert (
        call(train.main, "--config", "none.yaml", "--model.n_layr=3", "--verify_resume", "--tune", "lr", "-h") == page
    )


def test_help_of_a_class_is_printed(call: Call) -> None:
    code, page, _ = call(train.main, "--model.optimizer.help", "gpt2kit.optim.AdamW")
    assert code == 0 and "--model.optimizer.eps" in page


def test_short_help_keeps_what_an_option_defaults_to(call: Call) -> None:
    _, page, _ = call(train.main, "--help")
    text = "INT Tokens between the starts of two training blocks. Default: block_size."
    assert row(page, "data.stride") == text, "the first sentence and the default"


@dataclass(frozen=True)
class Colours:
    """Which colours are used. Not more than two."""

    hue: float = 0.5
    """The hue."""


def paint(
    walls: parser.Positional[list[str]], colours: Colours = Colours(), coats: int | None = None, dry: bool = False
) -> None:
    """Paint walls.

    Args:
        walls: Walls to paint.
        coats: Number of coats. Default: as many as it takes.
        dry: Paint nothing.
    """


def frame(picture: parser.Positional[str], wall: str, depth: int = 1) -> None:
    """Frame a picture."""


def test_help_of_a_command(call: Call) -> None:
    code, page, _ = call(lambda args: parser.run(paint, args), "--help")
    usage, *lines = page.splitlines()
    assert code == 0 and usage.endswith(" WALLS ... [options]")
    texts = [" ".join(line.split()) for line in lines]
    assert texts.index("Which colours are used:") + 1 == texts.index("--hue FLOAT The hue. (default: 0.5)")
    assert "--coats INT Number of coats. Default: as many as it takes." in texts
    assert "--dry Paint nothing." in texts
    assert call(lambda args: parser.run(paint, args), "--help=all")[1] == page
    page = call(lambda args: parser.run(frame, args), "--help")[1]
    assert page.splitlines()[0].endswith(" PICTURE --wall TEXT [options]"), "required options are named"
