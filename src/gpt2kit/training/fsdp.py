"""FSDP2: weights, gradients and the optimizer's state in shares, a share on each device (`trainer.strategy: fsdp`)."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt2kit import dtensor
from gpt2kit.checkpoint import checkpoint
from gpt2kit.dtensor import Parts
from gpt2kit.errors import first_line


class FSDP(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, all devices in one group, with checkpoints that are whole or not there.

    Lightning's own are written in place, so that a killed save mixes two steps, and are read by unpickling.

    Args:
        timeout: how long a rank waits for the others in one exchange.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Every rank writes its share; the folder gets its name when all are there. A failure is kept in `failure`
        of the checkpoint_io, as with files."""
        target = Path(self.broadcast(filepath))
        temporary = target.with_name(self.broadcast(f".{target.name}.{os.getpid()}.tmp"))
        tree, shares = dtensor.parted(checkpoint)
        sums, failure = {}, ""
        try:
            sums = dtensor.write(temporary, dtensor.rank_file(self.global_rank), shares)
            if self.is_global_zero:
                sums |= dtensor.write(temporary, dtensor.META, tree)
        except (OSError, RuntimeError) as error:  # torch says a full disk as RuntimeError
            failure = f"{target}: {first_line(error)}"
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, (sums, failure))
        failure = next((failed for _, failed in gathered if failed), "")
        if self.is_global_zero and not failure:
            try:
                dtensor.finish(temporary, target, {name: value for sums, _ in gathered for name, value in sums.items()})
            except OSError as error:
                failure = str(error)
        failure = self.broadcast(failure)
        if failure:
            shutil.rmtree(temporary, ignore_errors=True)
        self.checkpoint_io.failure = failure  # type: ignore[attr-defined]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of any strategy and number of ranks; of its tensors only this rank's rows will be read."""
        return checkpoint.read(Path(checkpoint_path), whole=False)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        if set(state) != set(checkpoint["state_dict"]):
            raise ValueError("the checkpoint's weights are not those of the model")
        for name, tensor in state.items():
            tensor.copy_(_like(tensor, checkpoint["state_dict"][name]))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: _like(parameters[number], value) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _like(parameter: Tensor, value: Any) -> Any:
    """What a checkpoint holds for a parameter, cut as the parameter is; scalars, and what is not cut, as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor | Parts) or not value.shape:
        return value
    first, end = dtensor.own_rows(parameter)
    rows = value.rows(first, end) if isinstance(value, Parts) else value[first:end]
    return DTensor.from_local(
        rows.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
