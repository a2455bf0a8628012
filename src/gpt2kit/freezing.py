"""Which parameters stay as they are: names and numbers in a config to the model's parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from gpt2kit.errors import UserError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_GROUPS = {"embeddings": r"(wte|wpe)\.", "layers": r"h\.", "body": r"(?!wte\.)"}
"""Words for more than one part. The body is all but the token embedding, which is also the output layer."""


def frozen(model: nn.Module, words: Sequence[int | str]) -> list[str]:
    """The names of the parameters that `words` mean; everything wrong with the words in one UserError.

    A number is a layer, `0-3` are four; `embeddings`, `layers` and `body` are groups; anything else is a name of
    GPT-2's parts or the beginning of one: `wte`, `wpe`, `ln_f`, `h.0.attn`.
    """
    names = {name.removeprefix("transformer."): name for name, _ in model.named_parameters()}
    found: set[str] = set()
    for word in words:
        pattern = re.compile(_pattern(str(word)))
        meant = {whole for name, whole in names.items() if pattern.match(name)}
        if not meant:
            layers = len({name.split(".")[1] for name in names if name.startswith("h.")})
            raise UserError(
                f"model.freeze {word}: no such part. There are layers 0 to {layers - 1}, {', '.join(_GROUPS)}, and "
                "names such as wte, wpe, ln_f, h.0.attn"
            )
        found |= meant
    if len(found) == len(names):
        raise UserError("model.freeze: nothing is left to train. Freeze less")
    return [name for name in names.values() if name in found]


def _pattern(word: str) -> str:
    """A regular expression for the names that a word means."""
    if word in _GROUPS:
        return _GROUPS[word]
    if layers := _RANGE.fullmatch(word):
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return rf"h\.({'|'.join(map(str, range(first, min(last, first + 4096) + 1))) or '(?!)'})\."
    return rf"{re.escape(word)}(\.|$)"
