"""Estimates for docs/distributed.md: memory, speed and network traffic of GPT-2 on many GPUs. Nothing is measured.

python bench/scaling.py
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
BLOCK = 1024
VOCABULARY = 50304  # OpenAI's 50257, rounded up to a multiple of 64


@dataclass(frozen=True)
class Size:
    """A size of GPT-2 as OpenAI published it."""

    name: str
    n_layer: int
    n_embd: int

    @property
    def block(self) -> int:
        """Parameters of one transformer block: matrices, biases, two norms."""
        return 12 * self.n_embd**2 + 13 * self.n_embd

    @property
    def root(self) -> int:
        """Parameters outside the blocks: token embedding (tied), position embedding, final norm."""
        return (VOCABULARY + BLOCK + 2) * self.n_embd

    @property
    def parameters(self) -> int:
        return self.n_layer * self.block + self.root

    @property
    def flops(self) -> float:
        """FLOPs per trained token: 6 per parameter, and the matrix products of attention."""
        return 6 * self.parameters + 12 * self.n_layer * self.n_embd * BLOCK


SIZES = [Size("small", 12, 768), Size("medium", 24, 1024), Size("large", 36, 1280), Size("xl", 48, 1600)]


def fixed(size: Size, gpus: int) -> float:
    """Return the bytes per GPU without activations, with AdamW: weights 4, gradients 4, two moments 8 per parameter.

    Sharded over several GPUs, each holds its part of them; and, gathered while they are in use, the root and two blocks
    with their gradients.
    """
    gathered = 4 * (2 * size.root + 4 * size.block) if gpus > 1 else 0
    return 16 * size.parameters / gpus + gathered


def activations(size: Size) -> float:
    """Return the bytes of activations per sequence of BLOCK tokens: 34 per token, layer and width; 12 per logit."""
    return BLOCK * (34 * size.n_layer * size.n_embd + 12 * VOCABULARY)


def per_step_ddp(size: Size) -> float:
    """Return the bytes that a GPU sends per step: an all-reduce sends each gradient twice."""
    return 2 * 4 * size.parameters


def per_step_fsdp(size: Size, accumulation: int) -> float:
    """Return the bytes that a GPU sends per step: weights twice and gradients once, for each micro-batch."""
    return 3 * accumulation * 4 * size.parameters


def tables() -> str:
    """Return the tables of docs/distributed.md."""
    memory = [
        "| model | parameters | DDP | FSDP, 8 GPUs | FSDP, 64 GPUs | activations per sequence of 1,024 |",
        "|" + "---|" * 6,
    ]
    speed = [
        "| model | FLOPs/token | tokens/s, A100 | tokens/s, H100 | sent per step, DDP | FSDP, a = 1 | FSDP, a = 8 |",
        "|" + "---|" * 7,
    ]
    for size in SIZES:
        held = [fixed(size, gpus) / GB for gpus in (1, 8, 64)]
        memory.append(
            f"| {size.name} | {size.parameters / 1e6:,.0f} M | "
            + " | ".join(f"{gigabytes:.1f} GB" for gigabytes in held)
            + f" | {activations(size) / GB:.2f} GB |"
        )
        a100, h100 = (round(0.4 * peak / size.flops, -3) for peak in (312e12, 989e12))  # an estimate: few digits
        sent = [per_step_ddp(size), per_step_fsdp(size, 1), per_step_fsdp(size, 8)]
        speed.append(
            f"| {size.name} | {size.flops / 1e9:.2f} G | {a100:,.0f} | {h100:,.0f} | "
            + " | ".join(f"{bytes_ / GB:.1f} GB" for bytes_ in sent)
            + " |"
        )
    return "\n".join([*memory, "", *speed])


if __name__ == "__main__":
    print(tables())
