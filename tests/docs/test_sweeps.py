"""The sweeps of docs/sweeps.md: their options exist, and a trial reads its run as the run has written it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import ROOT, Parsed, ParseOnly, Run

sys.path.insert(0, str(ROOT / "scripts"))
import sweep_optuna


class FakeTrial:
    """A trial that suggests a bound of each range."""

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return low if name == "lr" else high

    def suggest_categorical(self, name: str, choices: list[float]) -> float:
        return choices[-1]


def test_the_options_of_a_trial_exist(options: list[str], inside: Path) -> None:
    suggested = sweep_optuna.suggest(FakeTrial())
    assert len(suggested) == 3
    with pytest.raises(Parsed):
        ParseOnly([*options, *suggested, "--run_name", "sweep-0"])


def test_the_command_of_the_sweep_of_wandb_parses(options: list[str], inside: Path) -> None:
    sweep = yaml.safe_load((ROOT / "configs/sweep/wandb.yaml").read_text())
    values = {name: space.get("min", space.get("values", [None])[-1]) for name, space in sweep["parameters"].items()}
    command = [part for part in sweep["command"] if part not in ("${env}", "${args}")]
    assert command[:3] == ["gpt2kit", "train", "my_texts/"] and sweep["metric"]["name"] == sweep_optuna.METRIC
    with pytest.raises(Parsed):
        ParseOnly([*options, *command[3:], *(f"--{name}={value}" for name, value in values.items())])


def test_the_value_of_a_trial_is_the_best_figure_of_its_run(run: Run, tmp_path: Path) -> None:
    figures = sweep_optuna.read_figures(run.folder)
    assert len(figures) > 1 and sweep_optuna.best_figure(run.folder) == min(figures.values())
    copy = shutil.copytree(run.folder, tmp_path / "run")
    status = json.loads((copy / "status.json").read_text())
    for state, reason in (("failed", "DivergedError: NaN"), ("stopped", "SIGTERM")):
        (copy / "status.json").write_text(json.dumps({**status, "state": state, "reason": reason}))
        with pytest.raises(RuntimeError, match=f"{state}, {reason}"):
            sweep_optuna.best_figure(copy)
    (copy / "status.json").write_text(json.dumps({**status, "state": "stopped", "reason": "max_time"}))
    assert sweep_optuna.best_figure(copy) == min(figures.values())
    with pytest.raises(RuntimeError, match="not started"):
        sweep_optuna.best_figure(tmp_path / "none")


class FakeStudy:
    """A study of one trial, which has finished or failed."""

    def __init__(self, value: float | None) -> None:
        self.trials = [SimpleNamespace(number=3, value=value, params={"lr": 0.01})]

    @property
    def best_trial(self) -> SimpleNamespace:
        if self.trials[0].value is None:
            raise ValueError("Record does not exist.")
        return self.trials[0]


def test_a_study_whose_trials_all_fail_names_the_output_of_the_last_one() -> None:
    assert sweep_optuna.describe("poems", FakeStudy(1.5)) == "best trial: poems-3, val_bpb 1.5000, {'lr': 0.01}"
    with pytest.raises(SystemExit, match=r"^error: poems: no trial has finished\. The reason is in .*poems-3\.txt$"):
        sweep_optuna.describe("poems", FakeStudy(None))


def test_the_commands_of_the_page_are_those_of_the_files() -> None:
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("    python scripts/sweep_optuna.py")]
    assert lines
    for line in lines:
        with pytest.raises(Parsed):
            arguments = [part for part in line[2:] if part != "my_texts/"]
            at = arguments.index("--trials")
            ParseOnly(["--data.train_files=x.txt", *arguments[:at], *arguments[at + 2 :]])
