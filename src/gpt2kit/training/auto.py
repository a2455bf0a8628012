"""What `auto` means for the size of the model, dropout, the optimizer and the number of passes over the text.

The size follows from the number of tokens, dropout and weight decay from the number of passes, and learning rates from
the width (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2kit.model.config import Shape, flops_per_token, parameter_count
from gpt2kit.optim.adamw import DEFAULT_DECAY
from gpt2kit.optim.muon import learning_rates

# Layers, heads, width and the maximum number of passes, if the training text has at least the first number of tokens.
_SIZES = (
    (0, 4, 4, 128, 6),
    (100_000, 6, 6, 192, 12),
    (1_000_000, 6, 6, 384, 8),
    (10_000_000, 8, 8, 512, 8),
    (100_000_000, 12, 12, 768, 8),
)
# Dropout and weight decay, if the text is read at least the first number of times (docs/experiments.md).
_REGULARIZATION = ((0, 0.0, DEFAULT_DECAY), (4, 0.1, 0.5), (10, 0.1, 2.0))
# A run without a limit reads at most this many tokens, but the text at least once.
_TOKENS_TO_READ = 20_000_000


@dataclass(frozen=True)
class Sizes:
    """The numbers that replace `auto`. The defaults are for a model that is built without a text."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.0
    weight_decay: float = DEFAULT_DECAY
    passes: float = 1.0

    def optimizer_options(self) -> dict[str, float]:
        """Return the options of the optimizer that may be `auto`, with these numbers."""
        lr, adamw_lr = learning_rates(self.n_embd)
        return {"lr": lr, "adamw_lr": adamw_lr, "weight_decay": self.weight_decay}

    def options(self, max_epochs: int | None) -> dict[str, int | float | None]:
        """Return the options that may be `auto`, by their names in a config, with these numbers."""
        return {
            **{f"model.{name}": getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "dropout")},
            **{f"model.optimizer.init_args.{name}": value for name, value in self.optimizer_options().items()},
            "trainer.max_epochs": max_epochs,
        }


# The options whose values may be chosen when the text is known, with the value that asks for it.
AUTOMATIC: dict[str, str | None] = {
    **dict.fromkeys(Sizes().options(None), "auto"),
    **dict.fromkeys(["data.tokenizer", "data.valid_fraction", "data.test_fraction"]),
}


def is_automatic(name: str, value: object) -> bool:
    """Return whether an option is chosen when the text is known. A resumed run keeps the value that was chosen."""
    return name in AUTOMATIC and value == AUTOMATIC[name]


def choose(
    tokens: int, shape: Shape, passes: float | None = None, flops: float | None = None, is_pretrained: bool = False
) -> Sizes:
    """Return the numbers for a training text.

    Args:
        tokens: tokens of the training text.
        shape: the model's options, of which n_layer, n_head and n_embd may be `auto`.
        passes: the number of passes, if a limit of the run decides it.
        flops: the FLOPs of the whole run, if time is its only limit. They decide the number of passes. A model that
            would read fewer tokens than it has parameters is replaced by a smaller one.
        is_pretrained: whether the run starts from pretrained weights; then one pass is the default.
    """
    rows = [row for row in _SIZES if tokens >= row[0]]
    for _, layers, heads, width, _ in reversed(rows):
        size = _fill(shape, layers, heads, width)
        if flops is None or flops >= flops_per_token(size) * parameter_count(size):
            break
    if flops is not None:
        passes = flops / (flops_per_token(size) * tokens)
    elif passes is None:
        passes = 1 if is_pretrained else min(max(round(_TOKENS_TO_READ / tokens), 1), rows[-1][-1])
    dropout, weight_decay = Sizes.dropout, Sizes.weight_decay
    if not is_pretrained:
        full_passes = round(passes, 1)  # 4 epochs are a little less than 4 passes: the last tokens make no block
        _, dropout, weight_decay = [row for row in _REGULARIZATION if full_passes >= row[0]][-1]
    return Sizes(size["n_layer"], size["n_head"], size["n_embd"], dropout, weight_decay, passes)


def _fill(shape: Shape, layers: int, heads: int, width: int) -> Shape:
    """Replace `auto` in a shape. If only the width or only the number of heads is set, the other one fits it."""
    layers = layers if shape["n_layer"] == "auto" else shape["n_layer"]
    if shape["n_head"] != "auto":
        heads = shape["n_head"]
        width = -(-width // heads) * heads
    if shape["n_embd"] != "auto":
        width = shape["n_embd"]
    if shape["n_head"] == "auto":
        most = max(width // (32 if width < 384 else 64), 1)
        heads = next(count for count in range(most, 0, -1) if width % count == 0)
    return {**shape, "n_layer": layers, "n_head": heads, "n_embd": width}


def set_option(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set an option of nested settings by its dotted name."""
    *sections, last = name.split(".")
    for section in sections:
        settings = settings[section]
    settings[last] = value
