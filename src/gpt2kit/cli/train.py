"""Implements `gpt2kit train`: run the requested action, and report how it ended."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
import warnings
from pathlib import Path

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train_help
from gpt2kit.cli.failures import known_error
from gpt2kit.cli.parser import split_positional
from gpt2kit.cli.run_options import parse_early, without_tune
from gpt2kit.cli.train_cli import TrainCLI
from gpt2kit.cli.train_options import as_list
from gpt2kit.errors import DivergedError, UserError, first_line
from gpt2kit.model.backends import compile_failure
from gpt2kit.training import distributed, run_summary, tuning, verify_resume


def main(args: list[str]) -> Path | None:
    """Train; return the folder of the run, if one was trained."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # metrics are reduced over the ranks already
    warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # no validation text: the summary says so
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning 2.6 with torch 2.13
    # --help counts, whatever else is given.
    args = [arg for arg in args if arg in train_help.FLAGS][:1] or with_text(args)
    early = parse_early(args)
    if early.ckpt_path is not None and early.resume_with_new_text is not None:
        raise UserError(
            "--resume_with_new_text: not with --ckpt_path, which continues a stage. Leave out one of the two"
        )
    if early.resume_with_new_text is not None and (early.verify_resume or early.tune):
        raise UserError("--verify_resume and --tune: start new runs. Leave out --resume_with_new_text")
    if early.ckpt_path is not None and (early.verify_resume or early.tune):
        raise UserError("--verify_resume and --tune: start new runs. Leave out --ckpt_path")
    try:
        if early.verify_resume:
            verify_resume.verify_resume([arg for arg in args if arg != "--verify_resume"])
        elif early.tune == "batch_size":
            tuning.find_batch_size(without_tune(args))
        elif early.tune == "lr":
            TrainCLI([*without_tune(args), "--plan"]).find_learning_rate()
        else:
            return _train(args)
        return None
    except UserError:
        raise
    except Exception as error:
        known = distributed.explain_launch_error(error) or compile_failure(error) or known_error(error)
        if known is None:
            raise
        raise known from error


def with_text(args: list[str]) -> list[str]:
    """Return the arguments with those before the first option as the training text."""
    text, args = split_positional(args, "--data.train_files")
    if not text:
        return args
    is_one = len(text) == 1 and not text[0].startswith("[")  # [a] would be read as a list
    return [*args, f"--data.train_files={text[0] if is_one else json.dumps(text, ensure_ascii=False)}"]


def _train(args: list[str]) -> Path | None:
    cli = None
    try:
        cli = TrainCLI(args)
        if cli.options.builds_text:
            print("\n".join(cli.build_text()))
        elif cli.options.is_plan:
            info = cli.measure_plan()
            if cli.trainer.is_global_zero:
                run_summary.print_lines(run_summary.plan_lines(info), sys.stdout)
        else:
            resumed = cli.options.resumed
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(resumed) if resumed else None)
            cli.report_end()
            return cli.run_folder
        return None
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except SystemExit as stop:  # a signal before the first step, for which Lightning exits with 0 or 1
        if cli is not None and cli.trainer.interrupted and stop.code in (None, 0, 1):
            if cli.trainer.received_sigterm:
                raise SystemExit(128 + signal.SIGTERM) from None
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
        if cli is not None:
            cli.report_stop()
        if cli is None or stop.code:
            raise
        return cli.run_folder  # the time limit of this start
    except UserError as error:
        if "--plan" in args:
            raise UserError(str(error)) from error  # a plan exits with 2, whatever is invalid
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}; {_last_checkpoint(cli)}") from error
        raise
    except Exception as error:
        callback = _failed_callback(error, cli)
        if callback is None or known_error(error):
            raise
        raise UserError(
            f"trainer.callbacks {type(callback).__name__}: {first_line(error)}. Omit it, or fix it (--debug shows the "
            "traceback)"
        ) from error


def _failed_callback(error: BaseException, cli: TrainCLI | None) -> Callback | None:
    """Return the callback in `trainer.callbacks`, but not of gpt2kit, whose method raised an error, if one did."""
    callbacks = as_list(cli.config_init.trainer.callbacks) if cli and not cli.options.builds_text else []
    others = [callback for callback in callbacks if not type(callback).__module__.startswith("gpt2kit.")]
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((callback for callback in others if any(owner is callback for owner in owners)), None)


def _last_checkpoint(cli: TrainCLI | None) -> str:
    run = cli.run_folder if cli else None
    newest = checkpoint.newest_valid(run) if run else None
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
