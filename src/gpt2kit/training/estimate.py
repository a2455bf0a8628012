"""What a run will take before it is started: time from a few real steps, memory from a step on tensors without data."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable
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
from gpt2kit.model import attention
from gpt2kit.model.config import flops_per_token
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.trainer import make_trainer

_STEPS, _BATCHES, _SECONDS = 6, 4, 30.0
"""Optimizer steps and validation batches, and seconds after which no other step is begun."""

_MANY = 1_000_000

OPTIONS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": _BATCHES,
    "profiler": None,
}
"""Of the trial's trainer, in the place of the run's own."""


class Stopwatch(Callback):
    """Times the first optimizer steps and validation batches, then ends the trial."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.batches: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.steps.append(self._lap(trainer))
        if len(self.steps) >= _STEPS or self._since - self._begun > _SECONDS:
            set_max_steps(trainer, trainer.global_step)  # as far as it has come

    def on_validation_batch_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.append(self._lap(trainer))

    def _lap(self, trainer: pl.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def measure(
    options: dict[str, Any], data: TextDataModule, gpt2: GPT2Module, facts: dict[str, Any], limit: int | float | None
) -> dict[str, Any]:
    """Times, speed and memory of the trial, and what the whole run will take at this pace. The weights are changed.

    `options`: of the trial's trainer; `limit`: of the batches in a validation, by number or share, as the user has set
    it.
    """
    room, run = facts["memory"], facts["run"]
    if room["free"] is not None and room["total"] > room["free"]:
        return {"why_not": "it would not fit into memory"}
    watch = Stopwatch()
    trainer = make_trainer(**options | {"callbacks": [watch]})
    most = run["steps"] or _MANY
    set_max_steps(trainer, most)
    trainer.val_check_interval = most * trainer.accumulate_grad_batches + 1
    trainer.fit(gpt2, data)
    used = hardware.peak_memory(trainer.strategy.root_device)
    step = float(np.median(watch.steps[1:] or watch.steps))  # the first one sets up and compiles
    validation, validations = 0.0, 0
    if run["validation_every"]:
        trainer.validate(gpt2, data, verbose=False)
        whole = len(data.val_dataloader())
        batches = whole if limit is None else min(limit, whole) if isinstance(limit, int) else int(limit * whole)
        validation = float(np.median(watch.batches)) * batches
    left = max(most - run["done"], 1)
    if run["steps"] is None:  # as many as fit into the time
        between = validation / run["validation_every"] if run["validation_every"] else 0.0
        left = max(round(run["max_time"] / (step + between)), 1)
    if run["validation_every"]:
        validations = math.ceil(left / run["validation_every"])
    speed = run["global_batch"] * run["block_size"] / step
    peak = hardware.peak_flops(trainer.strategy.root_device, hardware.compute_dtype(str(trainer.precision)))
    return {
        "steps": max(len(watch.steps) - 1, 1),
        "step": step,
        "tokens_per_s": speed,
        "mfu": speed * flops_per_token(gpt2.shape, gpt2.model) / peak / trainer.world_size,
        "memory": used,
        "validation": validation,
        "validations": validations,
        "left": left,
        "seconds": watch.steps[0] + (left - 1) * step + validations * validation,
    }


PARTS = ("weights", "gradients", "optimizer state", "16-bit copies", "activations", "logits")
MOMENTS = ("passes", "update")
"""Forward and backward, when activations and logits are the most; and the optimizer's work after them."""


def of_step(
    gpt2: GPT2Module, batch: tuple[int, int], precision: str, device: torch.device, accumulate: int = 1
) -> dict[str, dict[str, int]]:
    """Bytes of each part at the two MOMENTS of a training step when all together are the most: one or the other is the
    step's peak.

    A copy of the model without data goes through two optimizer steps, the second one with the first one's optimizer
    state; each tensor that comes to be and goes is counted. So dropout, attention, precision, recomputation and
    any optimizer are in it as they are, and no formula has to follow them. What a device's library takes beside, and
    what compilation saves, are not.

    Args:
        gpt2: the model, as it was made; it is not touched.
        batch: sequences in one forward pass, and tokens in each.
        precision: by Lightning's name.
        device: that it will be trained on.
        accumulate: forward passes in an optimizer step.
    """
    mode = FakeTensorMode()
    shadow = _copied(gpt2, mode)
    with mode:
        dtype = hardware.compute_dtype(precision)
        _convert(shadow, device, dtype if precision.endswith("-true") else torch.float32)
        shadow.train()
        attention.use_attention(shadow.model, gpt2.choose_attention(device).value)
        optimizer = shadow.optimizer(parameter_groups(shadow.model))
        rows = torch.zeros(batch[0], batch[1] + 1, dtype=torch.long, device=device)
        kinds = _Kinds(shadow.model)
        live = Live(kinds)
        for parameter in shadow.parameters():
            live.track(parameter, "weights")
        mixed = torch.autocast(device.type, dtype, enabled=precision.endswith("-mixed"))
        with live:
            for _ in range(2):
                live.most = live.now.copy()
                optimizer.zero_grad()
                for _ in range(min(accumulate, 2)):
                    kinds.phase = "forward"
                    with mixed:
                        nll, tokens = shadow.model.nll(rows)
                        loss = nll / tokens
                    kinds.phase = "backward"
                    torch.autograd.backward(loss)
                    del loss, nll, tokens
                passes, live.most = live.most, live.now.copy()
                kinds.phase = "optimizer"
                nn.utils.clip_grad_norm_(shadow.parameters(), 1.0)
                optimizer.step()
    return dict(zip(MOMENTS, map(_parts, (passes, live.most)), strict=True))


def state_bytes(gpt2: GPT2Module) -> int:
    """Bytes of weights and optimizer state: what a checkpoint holds."""
    mode = FakeTensorMode()
    shadow = _copied(gpt2, mode)
    with mode:
        optimizer = shadow.optimizer(parameter_groups(shadow.model))
        for parameter in shadow.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in [*shadow.parameters(), *state])


