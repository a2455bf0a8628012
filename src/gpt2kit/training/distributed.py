"""Many processes as one run: launch sizes, who builds the text, agreement between ranks, the FSDP strategy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt2kit import __version__, dtensor
from gpt2kit.checkpoint import checkpoint
from gpt2kit.errors import MachineError, UserError
from gpt2kit.runs import lifecycle
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import run_state
from gpt2kit.training.run_state import datamodule_of, gpt2_of

Facts = dict[str, str]


def sizes(devices: Any, num_nodes: int, environment: Mapping[str, str] = os.environ) -> tuple[Any, int]:
    """`trainer.devices` and `trainer.num_nodes`, taken from torchrun or SLURM where they are not given.

    Raises UserError if they are given and contradict what was launched.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        what, each = "torchrun", int(environment["LOCAL_WORLD_SIZE"])
        nodes = int(environment["WORLD_SIZE"]) // each
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(environment.get("SLURM_NNODES", "1"))
        what, each = "srun", int(environment["SLURM_NTASKS"]) // nodes
        if each == 1 and nodes == 1:
            return devices, num_nodes  # one task that starts its own processes
    else:
        return devices, num_nodes
    given = _count(devices)
    if given not in (None, each) or num_nodes not in (1, nodes):
        raise UserError(
            f"trainer.devices {devices}, trainer.num_nodes {num_nodes}: {what} has started {each} processes on each of "
            f"{nodes} machines. Leave both options out, or let them say {each} and {nodes}"
        )
    return (each if given is None else devices), nodes


def _count(devices: Any) -> int | None:
    """How many devices the option asks for; None: it leaves that open."""
    if devices in ("auto", None, -1, "-1"):
        return None
    if isinstance(devices, list | tuple):
        return len(devices)
    words = str(devices).split(",")
    return len([word for word in words if word.strip()]) if len(words) > 1 else int(words[0])


def refuse_missing_devices(accelerator: Any, devices: Any, there: int) -> None:
    """Raise if this machine has fewer GPUs than are asked for."""
    wanted = _count(devices)
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and there > 0)
    if on_gpus and (there == 0 or (wanted or 0) > there):
        has = "no GPU that torch can use" if there == 0 else f"{there} GPU{'s' if there > 1 else ''}"
        advice = "Check nvidia-smi, or use trainer.accelerator auto" if there == 0 else f"Use trainer.devices {there}"
        asked = f"trainer.devices {devices}" if there else f"trainer.accelerator {accelerator}"
        raise MachineError(f"{asked}: this machine ({socket.gethostname()}) has {has}. {advice}")


def accumulation(global_batch: int, batch_size: int, world_size: int) -> int:
    """Forward passes an optimizer step takes on each device; the nearest sizes are named if that is not whole."""
    at_once = batch_size * world_size
    if global_batch % at_once == 0:
        return global_batch // at_once
    below, above = global_batch // at_once * at_once, -(-global_batch // at_once) * at_once
    near = f"{below} or {above}" if below else str(above)
    each = [b for b in range(global_batch, 0, -1) if global_batch % (b * world_size) == 0]
    other = min(each, key=lambda b: abs(b - batch_size), default=None)
    raise UserError(
        f"data.global_batch {global_batch}: not a multiple of {world_size} devices x data.batch_size {batch_size} = "
        f"{at_once}. Nearest: data.global_batch {near}"
        + (f", or data.batch_size {other}" if other else f"; with {world_size} devices, a multiple of {world_size}")
    )


