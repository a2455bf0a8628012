"""Estimates what a run needs: memory from two steps on tensors without data, disk space, time from a few real steps."""

from __future__ import annotations

import copy
import math
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gpt2kit import hardware
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.errors import MachineError
from gpt2kit.model import attention
from gpt2kit.model.config import flops_per_token, parameter_count
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.optim.trial import count_state
from gpt2kit.training.distributed import FSDP
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_info import RunInfo
from gpt2kit.training.trainer import make_trainer

# The dry run ends after this many optimizer steps, or with the first step that ends after this many seconds.
_STEPS, _SECONDS = 7, 30.0
# The last step that the schedule assumes if the number of steps is not known.
_MANY_STEPS = 1_000_000
# The options in which the trainer of a dry run differs from the run's: it writes nothing.
DRY_RUN_OPTIONS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 4,
    "profiler": None,
}
PARTS = ("weights", "gradients", "optimizer state", "16-bit copies", "activations", "logits")
# The next three constants are measured on CPUs, with glibc (bench/memory.py).
# Bytes that a process takes in addition once it trains: kernels made at the first step, logs, threads.
_LIBRARY_BYTES = 90_000_000
# The fraction of memory that compiled blocks and a compiled head still need. Dropout keeps its masks.
_COMPILED = {"activations": 0.85, "logits": 2 / 3}
# The fraction of the memory for activations that is lost to fragmentation: freed, but in pieces too small for the next
# tensors, so the process keeps it.
_FRAGMENTED = 0.55


