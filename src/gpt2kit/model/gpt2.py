"""GPT-2 as an `nn.Module`: Hugging Face's `GPT2LMHeadModel` and the loss of a batch. Knows nothing about Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2kit.data.order import CONTEXT, IGNORE
from gpt2kit.model.attention import causal_mask, separate_documents, use_attention
from gpt2kit.model.backends import Attention, Compile, choose_attention
from gpt2kit.model.config import Shape, padded_vocab_size
from gpt2kit.model.cpu_layers import COMPILE_OPTIONS, replace_layers
from gpt2kit.model.loss import CHUNK, chunked_nll, full_nll, widen


class GPT2(GPT2LMHeadModel):
    """GPT-2 with GPT-2's initial weights: N(0, initializer_range), residual projections / sqrt(2 n_layer).

    Args:
        shape: the options that define the model, by Hugging Face's names; see `model.config.SHAPE_FIELDS`.
        document_start: the token that begins a document, if tokens see only their own document.
    """

    def __init__(self, shape: Shape, document_start: int | None = None) -> None:
        rows = padded_vocab_size(shape["vocab_size"])
        super().__init__(GPT2Config(**{**shape, "vocab_size": rows}, bos_token_id=None, eos_token_id=None))
        self.loss_type = "ForCausalLM"  # the library derives it from the name of the class
        replace_layers(self)
        self.shape = shape
        self.document_start = document_start
        self._sum_nll, self._head_nll = self._eager_nll, chunked_nll

    @classmethod
    def from_state(cls, shape: Shape, state: Mapping[str, Tensor], document_start: int | None = None) -> GPT2:
        """Return a model in eval mode that uses these tensors: none is copied, and no weight is initialized."""
        with torch.device("meta"):
            model = cls(shape, document_start)
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        model.eval()
        return model

    def nll(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of nats and the number of predicted tokens of a batch.

        Args:
            batch: `[rows, block_size + 1]` ids; short rows are filled with IGNORE. CONTEXT - id is an input, but no
                target.
        """
        inputs, targets = _cut(batch)  # (rows, T) each
        return self._sum_nll(inputs, targets, *self._mask_and_positions(inputs)), (targets != IGNORE).sum()

    def token_nll(self, batch: Tensor, known: int = 0) -> Tensor:
        """Return the nats of the targets but the first `known` of each row, `[rows, block_size - known]`; 0 for IGNORE.

        Logits are computed for a few positions at a time.
        """
        nll = [_nats(logits, targets) for logits, targets in self._logits(batch, known)]
        return torch.cat(nll).view(len(batch), -1)

    def token_statistics(self, batch: Tensor, known: int = 0) -> Tensor:
        """Return nats, rank and entropy of the same targets, `[3, rows, block_size - known]`; none may be IGNORE.

        The most likely token has rank 1. The entropy is that of the predicted distribution, in nats.
        """
        parts = []
        for logits, targets in self._logits(batch, known):
            rank = 1 + (logits > logits.gather(-1, targets[:, None])).sum(-1)  # (positions,)
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
            parts.append(torch.stack([_nats(logits, targets), rank.to(logits.dtype), entropy]))
        return torch.cat(parts, 1).view(3, len(batch), -1)

    def _logits(self, batch: Tensor, known: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits `[positions, vocab_size]` and targets `[positions]`, for a few positions at a time."""
        inputs, targets = _cut(batch)  # (rows, T) each
        targets = targets[:, known:]  # (rows, T - known)
        hidden = self._hidden(inputs, *self._mask_and_positions(inputs))[:, known:].flatten(0, 1)  # (positions, n_embd)
        size = self.shape["vocab_size"]
        positions = max(CHUNK // size, 1)
        chunks = zip(torch.split(hidden, positions), torch.split(targets.flatten(), positions), strict=True)
        for states, tokens in chunks:
            yield widen(self.lm_head(states)[:, :size]), tokens

    def _eager_nll(self, inputs: Tensor, targets: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        hidden = self._hidden(inputs, mask, positions)
        return self._head_nll(hidden, self.lm_head.weight, targets, self.shape["vocab_size"])

    def _hidden(self, inputs: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return the hidden states `[rows, T, n_embd]`, as the library's forward pass does.

        That pass makes its mask from values of a tensor, so a GPU would wait for the CPU, and torch.compile would get a
        mask where `is_causal` suffices.
        """
        gpt2 = self.transformer
        hidden = gpt2.drop(gpt2.wte(inputs) + gpt2.wpe(positions))
        for block in gpt2.h:
            hidden = block(hidden, None, mask)
        return gpt2.ln_f(hidden)  # type: ignore[no-any-return]

    def _mask_and_positions(self, inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the attention mask, None if attention is causal without one, and the positions `[1 or rows, T]`."""
        if self.document_start is not None:
            return separate_documents(inputs, self.document_start)
        length, device = inputs.shape[1], inputs.device
        is_plain = self.config._attn_implementation == "plain"
        return causal_mask(length, device) if is_plain else None, torch.arange(length, device=device)[None]

    def use_attention(self, requested: Attention = "auto") -> None:
        """Compute attention as requested; `auto` takes what is faster on the device of the weights."""
        use_attention(self, choose_attention(requested, self.device, self.shape).value)

    def compile_for_training(self, kind: Compile) -> None:
        """Compile in place; weights keep their names. Each part is compiled for one shape of batch.

        `blocks` compiles the head and one block, whose code all blocks share, in seconds. `model` takes minutes, for
        steps of about the same speed (docs/benchmarks.md).
        """
        if kind == "off":
            return
        self._head_nll = full_nll  # compiled, it is faster than chunks
        options = COMPILE_OPTIONS if self.device.type == "cpu" else None
        if kind == "model":
            self._sum_nll = torch.compile(self._eager_nll, dynamic=False, options=options)
            return
        self._head_nll = torch.compile(full_nll, dynamic=False, options=options)
        for block in self.transformer.h:
            block.compile(dynamic=False, options=options)

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass, which saves memory."""
        # The name of the method depends on the version of transformers.
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # reentrant, layers above frozen embeddings would get no gradient


def _cut(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs and the targets of a batch `[rows, T + 1]`: position t predicts token t + 1."""
    inputs = batch[:, :-1]
    inputs = torch.where(inputs <= CONTEXT, CONTEXT - inputs, inputs.clamp(min=0))
    return inputs, batch.masked_fill(batch < 0, IGNORE)[:, 1:]


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