def explained(error: BaseException) -> MachineError | None:
    """What torch says of processes that cannot meet, in one line."""
    text = str(error)
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return MachineError(
            f"port {where}: taken by another program. Set MASTER_PORT to a free one, or, with torchrun, take "
            "--standalone (one machine) or another --rdzv-endpoint"
        )
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return MachineError(
            f"{where}: only {joined[1]} of {joined[2]} processes came. Look at the others' own words, and whether each "
            "machine can reach this address"
        )
    if re.search(r"client socket has (timed out|failed)|failed to connect to|could not resolve", text, re.IGNORECASE):
        return MachineError(
            f"{where}: rank 0 cannot be reached there. Check MASTER_ADDR (torchrun: --rdzv-endpoint), the network, and "
            "whether rank 0 still runs"
        )
    return None


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank as its launcher says, before any process group exists."""
    return int(environment.get("RANK") or environment.get("SLURM_PROCID") or environment.get("LOCAL_RANK") or 0)


class Ranks(Callback):
    """Compares, before the first step, the settings of all processes and what they have read.

    Args:
        settings: the resolved config, as plain types.
        resumed: the checkpoint from which the run resumes.
    """

    def __init__(self, settings: dict[str, Any], resumed: Path | None) -> None:
        self.settings = settings
        self.resumed = resumed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not distributed.is_initialized():
            return
        own = facts(trainer, self.settings, self.resumed)
        if len(set(_gathered(trainer, _hash(own)))) == 1:  # a hash first: all facts are many
            return
        problem = disagreement(_gathered(trainer, (socket.gethostname(), own)))
        if trainer.is_global_zero:
            raise UserError(problem)
        raise SystemExit(UserError.exit_code)  # rank 0 says why


def facts(trainer: pl.Trainer, settings: dict[str, Any], resumed: Path | None) -> Facts:
    """All in which the processes of one run must be alike, by names for people."""
    text = datamodule_of(trainer)
    return {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        **{name: str(value) for name, value in lifecycle.flatten(settings).items()},
        "the tokenizer": tokenizers.fingerprint(text.tokenizer)[:12],
        **{f"the {split} text": text.store(split).fingerprint[:12] for split in text.files if text.files[split]},
        "the order of batches": _hash(run_state.identity(text, text.global_batch(trainer))),
        "the model's shape": _hash(gpt2_of(trainer).shape),
        "precision": str(trainer.precision),
        "attention": gpt2_of(trainer).choose_attention(trainer.strategy.root_device).value,
        "compile": gpt2_of(trainer).compiled,
        "steps": str(trainer.max_steps),
        "the checkpoint": resumed.name if resumed else "none",  # its name has its step and loss; folders may differ
    }


def disagreement(gathered: list[tuple[str, Facts]]) -> str:
    """Empty if all ranks have the same facts as rank 0; else one line that names the first that does not."""
    first = gathered[0][1]
    others = [(rank, host, found) for rank, (host, found) in enumerate(gathered) if found != first]
    if not others:
        return ""
    rank, host, found = others[0]
    names = [name for name in {**first, **found} if found.get(name) != first.get(name)]
    differences = [f"{name} is {found.get(name)}, on rank 0 {first.get(name)}" for name in names[:5]]
    more = f" ({len(others) - 1} other ranks differ from it, too)" if len(others) > 1 else ""
    return (
        f"rank {rank} on {host} is not like rank 0{more}: {'; '.join(differences)}. Give all machines the same files, "
        "versions and settings"
    )


def _gathered(trainer: pl.Trainer, own: object) -> list[Any]:
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, own)
    return found


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


class FSDP(ModelParallelStrategy):
    """FSDP2 by Lightning's ModelParallelStrategy: weights, gradients and optimizer state sharded over all devices.

    Checkpoints are the ordinary single file, written by rank 0. Lightning's own distributed ones are written in place,
    so that a killed save mixes two steps, and are read by unpickling.

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
        state: dict[str, Any] = gather(self.lightning_module.state_dict(), self.is_global_zero)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Numbered by parameter group, as on one device; Lightning's own order is that of the model."""
        state: dict[str, Any] = gather(optimizer.state_dict(), self.is_global_zero)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of any strategy and number of ranks. The file is mapped into memory: a rank reads its rows."""
        return checkpoint.read(Path(checkpoint_path))

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
    """What a checkpoint holds for a parameter, sharded as the parameter is; scalars, and what is not sharded, as is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.shape:
        return value
    first, end = dtensor.local_rows(parameter)
    return DTensor.from_local(
        value[first:end].to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def gather(value: Any, keep: bool, known: dict[object, Tensor | None] | None = None) -> Any:
    """Return nested containers with each sharded tensor whole, on the CPU, where `keep`; None in its place elsewhere.

    All ranks must call it. One tensor at a time is whole on a device; tied tensors stay one.
    """
    known = {} if known is None else known
    if isinstance(value, DTensor):
        rows = value.to_local()
        key = (rows.data_ptr(), value.shape) if rows.numel() else object()
        whole = value.full_tensor()  # for tied tensors, too: a rank that skipped one would hang the others
        return known.setdefault(key, whole.detach().cpu() if keep else None)
    if isinstance(value, dict):
        return {name: gather(part, keep, known) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gather(part, keep, known) for part in value)
    return value
