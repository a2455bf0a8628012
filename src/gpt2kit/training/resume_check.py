"""Compare a checkpoint with what the resumed run would save, before anything in the run's folder is changed.

Without this check, a damaged file could stop the run halfway, or it could continue with part of the optimizer's state.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.validation import EMBEDDING, HEAD, is_float_tensor, structure_problem
from gpt2kit.errors import CheckpointError
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.optim.muon import POLYNOMIALS
from gpt2kit.optim.trial import first_step
from gpt2kit.ranges import range_problems
from gpt2kit.training.module import GPT2Module

# Rows of the tiny parameters whose optimizer state shows what is expected, and columns for each of their parts.
_TINY = 6


def refuse_damaged(trainer: pl.Trainer, gpt2: GPT2Module, raw: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a part of a checkpoint is missing or has a wrong type or shape."""
    loop = raw["loops"]["fit_loop"]
    problem = structure_problem(loop, trainer.fit_loop.state_dict(), "loops.fit_loop")
    step = raw[checkpoint.KEY]["step"]
    if not problem:
        progress = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        if (count := progress["total"]["completed"]) != step:
            problem = f"its loops have counted {count} steps, but the run has made {step}"
        loaders = loop["state_dict"].get("combined_loader", [])
        if not isinstance(loaders, list) or loaders:  # gpt2kit's have no state
            problem = "loops.fit_loop.state_dict has states of data loaders"
    start = raw[checkpoint.KEY].get("start")  # a dictionary where the run began with initial weights
    if start is not None and not (isinstance(start, dict) and isinstance(start.get("val_bpb", ""), float | None)):
        problem = problem or "gpt2kit.start is invalid"
    problem = problem or _callback_problem(trainer, raw["callbacks"])
    problem = problem or _weights_problem(raw["state_dict"], gpt2.state_dict())
    has_skipped = raw[checkpoint.KEY]["skipped"] or trainer.scaler is not None
    problem = problem or _optimizer_problem(raw["optimizer_states"][0], gpt2, bool(has_skipped))
    rates = raw["lr_schedulers"][0]["base_lrs"]
    if not problem and len(rates) != len(raw["optimizer_states"][0]["param_groups"]):
        problem = "lr_schedulers.0.base_lrs does not have one value for each group of parameters"
    problem = problem or _range_problem({"lr": rates}, "lr_schedulers.0.base_lrs")
    if problem:
        raise CheckpointError(f"{trainer.ckpt_path}: {problem}: the file is damaged. Resume from another checkpoint")


def _callback_problem(trainer: pl.Trainer, states: Mapping[str, Any]) -> str:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        is_own = type(callback).__module__.startswith("gpt2kit.")
        expected, saved = callback.state_dict(), states.get(callback.state_key)
        if is_own and saved is not None and (problem := structure_problem(saved, expected, "callbacks")):
            return problem
    return ""


