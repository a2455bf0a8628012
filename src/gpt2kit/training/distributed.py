"""Training on several devices: launch sizes, agreement between ranks, and the FSDP strategy."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed
from torch.optim import Optimizer

from gpt2kit import __version__, dtensor
from gpt2kit.checkpoint import checkpoint
from gpt2kit.errors import MachineError, UserError
from gpt2kit.runs import lifecycle
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import run_state
from gpt2kit.training.run_state import datamodule_of, gpt2_of

RankInfo = dict[str, str]
# The maximum number of processes for each core of a CPU. More than one is slower, and useful only in tests.
_CPU_PROCESSES = 4
# What torch reports when processes cannot connect, and what it means.
_LAUNCH_ERRORS = {
    r"EADDRINUSE|address already in use": "another program uses this port. Set MASTER_PORT to a free port; with "
    "torchrun, use --standalone (one machine) or another --rdzv-endpoint",
    r"(\d+)/(\d+) clients joined": "only {} of {} processes connected. Read the messages of the others, and check that "
    "each machine can reach this address",
    r"client socket has (timed out|failed)|failed to connect to|could not resolve": "rank 0 cannot be reached. Check "
    "MASTER_ADDR (torchrun: --rdzv-endpoint), the network, and whether rank 0 is still running",
}


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
    parts = devices if isinstance(devices, list | tuple) else str(devices).split(",")
    try:
        numbers = [int(part) for part in parts if str(part).strip()]
    except ValueError:
        numbers = [-1]
    is_list = isinstance(devices, list | tuple) or "," in str(devices)
    count = len(numbers) if is_list else sum(numbers)
    if count < 1 or (is_list and (min(numbers) < 0 or len(set(numbers)) < count)):
        raise UserError(f"trainer.devices {devices}: neither a number of devices nor a list of them, such as [0,1]")
    return count


def refuse_missing_devices(accelerator: Any, devices: Any, available: int) -> None:
    """Raise MachineError if this machine has fewer than the requested GPUs, or cannot run that many processes."""
    requested = _count_devices(devices)
    if accelerator == "cpu" or (accelerator == "auto" and not available):
        cores = os.cpu_count() or 1
        if (requested or 1) > max(_CPU_PROCESSES * cores, 16):
            raise MachineError(
                f"trainer.devices {devices}: each device is a process, and this machine has {cores} cores. Use "
                f"trainer.devices {cores} or less"
            )
    if accelerator not in ("gpu", "cuda") and not (accelerator == "auto" and available > 0):
        return
    host = socket.gethostname()
    if available == 0:
        raise MachineError(
            f"trainer.accelerator {accelerator}: this machine ({host}) has no GPU that torch can use. Check "
            "nvidia-smi, or use trainer.accelerator auto"
        )
    if (requested or 0) > available:
        gpus = "1 GPU" if available == 1 else f"{available} GPUs"
        raise MachineError(
            f"trainer.devices {devices}: this machine ({host}) has {gpus}. Use trainer.devices {available}"
        )


def accumulation_steps(global_batch: int, batch_size: int, world_size: int) -> int:
    """Return the number of forward passes per step on each device; raise UserError if it is not a whole number."""
    per_pass = batch_size * world_size
    if global_batch % per_pass == 0:
        return global_batch // per_pass
    below = global_batch // per_pass * per_pass
    nearest = f"{below} or {below + per_pass}" if below else str(per_pass)
    sizes = _divisors(global_batch // world_size) if global_batch % world_size == 0 else []
    alternative = f"; with {world_size} devices, use a multiple of {world_size}"
    if sizes:
        alternative = f", or data.batch_size {min(sizes, key=lambda size: (abs(size - batch_size), -size))}"
    raise UserError(
        f"data.global_batch_size {global_batch}: not a multiple of {world_size} devices x data.batch_size {batch_size} "
        f"= {per_pass}. Nearest: data.global_batch_size {nearest}{alternative}"
    )


def _divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in small)]


def explain_launch_error(error: BaseException) -> MachineError | None:
    """Explain an error of torch if it means that the processes of a run could not connect; else return None."""
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    for pattern, message in _LAUNCH_ERRORS.items():
        if match := re.search(pattern, str(error), re.IGNORECASE):
            return MachineError(f"{address}: {message.format(*match.groups())}")
    return None


def refuse_disagreement(trainer: pl.Trainer, settings: Mapping[str, Any], resumed: Path | None) -> None:
    """Raise on all ranks if their settings, their text or the checkpoint to resume from differ."""
    if trainer.world_size == 1 or not distributed.is_initialized():
        return
    ranks: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(ranks, (socket.gethostname(), describe_rank(trainer, settings, resumed)))
    problem = describe_disagreement(ranks)
    if problem and trainer.is_global_zero:
        raise UserError(problem)
    if problem:
        raise SystemExit(UserError.exit_code)  # rank 0 prints the error


def describe_rank(trainer: pl.Trainer, settings: Mapping[str, Any], resumed: Path | None) -> RankInfo:
    """Return everything in which the ranks of a run must agree, under the names for the message."""
    text, gpt2 = datamodule_of(trainer), gpt2_of(trainer)
    info = {
        "gpt2kit": __version__,
        "torch": torch.__version__,
        **lifecycle.flatten(settings),
        "the tokenizer": tokenizers.fingerprint(text.tokenizer)[:12],
        **{f"the {split} text": text.store(split).fingerprint[:12] for split in text.splits},
        **lifecycle.flatten(run_state.identity(text, text.global_batch(trainer)), "the order of batches"),
        **lifecycle.flatten(gpt2.shape, "the model's shape"),
        "precision": trainer.precision,
        "attention": gpt2.choose_attention(trainer.strategy.root_device).value,
        "compile": gpt2.compiled,
        "steps": trainer.max_steps,
        "the checkpoint": resumed.name if resumed else "none",  # has its step and loss; folders may differ
    }
    return {name: str(value) for name, value in info.items()}


def describe_disagreement(ranks: list[tuple[str, RankInfo]]) -> str:
    """Return how the first rank that differs from rank 0 differs; empty if all agree. A rank is (host, info)."""
    first = ranks[0][1]
    others = [(rank, host, info) for rank, (host, info) in enumerate(ranks) if info != first]
    if not others:
        return ""
    rank, host, info = others[0]
    names = [name for name in {**first, **info} if info.get(name) != first.get(name)]
    differences = [f"{name} is {info.get(name)}, on rank 0 {first.get(name)}" for name in names[:5]]
    count = len(others) - 1
    also = f" ({count} more {'rank does' if count == 1 else 'ranks do'}, too)" if count else ""
    return (
        f"rank {rank} on {host} differs from rank 0{also}: {'; '.join(differences)}. Use the same files, versions and "
        "settings on all machines"
    )


class FSDP(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all devices: FSDP2 by Lightning's ModelParallelStrategy.

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
        return dict(dtensor.gather(self.lightning_module.state_dict(), self.is_global_zero))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        # Numbered by parameter group, as on one device. Lightning would number it in the order of the model.
        return dict(dtensor.gather(optimizer.state_dict(), self.is_global_zero))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Open a checkpoint of any strategy and number of ranks. It is memory-mapped, so a rank reads only its rows."""
        return checkpoint.read(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        if set(state) != set(checkpoint["state_dict"]):
            raise ValueError("the weights of the checkpoint have other names than those of the model")
        for name, tensor in state.items():
            tensor.copy_(dtensor.shard_like(tensor, checkpoint["state_dict"][name]))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: dtensor.shard_like(parameters[number], value) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