def _parts(live: Counter[str]) -> dict[str, int]:
    """A tensor of activations may have a weight's shape by chance; there is one 16-bit copy of a weight at most."""
    found = {part: live[part] for part in PARTS}
    extra = max(found["16-bit copies"] - found["weights"] // 2, 0)
    return found | {"16-bit copies": found["16-bit copies"] - extra, "activations": found["activations"] + extra}


def _copied(gpt2: GPT2Module, mode: FakeTensorMode) -> GPT2Module:
    """The same model without data."""
    with FakeCopyMode(mode):
        return copy.deepcopy(gpt2)


def _convert(shadow: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """`Module.to`, which tensors without data do not take; a weight that is used twice stays one."""
    made: dict[int, nn.Parameter] = {}
    for module in shadow.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                empty = torch.empty(old.shape, dtype=dtype, device=device)
                new = made.setdefault(id(old), nn.Parameter(empty, requires_grad=old.requires_grad))
                module._parameters[name] = new


class _Kinds:
    """Which part a tensor belongs to, by its shape and when it comes to be."""

    def __init__(self, model: Any) -> None:
        self.phase = "forward"
        self._weights = {tuple(parameter.shape) for parameter in model.parameters()}
        self._rows = model.lm_head.weight.shape[0]

    def __call__(self, tensor: Tensor) -> str:
        shape = tuple(tensor.shape)
        if self.phase == "optimizer":
            return "optimizer state"
        if len(shape) > 1 and self._rows - 64 < shape[-1] <= self._rows and shape[0] != shape[-1]:
            return "logits"
        if shape in self._weights:
            return "gradients" if self.phase == "backward" else "16-bit copies" if _half(tensor) else "activations"
        return "activations"


def _half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, by kind, and keeps the counts of the moment with the most."""

    def __init__(self, kind: Callable[[Tensor], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.track, found)
        if self.now.total() > self.most.total():
            self.most = self.now.copy()
        return found

    def track(self, tensor: Tensor, kind: str | None = None) -> None:
        """Count a tensor's memory until it is freed, unless it is counted already."""
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        kind, size = kind or self.kind(tensor), storage.nbytes()
        self.now[kind] += size
        self._known[id(storage)] = weakref.finalize(storage, self._gone, id(storage), kind, size)

    def _gone(self, key: int, kind: str, size: int) -> None:
        self.now[kind] -= size
        del self._known[key]
