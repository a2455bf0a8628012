"""What `auto` means for the size of the model, dropout, the optimizer and the number of passes over the text.

The size follows from the number of tokens, dropout and weight decay from the number of passes, and learning rates from
the width and, for a run that starts from weights, from how well these predict the text (docs/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt2kit.data.batches import BlockDataset
from gpt2kit.data.store import TokenStore
from gpt2kit.model.config import Shape, flops_per_token, parameter_count
from gpt2kit.optim.adamw import DEFAULT_DECAY, AdamW
from gpt2kit.optim.muon import Muon

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2

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
# The factor on the learning rates for text that initial weights know, and for text that they do not; between these, its
# logarithm is linear (docs/experiments.md). They know a text if its bits per byte are at most 1.05 times those of their
# own validation text, or, if these are unknown, if its loss is at most 0.58 times the entropy of its tokens.
_FACTORS = (0.03, 1.0)
_OF_OWN_TEXT, _OF_ENTROPY = (1.05, 1.5), (0.58, 1.0)
# Tokens of the text on which that is measured: its frequencies, and the loss.
_FREQUENCY_TOKENS, _LOSS_TOKENS = 1 << 16, 1 << 13
# A run without a limit reads at most this many tokens, but the text at least once.
_TOKENS_TO_READ = 20_000_000
# The maximum number of passes of a run that starts from pretrained weights.
_PRETRAINED_PASSES = 3


@dataclass(frozen=True)
class Sizes:
    """The numbers that replace `auto`. The defaults are for a model that is built without a text."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.0
    weight_decay: float = DEFAULT_DECAY
    passes: float = 1.0
    rate_factor: float = 1.0  # on the learning rates of random weights

    def optimizer_options(self, optimizer: type) -> dict[str, float]:
        """Return the options of a class of optimizers that may be `auto`, with these numbers."""
        if not issubclass(optimizer, Muon | AdamW):
            return {}
        rates = {name: rate * self.rate_factor for name, rate in optimizer.rates(self.n_embd).items()}
        return {**{name: float(f"{rate:.2g}") for name, rate in rates.items()}, "weight_decay": self.weight_decay}

    def options(self, max_epochs: int | None, optimizer: type) -> dict[str, int | float | None]:
        """Return the options that may be `auto`, by their names in a config, with these numbers."""
        return {
            **{f"model.{name}": getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "dropout")},
            **{f"model.optimizer.init_args.{name}": value for name, value in self.optimizer_options(optimizer).items()},
            "trainer.max_epochs": max_epochs,
        }


# The options whose values may be chosen when the text is known, with the value that asks for it.
AUTOMATIC: dict[str, str | None] = {
    **dict.fromkeys(Sizes().options(None, Muon), "auto"),  # those of AdamW are among them
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
        is_pretrained: whether the run starts from pretrained weights; then it makes few passes, without dropout.
    """
    rows = [row for row in _SIZES if tokens >= row[0]]
    for _, layers, heads, width, _ in reversed(rows):
        size = _fill(shape, layers, heads, width)
        if flops is None or flops >= flops_per_token(size) * parameter_count(size):
            break
    if flops is not None:
        passes = flops / (flops_per_token(size) * tokens)
    elif passes is None:
        most = _PRETRAINED_PASSES if is_pretrained else rows[-1][-1]
        passes = min(max(round(_TOKENS_TO_READ / tokens), 1), most)
    dropout, weight_decay = Sizes.dropout, Sizes.weight_decay
    if not is_pretrained:
        full_passes = round(passes, 1)  # 4 epochs are a little less than 4 passes: the last tokens make no block
        _, dropout, weight_decay = [row for row in _REGULARIZATION if full_passes >= row[0]][-1]
    return Sizes(size["n_layer"], size["n_head"], size["n_embd"], dropout, weight_decay, passes)


@dataclass(frozen=True)
class InitialLoss:
    """The loss of initial weights on a text, before training."""

    bits_per_byte: float
    of_entropy: float  # relative to the entropy of the frequencies of the text's tokens
    own_bits_per_byte: float | None  # of the weights' own validation text; None if unknown

    def rate_factor(self) -> float:
        """Return the factor on the learning rates of random weights: the better the loss, the lower."""
        value, (known, new) = self.of_entropy, _OF_ENTROPY
        if self.own_bits_per_byte:
            value, (known, new) = self.bits_per_byte / self.own_bits_per_byte, _OF_OWN_TEXT
        position = min(max((value - known) / (new - known), 0.0), 1.0)
        low, high = _FACTORS
        return float(low ** (1 - position) * high**position)

    def describe(self) -> str:
        """Return the comparison that decides the factor."""
        if self.own_bits_per_byte:
            own = f"{self.own_bits_per_byte:.3f} on the weights' own text"
            return f"{self.bits_per_byte:.3f} bits per byte before training, {own}"
        return f"the loss before training is {self.of_entropy:.2f} of the tokens' entropy"


@torch.no_grad()
def measure_loss(gpt2: GPT2, text: TokenStore, block_size: int, own_bits_per_byte: object = None) -> InitialLoss:
    """Return the loss of initial weights on a text. `own_bits_per_byte` is what their checkpoint says, if anything."""
    count = max(_FREQUENCY_TOKENS // block_size, 1)
    end = text.shards[0].tokens  # of one shard, as others may have to be fetched
    starts = np.linspace(0, max(end - block_size - 1, 0), count, dtype=np.int64)
    blocks = BlockDataset(text, block_size)[starts]  # (count, block_size + 1), filled with a negative number
    frequencies = torch.bincount(blocks[blocks >= 0]).double() / (blocks >= 0).sum()
    entropy = torch.special.entr(frequencies).sum().item()
    is_training = gpt2.training
    nats, tokens = gpt2.eval().nll(blocks[:: math.ceil(count * block_size / _LOSS_TOKENS)])
    gpt2.train(is_training)
    loss, shard = nats.item() / max(tokens.item(), 1), text.shards[0]  # all of it may be context
    own = own_bits_per_byte if isinstance(own_bits_per_byte, float) and 0 < own_bits_per_byte < math.inf else None
    bits = loss / math.log(2) * shard.tokens / max(shard.bytes, 1)
    return InitialLoss(bits, loss / entropy if entropy else 1.0, own)


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
