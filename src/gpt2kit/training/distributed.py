"""Training on several devices: launch sizes, agreement between ranks, and the FSDP strategy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
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

RankInfo = dict[str, str]


def launch_sizes(devices: Any, num_nodes: int, environment: Mapping[str, str] = os.environ) -> tuple[Any, int]:
    """Return `trainer.devices` and `trainer.num_nodes`, by default those of torchrun or SLURM.

    Raises UserError if the options contradict the launcher.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher, per_node = "torchrun", int(environment["LOCAL_WORLD_SIZE"])
        nodes = int(environment["WORLD_SIZE"]) // per_node
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(environment.get("SLURM_NNODES", "1"))
        launcher, per_node = "srun", int(environment["SLURM_NTASKS"]) // nodes
        if per_node == nodes == 1:
            return devices, num_nodes  # one task, from which Lightning starts the others
    else:
        return devices, num_nodes
    requested = _count_devices(devices)
    if requested not in (None, per_node) or num_nodes not in (1, nodes):
        raise UserError(
            f"trainer.devices {devices}, trainer.num_nodes {num_nodes}: {launcher} has started {per_node} processes on "
            f"each of {nodes} machines. Leave out both options, or set them to {per_node} and {nodes}"
        )
    return (per_node if requested is None else devices), nodes


def _count_devices(devices: Any) -> int | None:
    """Return the number of devices that the option names; None: all of them."""
    if devices in ("auto", None, -1, "-1"):
        return None
    if isinstance(devices, list | tuple):
        return len(devices)
    numbers = [number for number in str(devices).split(",") if number.strip()]
    return len(numbers) if "," in str(devices) else int(devices)


def refuse_missing_devices(accelerator: Any, devices: Any, available: int) -> None:
    """Raise MachineError if this machine has fewer than the requested GPUs."""
    if accelerator not in ("gpu", "cuda") and not (accelerator == "auto" and available > 0):
        return
    host = socket.gethostname()
    if available == 0:
        raise MachineError(
            f"trainer.accelerator {accelerator}: this machine ({host}) has no GPU that torch can use. Check "
            "nvidia-smi, or use trainer.accelerator auto"
        )
    if (_count_devices(devices) or 0) > available:
        gpus = "1 GPU" if available == 1 else f"{available} GPUs"
        raise MachineError(
            f"trainer.devices {devices}: this machine ({host}) has {gpus}. Use trainer.devices {available}"
        )


def accumulation_steps(global_batch: int, batch_size: int, world_size: int) -> int:
    """Return the forward passes of an optimizer step on each device; raise UserError if it is not a whole number."""
    per_pass = batch_size * world_size
    if global_batch % per_pass == 0:
        return global_batch // per_pass
    below = global_batch // per_pass * per_pass
    nearest = f"{below} or {below + per_pass}" if below else str(per_pass)
    sizes = [size for size in range(1, global_batch + 1) if global_batch % (size * world_size) == 0]
    alternative = f"; with {world_size} devices, use a multiple of {world_size}"
    if sizes:
        alternative = f", or data.batch_size {min(sizes, key=lambda size: (abs(size - batch_size), -size))}"
    raise UserError(
        f"data.global_batch_size {global_batch}: not a multiple of {world_size} devices x data.batch_size {batch_size} "
        f"= {per_pass}. Nearest: data.global_batch_size {nearest}{alternative}"
    )


def explain_launch_error(error: BaseException) -> MachineError | None:
    """Return what an error of torch means if the processes of a run could not connect."""
    text = str(error)
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return MachineError(
            f"port {address}: taken by another program. Set MASTER_PORT to a free port; with torchrun, use "
            "--standalone (one machine) or another --rdzv-endpoint"
        )
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return MachineError(
            f"{address}: only {joined[1]} of {joined[2]} processes connected. Read the messages of the others, and "
            "check that each machine can reach this address"
        )
    if re.search(r"client socket has (timed out|failed)|failed to connect to|could not resolve", text, re.IGNORECASE):
        return MachineError(
            f"{address}: rank 0 cannot be reached. Check MASTER_ADDR (torchrun: --rdzv-endpoint), the network, and "
            "whether rank 0 still runs"
        )
    return None