def estimate_memory(trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> RunInfo:
    """Return the bytes of each part at the peak of a step, and the memory of the device."""
    device, batch = trainer.strategy.root_device, (data.batch_size, data.block_size)
    passes, update = estimate_step(gpt2, batch, str(trainer.precision), device, trainer.accumulate_grad_batches)
    if gpt2.compiled != "off":
        passes["logits"] = round(_COMPILED["logits"] * passes["logits"])
        if not any(gpt2.shape[f"{name}_pdrop"] for name in ("embd", "attn", "resid")):
            passes["activations"] = round(_COMPILED["activations"] * passes["activations"])
    parts = max(passes, update, key=lambda moment: sum(moment.values()))
    process = 0
    if device.type == "cpu":
        process = hardware.resident_memory() - sum(p.nbytes for p in gpt2.parameters()) + _LIBRARY_BYTES
        # During the update as well: the process keeps some of the memory that the passes have freed.
        parts["fragmented memory"] = round(_FRAGMENTED * (passes["activations"] + passes["16-bit copies"]))
    if trainer.world_size > 1:
        parts["exchange between devices"] = parts["weights"]
    free, machine = hardware.device_memory(device) or (None, None)
    total = process + sum(parts.values())
    return {"parts": {"program": process, **parts}, "total": total, "free": free, "machine": machine}


def refuse_too_large(trainer: pl.Trainer, gpt2: GPT2Module, tokens: int = 0) -> None:
    """Raise MachineError if training cannot fit into the memory, whatever is free, or UserError if the optimizer fails.

    Nothing is built; the optimizer takes a step with a few weights. The need is a lower bound: weights, gradients,
    optimizer state, and the activations that each layer must keep for `tokens` tokens in one forward pass. Sizes that
    are not known yet count as 1.
    """
    device = trainer.strategy.root_device
    state = count_state(gpt2.optimizer, device)
    limit = hardware.largest_memory(device)
    if limit is None or isinstance(trainer.strategy, FSDP):
        return
    shape = {name: 1 if value in ("auto", None) and name != "n_inner" else value for name, value in gpt2.shape.items()}
    parameters = parameter_count(shape)
    precision = str(trainer.precision)
    size = hardware.compute_dtype(precision).itemsize if precision.endswith("-true") else 4
    # Without gradients, a weight has only itself. It is built in float32.
    weight = 4 if gpt2.is_partly_frozen else max(4, (2 + state) * size)
    # Recomputation keeps the input of each layer; else at least 12 values of 16 bits for each of its elements are kept.
    activation = 2 if gpt2.recomputes else 24
    per_process = weight * parameters + activation * tokens * shape["n_layer"] * shape["n_embd"]
    processes = trainer.world_size // trainer.num_nodes if device.type == "cpu" else 1
    if per_process * processes > limit:
        batch = f" on {tokens:,} tokens at once" if tokens else ""
        several = f" in {processes} processes" if processes > 1 else ""
        raise MachineError(
            f"model: training {parameters:,} parameters{batch}{several} needs at least "
            f"{per_process * processes / 1e9:,.0f} GB of memory, and this machine has {limit / 1e9:,.0f} GB. Decrease "
            "model.n_embd, model.n_layer, data.batch_size or data.block_size"
        )


def describe_files(folder: str | None, gpt2: GPT2Module, checkpoints: int) -> RunInfo:
    """Return the run's folder, the size and number of its checkpoints, and the free space on the disk."""
    if folder is None:
        return {"folder": None}
    path = Path(folder).absolute()
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    return {"folder": folder, "checkpoint": checkpoint_bytes(gpt2), "kept": checkpoints, "free": free}


class DryRunTimer(Callback):
    """Measures the first optimizer steps and the validation batches, and ends the training after these steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.batches: list[float] = []
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.steps.append(self._lap(trainer))
        is_late = sum(self.steps) > _SECONDS and len(self.steps) > 2  # the first two compile
        if len(self.steps) >= _STEPS or is_late:
            set_max_steps(trainer, trainer.global_step)

    def on_validation_batch_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.append(self._lap(trainer))

    def _lap(self, trainer: pl.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        last, self._since = self._since, time.perf_counter()
        return self._since - last


def measure_speed(
    options: dict[str, Any], data: TextDataModule, gpt2: GPT2Module, info: RunInfo, limit_val_batches: float | None
) -> RunInfo:
    """Train a few steps, which changes the weights; return speed and memory, and the time of the whole run.

    `options` are those of the dry run's trainer; `limit_val_batches` is the user's own, a number or a fraction.
    """
    memory, run = info["memory"], info["run"]
    if memory["free"] is not None and memory["total"] > memory["free"]:
        return {"problem": "it would not fit into memory"}
    timer = DryRunTimer()
    trainer = make_trainer(**options | {"callbacks": [timer]})
    total = run["steps"] or _MANY_STEPS
    set_max_steps(trainer, total)
    trainer.val_check_interval = total * trainer.accumulate_grad_batches + 1
    trainer.fit(gpt2, data)
    peak_memory = hardware.peak_memory(trainer.strategy.root_device)
    first_steps = timer.steps[:2]  # they set up and compile
    step = float(np.median(timer.steps[2:] or timer.steps))
    interval, validation = run["validation_every"], 0.0
    if interval:
        trainer.validate(gpt2, data, verbose=False)
        batches = len(data.val_dataloader())
        if isinstance(limit_val_batches, int):
            batches = min(limit_val_batches, batches)
        elif limit_val_batches is not None:
            batches = int(limit_val_batches * batches)
        validation = float(np.median(timer.batches)) * batches
    steps_left = max(total - run["done"], 1)
    if run["steps"] is None:  # the steps that fit into the time, each with its part of a validation
        steps_left = max(round(run["max_time"] / (step + validation / (interval or 1))), 1)
    validations = math.ceil(steps_left / interval) if interval else 0
    tokens_per_s = run["global_batch"] * run["block_size"] / step
    peak = hardware.peak_flops(trainer.strategy.root_device, hardware.compute_dtype(str(trainer.precision)))
    flops_per_s = tokens_per_s * flops_per_token(gpt2.shape, gpt2.model)
    return {
        "steps": max(len(timer.steps) - 2, 1),
        "step": step,
        "tokens_per_s": tokens_per_s,
        "mfu": flops_per_s / peak / trainer.world_size if peak else None,
        "memory": peak_memory,
        "validation": validation,
        "validations": validations,
        "left": steps_left,
        "seconds": sum(first_steps) + max(steps_left - len(first_steps), 0) * step + validations * validation,
    }


def estimate_step(
    gpt2: GPT2Module, batch: tuple[int, int], precision: str, device: torch.device, accumulate: int = 1
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of each of PARTS at the two moments of a training step that can be its peak.

    These are forward and backward, when activations and logits are largest, and the update, when the optimizer works.
    A copy of the model without data takes two optimizer steps, the second one with the optimizer state of the first,
    and each tensor is counted while it exists. So dropout, attention, precision, recomputation and any optimizer need
    no formulas. The memory that libraries use and that compilation saves is not included. `batch` is the number of
    sequences per forward pass and of tokens per sequence, `accumulate` the number of forward passes per step.
    """
    mode = FakeTensorMode()
    copied = _copy_without_data(gpt2, mode)
    with mode:
        dtype = hardware.compute_dtype(precision)
        _convert(copied, device, dtype if precision.endswith("-true") else torch.float32)
        copied.train()
        attention.use_attention(copied.model, gpt2.choose_attention(device).value)
        optimizer = copied.optimizer(parameter_groups(copied.model))
        rows = torch.zeros(batch[0], batch[1] + 1, dtype=torch.long, device=device)
        classifier = _PartClassifier(copied.model)
        live = LiveTensors(classifier)
        for parameter in copied.parameters():
            live.track(parameter, "weights")
        autocast = torch.autocast(device.type, dtype, enabled=precision.endswith("-mixed"))
        with live:
            for _ in range(2):
                live.reset_peak()
                optimizer.zero_grad()
                for _ in range(min(accumulate, 2)):
                    classifier.phase = "forward"
                    with autocast:
                        nll, tokens = copied.model.nll(rows)
                        loss = nll / tokens
                    classifier.phase = "backward"
                    torch.autograd.backward(loss)
                    del loss, nll, tokens
                passes = live.reset_peak()
                classifier.phase = "optimizer"
                nn.utils.clip_grad_norm_(copied.parameters(), 1.0)
                optimizer.step()
    return _correct_copies(passes), _correct_copies(live.peak)


def checkpoint_bytes(gpt2: GPT2Module) -> int:
    """Return the bytes of weights and optimizer state."""
    mode = FakeTensorMode()
    copied = _copy_without_data(gpt2, mode)
    with mode:
        optimizer = copied.optimizer(parameter_groups(copied.model))
        for parameter in copied.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in [*copied.parameters(), *state])


