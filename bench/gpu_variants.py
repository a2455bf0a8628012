"""Changes to a training step that may pay on a GPU. None is in gpt2kit until bench/gpu.sh has measured it.

`bench/train_step.py --ways gpt2kit gpt2kit_bf16_stream ...` measures them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import gpt2kit.model.gpt2 as model_code
from gpt2kit.data.order import IGNORE
from gpt2kit.optim import muon
from gpt2kit.training.module import GPT2Module


def use_flash_attention_3(_: GPT2Module) -> None:
    """Let torch's attention call FlashAttention 3, which must be installed."""
    torch.nn.attention.activate_flash_attention_impl("FA3")


def keep_stream_in_bfloat16(gpt2: GPT2Module) -> None:
    """Add each block's result in bfloat16; the embeddings are float32, and so is what they are added to."""
    gpt2.model.transformer.drop.register_forward_hook(lambda module, inputs, output: output.bfloat16())


def capture_graphs(gpt2: GPT2Module) -> None:
    """Compile the model as a whole with CUDA graphs, which start the kernels of a step at once."""
    gpt2.model._sum_nll = torch.compile(gpt2.model._eager_nll, dynamic=False, mode="reduce-overhead")  # type: ignore[method-assign]


def compile_muon(_: GPT2Module) -> None:
    """Compile the Newton-Schulz steps."""
    muon.orthogonalize = torch.compile(muon.orthogonalize, dynamic=False)  # type: ignore[assignment]


def use_linear_cross_entropy(_: GPT2Module) -> None:
    """Compute the loss with torch's own function of the output layer and the cross-entropy (torch 2.13)."""

    def nll(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
        states, table = hidden.flatten(0, 1).bfloat16(), weight[:size].bfloat16()
        return F.linear_cross_entropy(states, table, targets.flatten(), reduction="sum", ignore_index=IGNORE)

    model_code.full_nll = nll


def chunk_automatically(_: GPT2Module) -> None:
    """Let the compiler cut the logits into chunks (torch 2.13)."""
    torch._inductor.config.auto_chunker.enable = True


VARIANTS: dict[str, Callable[[GPT2Module], None]] = {
    "gpt2kit_fa3": use_flash_attention_3,
    "gpt2kit_bf16_stream": keep_stream_in_bfloat16,
    "gpt2kit_graphs": capture_graphs,
    "gpt2kit_compiled_muon": compile_muon,
    "gpt2kit_linear_ce": use_linear_cross_entropy,
    "gpt2kit_auto_chunker": chunk_automatically,
}