def _weights_problem(saved: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    for name, weight in weights.items():
        value = saved.get(name)
        if not is_float_tensor(value) or value.shape != weight.shape:
            return f"tensor {name} is missing, or has a different type or shape"
    if EMBEDDING in weights and not torch.equal(saved[EMBEDDING], saved[HEAD]):
        return "the output embedding differs from the input embedding"
    return ""


def _optimizer_problem(saved: Mapping[str, Any], gpt2: GPT2Module, has_skipped: bool) -> str:
    """Return where an optimizer's saved state differs from that of the same optimizer after one step.

    Parameters that are frozen in the first steps have no state. If all updates so far were skipped, none has.
    """
    groups, states = parameter_groups(gpt2.model), saved["state"]
    names = {id(parameter): name for name, parameter in gpt2.model.named_parameters()}
    is_empty = has_skipped and not any(states.values())
    if len(groups) != len(saved["param_groups"]):
        return "optimizer_states.0.param_groups has a different number of groups"
    config_example = _example(gpt2, groups)
    for number, (group, saved_group) in enumerate(zip(groups, saved["param_groups"], strict=True)):
        where = f"optimizer_states.0.param_groups.{number}"
        if len(group["params"]) != len(saved_group["params"]):
            return f"{where} has different parameters"
        parts = group.get("parts")
        # Runs of earlier versions have 3 parts: the queries, keys and values of all heads.
        if saved_group.get("parts") not in (parts, parts and [min(count, 3) for count in parts]):
            return f"{where}.parts has a different value"
        if config_example is None:  # an optimizer that needs more than gradients for a step
            continue
        options = {name: _as_list(value) for name, value in config_example.param_groups[number].items()}
        numbers = {name: value for name, value in options.items() if _is_number(value)}
        if numbers.pop("newton_schulz_steps", None):  # missing in runs of earlier versions, which took five
            steps = saved_group.get("newton_schulz_steps", 5)
            if type(steps) is not int or steps not in POLYNOMIALS:
                return f"{where}.newton_schulz_steps has an unknown value"
        if problem := structure_problem(saved_group, numbers, where) or _range_problem(saved_group, where):
            return problem
        for name, value in numbers.items():
            if isinstance(value, list) and len(saved_group[name]) != len(value):
                return f"{where}.{name} has a different number of values"
    if config_example is None:
        return ""
    example = _example(gpt2, groups, saved["param_groups"])
    if example is None or any(group.get("maximize") for group in example.param_groups):
        return "optimizer_states.0.param_groups has options with which the optimizer cannot make a step"
    for group, example_group, saved_group in zip(groups, example.param_groups, saved["param_groups"], strict=True):
        keys = saved_group["params"]
        for parameter, tiny, key in zip(group["params"], example_group["params"], keys, strict=True):
            state, name = states.get(key) if type(key) is int else None, names[id(parameter)]
            if not state and (is_empty or name in gpt2.frozen.names):
                continue
            for part, value in example.state[tiny].items():
                size = parameter.shape if isinstance(value, Tensor) and value.shape == tiny.shape else None
                if not _is_like(state.get(part) if isinstance(state, Mapping) else None, value, size):
                    return f"{part} in the optimizer's state of {name} is missing, or has a different type or shape"
    return ""


def _range_problem(options: Mapping[str, Any], where: str) -> str:
    problems = range_problems({f"model.optimizer.{name}": value for name, value in options.items()})
    return f"{where} is invalid ({problems[0].partition(': ')[2]})" if problems else ""


def _example(
    gpt2: GPT2Module, groups: list[dict[str, Any]], saved: Sequence[Mapping[str, Any]] = ()
) -> Optimizer | None:
    """Return an optimizer of tiny parameters after its first step, with saved options if any; None if it fails."""

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        optimizer = gpt2.make_optimizer(groups)
        for group, options in zip(optimizer.param_groups, saved, strict=False):
            group.update({name: value for name, value in options.items() if name != "params"})
        return optimizer

    try:
        return first_step(make, [{**group, "params": _tiny_parameters(group)} for group in groups])
    except Exception:  # a user's class, or a saved option
        return None


def _tiny_parameters(group: Mapping[str, Any]) -> list[Tensor]:
    """Return parameters with few rows, and as few columns for each of their parts."""
    parts = group.get("parts") or itertools.repeat(1)
    return [
        torch.zeros([*[_TINY] * (parameter.ndim - 1), _TINY * count])
        for parameter, count in zip(group["params"], parts, strict=False)
    ]


def _is_like(value: object, expected: object, size: torch.Size | None) -> bool:
    """Return whether a value has the type of another one, and the size of a parameter if that is not None."""
    if not isinstance(expected, Tensor):
        return isinstance(value, type(expected))
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    if expected.is_floating_point() and not is_float_tensor(value):
        return False
    # A single number keeps its type when it is loaded, unlike what has the size of a parameter.
    is_same = expected.ndim > 0 or (value.ndim == 0 and value.dtype == expected.dtype)
    return is_same and (size is None or value.shape == size)


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: object) -> bool:
    return type(value) in (int, float) or (isinstance(value, list) and bool(value) and all(map(_is_number, value)))
