"""The arithmetic of docs/scaling.md: memory, speed and network of GPT-2's sizes on many GPUs. Nothing is measured.

python bench/scaling.py
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
BLOCK = 1024
VOCABULARY = 50304  # OpenAI's 50257, rounded up to a multiple of 64


@dataclass(frozen=True)
class Size:
    """One of OpenAI's shapes."""

    name: str
    n_layer: int
    n_embd: int

    @property
    def block(self) -> int:
        """Parameters of one transformer block: matrices, biases, two norms."""
        return 12 * self.n_embd**2 + 13 * self.n_embd

    @property
    def root(self) -> int:
        """Parameters of what is no block: the tied embedding, positions, the last norm."""
        return (VOCABULARY + BLOCK + 2) * self.n_embd

    @property
    def parameters(self) -> int:
        return self.n_layer * self.block + self.root

    @property
    def flops(self) -> float:
        """Floating point operations a trained token takes: 6 a parameter, and attention's products."""
        return 6 * self.parameters + 12 * self.n_layer * self.n_embd * BLOCK


SIZES = [Size("small", 12, 768), Size("medium", 24, 1024), Size("large", 36, 1280), Size("xl", 48, 1600)]


def fixed(size: Size, gpus: int) -> float:
    """Bytes a GPU holds however small the batch, with AdamW: weights 4, gradients 4, two moments 8 a parameter.

    In shares (gpus > 1): a part of that, and whole for the moment: the root, and two blocks with their gradients.
    """
    gathered = 4 * (2 * size.root + 4 * size.block) if gpus > 1 else 0
    return 16 * size.parameters / gpus + gathered


def activations(size: Size) -> float:
    """Bytes a sequence of BLOCK tokens leaves for the backward pass: 34 a token, layer and width, 12 a logit."""
    return BLOCK * (34 * size.n_layer * size.n_embd + 12 * VOCABULARY)


def per_step_ddp(size: Size) -> float:
    """Bytes a GPU sends in a step: each gradient twice around the ring."""
    return 2 * 4 * size.parameters


def per_step_fsdp(size: Size, accumulation: int) -> float:
    """Bytes a GPU sends in a step: weights twice and gradients once, for each micro-batch."""
    return 3 * accumulation * 4 * size.parameters


def tables() -> str:
    """The tables of docs/scaling.md."""
    memory = [
        "| model | parameters | one copy each (DDP) | 8 shares | 64 shares | a sequence of 1,024 |",
        "|" + "---|" * 6,
    ]
    speed = [
        "| model | FLOP a token | tokens/s, A100 | tokens/s, H100 | sent a step, DDP | FSDP, 1 | FSDP, 8 |",
        "|" + "---|" * 7,
    ]
    for size in SIZES:
        held = [fixed(size, gpus) / GB for gpus in (1, 8, 64)]
        memory.append(
            f"| {size.name} | {size.parameters / 1e6:,.0f} M | "
            + " | ".join(f"{gigabytes:.1f} GB" for gigabytes in held)
            + f" | {activations(size) / GB:.2f} GB |"
        )
        a100, h100 = (0.4 * peak / size.flops for peak in (312e12, 989e12))
        sent = [per_step_ddp(size), per_step_fsdp(size, 1), per_step_fsdp(size, 8)]
        speed.append(
            f"| {size.name} | {size.flops / 1e9:.2f} G | {a100:,.0f} | {h100:,.0f} | "
            + " | ".join(f"{bytes_ / GB:.1f} GB" for bytes_ in sent)
            + " |"
        )
    return "\n".join([*memory, "", *speed])


if __name__ == "__main__":
    print(tables())
