from __future__ import annotations

import inspect

import pytorch_lightning as pl
from pytorch_lightning.loops import fit_loop, training_epoch_loop


def test_the_private_names_of_lightning_exist() -> None:
    """If this fails on a new Lightning: read its training_epoch_loop.py and fit_loop.py, fix lightning_patches.py, run
    `make prove`, then widen the range in pyproject.toml."""
    assert pl.__version__.startswith("2.6."), "a new Lightning: see this test's docstring"
    loop = inspect.getsource(training_epoch_loop._TrainingEpochLoop)
    assert "self._batches_that_stepped" in loop and "def max_steps" not in loop
    assert "self.trainer.val_check_batch == 0" in loop
    assert loop.count("self._broadcast_sigterm_tensor()") == 1
    assert "self.trainer._logger_connector._first_loop_iter = first_loop_iter" in loop
    assert "trainer.val_check_batch = trainer.val_check_interval" in inspect.getsource(fit_loop._FitLoop)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_epochs=-1)
    state = trainer.fit_loop.state_dict()
    assert set(state["epoch_loop.batch_progress"]["current"]) == {"ready", "completed", "started", "processed"}
