"""Which parameters stay as they are: names and numbers in a config to the model's parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

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
