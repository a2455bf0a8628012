"""The private or undocumented names of Lightning that exact resume needs, each with its reason.

Checked against Lightning 2.6.6; test_lightning_patches.py asserts that these names exist. After an upgrade of
Lightning, read its training_epoch_loop.py and fit_loop.py again and run `make prove`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from gpt2kit.errors import CheckpointError, UserError, first_line


def set_max_steps(trainer: pl.Trainer, steps: int) -> None:
    """Set the last optimizer step of a trainer that is already built; -1: not known yet.

    `Trainer.max_steps` only reads this attribute. The number of steps depends on the text, which is read later.
    """
    trainer.fit_loop.epoch_loop.max_steps = steps


def disable_signal_broadcast(trainer: pl.Trainer) -> None:
    """Disable Lightning's exchange about SIGTERM, which waits for the device in each forward pass.

    ExactResume agrees on signals between optimizer steps.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def correct_step_count(trainer: pl.Trainer) -> None:
    """Set the counter that decides which steps Lightning logs. After some resumes it is one too low."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def validate_after_batch(trainer: pl.Trainer, batch_idx: int) -> None:
    """Validate after this micro-batch whatever the interval: Lightning validates every `val_check_batch` batches."""
    trainer.val_check_batch = batch_idx + 1


def set_batch_progress(checkpoint: dict[str, Any], micro_batches: int) -> None:
    """Set how many micro-batches a loaded checkpoint has seen, before Lightning restores its loops from it."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for part in ("current", "total"):
        progress[part].update(dict.fromkeys(("ready", "started", "processed", "completed"), micro_batches))


def refuse_failed_restore(trainer: pl.Trainer) -> None:
    """Turn an error while Lightning restores a checkpoint into a CheckpointError: it trusts the types in the file.

    `resume_check` finds most damage before; the states of a user's callbacks and loggers can have any form.
    """
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _refusing(trainer, getattr(connector, name)))


def _refusing(trainer: pl.Trainer, restore: Callable[..., None]) -> Callable[..., None]:
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            restore(*args, **kwargs)
        except (UserError, MisconfigurationException, OSError, MemoryError):
            raise
        except Exception as error:
            # From a device that is out of memory, or from the connection to another rank.
            if isinstance(error, RuntimeError) and (trainer.world_size > 1 or "memory" in str(error)):
                raise
            reason = f"{type(error).__name__}: {first_line(error):.200}"
            raise CheckpointError(
                f"{trainer.ckpt_path}: cannot be restored ({reason}): the file is damaged. Resume from another one"
            ) from error

    return wrapped


def run_validation(trainer: pl.Trainer) -> None:
    """Validate in the middle of a fit, as Lightning does between two steps."""
    first_iteration, loop = trainer._logger_connector._first_loop_iter, trainer.fit_loop.epoch_loop.val_loop
    trainer.validating = True
    loop.restarting = False  # a restored loop would continue at its last batch
    loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first_iteration
