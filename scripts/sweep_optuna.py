"""Search for settings with Optuna. Each trial is a run of `gpt2kit train`; its value is the best validation figure.

    pip install optuna
    python scripts/sweep_optuna.py --trials 20 my_texts/ --trainer.max_steps 300 --trainer.val_check_interval 50

Other arguments are those of `gpt2kit train`. Trial N of the study NAME is the run NAME-N in lightning_logs. The study
is in lightning_logs/sweep.db: the same command continues it. Edit `suggest` to search other settings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from gpt2kit.errors import UserError
from gpt2kit.runs import folder

LOGS = Path("lightning_logs")
TRAINER = Path(__file__).resolve().parent.parent / "trainer.py"
METRIC = "val_bpb"
# Seconds between two looks at a run.
INTERVAL = 2.0


def suggest(trial: Any) -> list[str]:
    """Return the options that a trial tries."""
    return [
        f"--model.optimizer.lr={trial.suggest_float('lr', 1e-3, 2e-2, log=True)}",
        f"--model.optimizer.weight_decay={trial.suggest_float('weight_decay', 0.05, 2.0, log=True)}",
        f"--model.dropout={trial.suggest_categorical('dropout', [0.0, 0.1, 0.2])}",
    ]


def train(trial: Any, name: str, arguments: Sequence[str], output: Any = None) -> float:
    """Train the run of a trial, and return its best figure. A run that falls behind others is stopped."""
    run = LOGS / name
    command = [sys.executable, str(TRAINER), *arguments, *suggest(trial), "--run_name", name]
    with subprocess.Popen(command, stdout=output, stderr=output) as process:
        reported = 0
        while process.poll() is None:
            time.sleep(INTERVAL)
            for step, value in list(read_figures(run).items())[reported:]:
                trial.report(value, step)
                reported += 1
            if reported and trial.should_prune():
                process.terminate()  # finishes the step and saves, so the run can be resumed
                process.wait()
                import optuna

                raise optuna.TrialPruned
    return best_figure(run)


def read_figures(run: Path) -> dict[int, float]:
    """Return the validation figure at each step; empty before the first one."""
    try:
        return {step: value for step, value in folder.read_metrics(run).get(METRIC, {}).items() if step}
    except UserError:  # no log yet
        return {}


def best_figure(run: Path) -> float:
    """Return the best figure of a run that has ended; raise if it has failed or was interrupted."""
    status, figures = folder.read_status(run), read_figures(run)
    state, reason = status.get("state", "not started"), status.get("reason", "")
    if (state != "done" and reason != "max_time") or not figures:
        raise RuntimeError(f"{run}: {state}, {reason or 'no validation'}")
    return min(figures.values())


def describe(name: str, study: Any) -> str:
    """Return a line about the best trial of a study; end with an error if no trial has finished."""
    try:
        best = study.best_trial
    except ValueError:
        sys.exit(f"error: {name}: no trial has finished. The reason is in {LOGS / name}-{study.trials[-1].number}.txt")
    return f"best trial: {name}-{best.number}, {METRIC} {best.value:.4f}, {best.params}"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    options.add_argument("--trials", type=int, default=20, help="number of trials")
    options.add_argument("--study", default="sweep", help="name of the study")
    own, arguments = options.parse_known_args()
    import optuna

    LOGS.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=own.study,
        storage=f"sqlite:///{LOGS}/sweep.db",
        load_if_exists=True,
        # A figure counts from the third validation on, and after five trials that can be compared.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0, n_min_trials=3),
        sampler=optuna.samplers.TPESampler(seed=1),
    )

    def objective(trial: Any) -> float:
        with (LOGS / f"{own.study}-{trial.number}.txt").open("w", encoding="utf-8") as output:
            return train(trial, f"{own.study}-{trial.number}", arguments, output)

    study.optimize(
        objective, n_trials=own.trials, catch=(RuntimeError,)
    )  # a trial that diverges does not end the study
    print(describe(own.study, study))


if __name__ == "__main__":
    main()
