"""Training a part of a model: frozen parameters, and LoRA.

LoRA trains small matrices beside the hidden ones instead of these; the `peft` package adds them. Only a run in progress
has them: opening its checkpoint merges them, so evaluation, generation, export and `model.init_from` see a plain GPT-2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from gpt2kit.errors import UserError, refuse

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_GROUPS = {"embeddings": r"(wte|wpe)\.", "layers": r"h\.", "body": r"(?!wte\.)"}
"""Words for more than one part. The body is all but the token embedding, which is also the output layer."""


class Frozen:
    """Parameters that are not trained, for good or for some steps: which at a step depends on nothing but the step.

    Those that are frozen for good get no gradient and are not in the optimizer. The others are, but lose their
    gradient before each of those steps; without one an optimizer leaves a parameter alone and makes no state for it.
    Their `requires_grad` stays as it is: compiled and distributed models rely on it.

    Args:
        model: the bare model.
        words: what is frozen, see `frozen`.
        steps: optimizer steps that it holds for; None: all.
    """

    def __init__(self, model: nn.Module, words: Sequence[int | str] | int | str, steps: int | None = None) -> None:
        self.names = frozen(model, [words] if isinstance(words, (int, str)) else words)
        self.steps = steps
        self._model = model
        if steps is None:
            for name in self.names:
                model.get_parameter(name).requires_grad_(False)

    def hold(self, step: int) -> None:
        """Take the gradients of what is frozen at optimizer step `step`, counted from 0."""
        if self.steps is not None and step < self.steps:
            for name in self.names:
                self._model.get_parameter(name).grad = None  # looked up now: FSDP puts others in their place

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on; plain types."""
        return {"parameters": self.names, "steps": self.steps}


def frozen(model: nn.Module, words: Sequence[int | str]) -> list[str]:
    """The names of the parameters that `words` mean; everything wrong with the words in one UserError.

    A number is a layer, `0-3` are four; `embeddings`, `layers` and `body` are groups; anything else is a name of
    GPT-2's parts or the beginning of one: `wte`, `wpe`, `ln_f`, `h.0.attn`.
    """
    names = {name.removeprefix("transformer."): name for name, _ in model.named_parameters()}
    refuse([problem for word in words if (problem := _problem(str(word), names))])
    found: set[str] = set()
    for word in words:
        pattern = re.compile(_pattern(str(word)))
        found |= {whole for name, whole in names.items() if pattern.match(name)}
    if len(found) == len(names):
        raise UserError("model.freeze: nothing is left to train. Freeze less")
    return [name for name in names.values() if name in found]


def _problem(word: str, names: Collection[str]) -> str | None:
    """What is wrong with a word, with the nearest one that means something."""
    last = len({name.split(".")[1] for name in names if name.startswith("h.")}) - 1
    if layers := _RANGE.fullmatch(word):
        begin, end = int(layers[1]), int(layers[2] or layers[1])
        if begin <= end <= last:
            return None
        near = sorted({min(begin, last), min(end, last)})
        return f"model.freeze {word}: there are layers 0 to {last}. Nearest: {'-'.join(map(str, near))}"
    if any(re.match(_pattern(word), name) for name in names):
        return None
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    near_words = difflib.get_close_matches(word, sorted({*_GROUPS, *parts}), n=1)
    meant = f" (did you mean {near_words[0]}?)" if near_words else ""
    return (
        f"model.freeze {word}: no such part{meant}. There are layers 0 to {last}, {', '.join(_GROUPS)}, and names such "
        "as wte, wpe, ln_f, h.0.attn"
    )


def _pattern(word: str) -> str:
    """A regular expression for the names that a word means."""
    if word in _GROUPS:
        return _GROUPS[word]
    if layers := _RANGE.fullmatch(word):
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return rf"h\.({'|'.join(map(str, range(first, last + 1)))})\."
    return rf"{re.escape(word)}(\.|$)"


SCALE = 2.0
"""What the product of the two small matrices is multiplied by."""
_BASE = ".base_layer."


def adapt(model: nn.Module, rank: int | None, embedding: bool) -> None:
    """Put two matrices of `rank` beside each hidden one, and freeze all else; but for the token embedding, if wanted.

    They begin as no change at all. With no rank, or done already, nothing happens.
    """
    if not rank or any("lora_" in name for name, _ in model.named_parameters()):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora: needs the package peft: pip install 'peft>=0.18'") from None
    parts = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), target_modules=parts, fan_in_fan_out=True)
    inject_adapter_in_model(config, model)
    if embedding:
        model.get_parameter("transformer.wte.weight").requires_grad_(True)


def merged(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a plain GPT-2: W + scale (B A)^T for each hidden matrix, which GPT-2 keeps as [in, out].

    What does not fit together is left under its odd name, for whoever compares names.
    """
    found = dict(state)
    for name, base in state.items():
        if not isinstance(name, str) or _BASE not in name:
            continue
        stem, part = name.split(_BASE, 1)
        if part != "weight":
            found[f"{stem}.{part}"] = found.pop(name)
            continue
        names = [f"{stem}.lora_{letter}.default.weight" for letter in "AB"]
        a, b = (state.get(small) for small in names)
        if _fit(base, a, b):
            found[f"{stem}.weight"] = found.pop(name) + SCALE * (found.pop(names[1]) @ found.pop(names[0])).T
    return found


def _fit(base: object, a: object, b: object) -> bool:
    """Whether they are the matrices [in, out], [rank, in] and [out, rank]."""
    if not all(isinstance(one, torch.Tensor) and one.ndim == 2 and one.is_floating_point() for one in (base, a, b)):
        return False
    wide, first, second = (tuple(one.shape) for one in (base, a, b) if isinstance(one, torch.Tensor))
    return (first[1], second[0]) == wide and first[0] == second[1] and a.dtype == b.dtype == base.dtype  # type: ignore[attr-defined]