class RankAgreement(Callback):
    """Raises before the first step if the settings of the ranks, or what they have read, differ.

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
        info = describe_rank(trainer, self.settings, self.resumed)
        if len(set(_gather_objects(trainer, _hash(info)))) == 1:  # hashes first, because they are small
            return
        problem = describe_disagreement(_gather_objects(trainer, (socket.gethostname(), info)))
        if trainer.is_global_zero:
            raise UserError(problem)
        raise SystemExit(UserError.exit_code)  # rank 0 prints the error


def describe_rank(trainer: pl.Trainer, settings: dict[str, Any], resumed: Path | None) -> RankInfo:
    """Return everything in which the ranks of a run must agree, by names for people."""
    text, gpt2 = datamodule_of(trainer), gpt2_of(trainer)
    return {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        **{name: str(value) for name, value in lifecycle.flatten(settings).items()},
        "the tokenizer": tokenizers.fingerprint(text.tokenizer)[:12],
        **{f"the {split} text": text.store(split).fingerprint[:12] for split in text.files if text.files[split]},
        "the order of batches": _hash(run_state.identity(text, text.global_batch(trainer))),
        "the model's shape": _hash(gpt2.shape),
        "precision": str(trainer.precision),
        "attention": gpt2.choose_attention(trainer.strategy.root_device).value,
        "compile": gpt2.compiled,
        "steps": str(trainer.max_steps),
        "the checkpoint": resumed.name if resumed else "none",  # has its step and loss; folders may differ
    }


def describe_disagreement(ranks: list[tuple[str, RankInfo]]) -> str:
    """Return how the first rank that differs from rank 0 differs; empty if all agree. A rank is (host, info)."""
    first = ranks[0][1]
    others = [(rank, host, info) for rank, (host, info) in enumerate(ranks) if info != first]
    if not others:
        return ""
    rank, host, info = others[0]
    names = [name for name in {**first, **info} if info.get(name) != first.get(name)]
    differences = [f"{name} is {info.get(name)}, on rank 0 {first.get(name)}" for name in names[:5]]
    also = f" ({len(others) - 1} more ranks do, too)" if len(others) > 1 else ""
    return (
        f"rank {rank} on {host} differs from rank 0{also}: {'; '.join(differences)}. Use the same files, versions and "
        "settings on all machines"
    )


def _gather_objects(trainer: pl.Trainer, value: object) -> list[Any]:
    values: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(values, value)
    return values


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


class FSDP(ModelParallelStrategy):
    """FSDP2 by Lightning's ModelParallelStrategy: weights, gradients and optimizer state sharded over all devices.

    Rank 0 writes the same single file as on one device. Lightning's distributed checkpoints are written in place, so a
    killed save mixes two steps, and they are read by unpickling.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's "auto" is the number of nodes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return dict(gather(self.lightning_module.state_dict(), self.is_global_zero))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        # Numbered by parameter group, as on one device. Lightning would number it in the order of the model.
        return dict(gather(optimizer.state_dict(), self.is_global_zero))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Open a checkpoint of any strategy and number of ranks. It is mapped into memory: a rank reads its rows."""
        return checkpoint.read(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        if set(state) != set(checkpoint["state_dict"]):
            raise ValueError("the names of the checkpoint's weights are not those of the model")
        for name, tensor in state.items():
            tensor.copy_(_shard_like(tensor, checkpoint["state_dict"][name]))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: _shard_like(parameters[number], value) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _shard_like(parameter: Tensor, value: Any) -> Any:
    """Return a value of a checkpoint, sharded like its parameter if both are matrices or vectors."""
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


def gather(value: Any, is_kept: bool, gathered: dict[object, Tensor | None] | None = None) -> Any:
    """Return nested containers with full tensors on the CPU instead of sharded ones; None if not `is_kept`.

    All ranks must call this. One tensor at a time is gathered on a device, and tied tensors stay one.
    """
    gathered = {} if gathered is None else gathered
    if isinstance(value, DTensor):
        rows = value.to_local()
        key = (rows.data_ptr(), value.shape) if rows.numel() else object()
        full = value.full_tensor()  # also if it is tied: a rank that skipped this would make the others wait forever
        return gathered.setdefault(key, full.detach().cpu() if is_kept else None)
    if isinstance(value, dict):
        return {name: gather(part, is_kept, gathered) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gather(part, is_kept, gathered) for part in value)
    return value