def _correct_copies(live: Counter[str]) -> dict[str, int]:
    """Count as activations the 16-bit tensors that only happen to have a weight's shape: a weight has one copy."""
    parts = {part: live[part] for part in PARTS}
    excess = max(parts["16-bit copies"] - parts["weights"] // 2, 0)
    return parts | {"16-bit copies": parts["16-bit copies"] - excess, "activations": parts["activations"] + excess}


def _copy_without_data(gpt2: GPT2Module, mode: FakeTensorMode) -> GPT2Module:
    with FakeCopyMode(mode):
        return copy.deepcopy(gpt2)


def _convert(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Do what `Module.to` does, which fails on tensors without data. Tied weights stay tied."""
    converted: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                empty = torch.empty(old.shape, dtype=dtype, device=device)
                new = nn.Parameter(empty, requires_grad=old.requires_grad)
                module._parameters[name] = converted.setdefault(id(old), new)


class _PartClassifier:
    """Returns which of PARTS a new tensor belongs to, by its shape and the phase of the step."""

    def __init__(self, model: Any) -> None:
        self.phase = "forward"
        self._weight_shapes = {tuple(parameter.shape) for parameter in model.parameters()}
        self._vocab_rows = model.lm_head.weight.shape[0]

    def __call__(self, tensor: Tensor) -> str:
        shape = tuple(tensor.shape)
        if self.phase == "optimizer":
            return "optimizer state"
        # The embedding has up to 63 rows more than the vocabulary, which are cut off before the loss.
        if len(shape) > 1 and self._vocab_rows - 64 < shape[-1] <= self._vocab_rows and shape[0] != shape[-1]:
            return "logits"
        if shape not in self._weight_shapes:
            return "activations"
        if self.phase == "backward":
            return "gradients"
        return "16-bit copies" if tensor.dtype in (torch.bfloat16, torch.float16) else "activations"


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that exist, by the part that `classify` returns, and keeps those of the peak."""

    def __init__(self, classify: Callable[[Tensor], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.classify = classify
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}

    def reset_peak(self) -> Counter[str]:
        """Return the counts of the peak so far, and start a new one."""
        peak, self.peak = self.peak, self.now.copy()
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.track, result)
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        return result

    def track(self, tensor: Tensor, part: str | None = None) -> None:
        """Count a tensor's memory until it is freed, unless it is counted already."""
        storage = tensor.untyped_storage()
        if id(storage) in self._finalizers:
            return
        part, size = part or self.classify(tensor), storage.nbytes()
        self.now[part] += size
        self._finalizers[id(storage)] = weakref.finalize(storage, self._untrack, id(storage), part, size)

    def _untrack(self, key: int, part: str, size: int) -> None:
        self.now[part] -= size
        del self._finalizers[key]
