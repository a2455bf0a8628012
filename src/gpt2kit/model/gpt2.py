"""GPT-2 as an `nn.Module`: Hugging Face's `GPT2LMHeadModel` and the loss of a batch. It knows nothing of Lightning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2kit.data.order import IGNORE
from gpt2kit.model import attention as attentions
from gpt2kit.model.backends import Attention, Choice, Compile, choose_attention
from gpt2kit.model.config import Shape, padded
from gpt2kit.model.cpu_layers import COMPILED, quicken
from gpt2kit.model.loss import chunked_nll, whole_nll, wide

LOGITS = 1 << 24
"""Logits that `token_nll` holds at once."""


class GPT2(GPT2LMHeadModel):
    """GPT-2 with GPT-2's initial weights: N(0, initializer_range), residual projections / sqrt(2 n_layer).

    Args:
        shape: the options that make the model, by Hugging Face's names; see `model.config.SHAPE`.
        document_start: the token that begins a document, if no token is to see another document.
    """

    def __init__(self, shape: Shape, document_start: int | None = None) -> None:
        rows = padded(shape["vocab_size"])
        super().__init__(GPT2Config(**{**shape, "vocab_size": rows}, bos_token_id=None, eos_token_id=None))
        self.loss_type = "ForCausalLM"  # the library derives it from the name of the class
        quicken(self)
        self.shape = shape
        self.document_start = document_start
        self._nll_of, self._head = self._whole_model, chunked_nll

    @classmethod
    def from_state(cls, shape: Shape, state: Mapping[str, Tensor], document_start: int | None = None) -> GPT2:
        """Return a model in eval mode over these very tensors; no weight is copied or drawn."""
        with torch.device("meta"):
            model = cls(shape, document_start)
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        model.eval()
        return model

    def nll(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of nats and the number of predicted tokens of a batch.

        The only place that shifts: position t is given tokens up to t and predicts token t + 1.

        Args:
            batch: `[rows, block_size + 1]` token ids, short rows filled with IGNORE.
        """
        inputs, targets = batch[:, :-1].clamp(min=0), batch[:, 1:]
        return self._nll_of(inputs, targets, self._document_masks(inputs)), (targets != IGNORE).sum()

    def token_nll(self, batch: Tensor, known: int = 0) -> Tensor:
        """Return the nats of each target token but the first `known` of a row, `[rows, block_size - known]`.

        What `nll` sums up, for evaluation; 0 for IGNORE. Logits are computed for a few positions at a time, and none
        are kept.
        """
        inputs, targets = batch[:, :-1].clamp(min=0), batch[:, 1 + known :]
        hidden = self._hidden(inputs, self._document_masks(inputs))
        size = self.shape["vocab_size"]
        positions = max(LOGITS // size, 1)
        nll = [
            F.cross_entropy(wide(self.lm_head(some)[:, :size]), wanted, ignore_index=IGNORE, reduction="none")
            for some, wanted in zip(
                torch.split(hidden[:, known:].flatten(0, 1), positions),
                torch.split(targets.flatten(), positions),
                strict=True,
            )
        ]
        return torch.cat(nll).view(targets.shape)

    def _whole_model(self, inputs: Tensor, targets: Tensor, masks: dict[str, Tensor]) -> Tensor:
        """Sum of nats of `targets`, each after the `inputs` up to it."""
        return self._head(self._hidden(inputs, masks), self.lm_head.weight, targets, self.shape["vocab_size"])

    def _hidden(self, inputs: Tensor, masks: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = self.transformer(input_ids=inputs, use_cache=False, **masks).last_hidden_state
        return hidden  # (rows, T, n_embd)

    def _document_masks(self, inputs: Tensor) -> dict[str, Tensor]:
        """Masks and positions that keep documents apart, if they are to be."""
        if self.document_start is None:
            return {}
        return attentions.documents_apart(inputs, self.document_start)

    def choose_attention(self, wanted: Attention, device: torch.device) -> Choice:
        """Return how attention is computed on a device."""
        return choose_attention(wanted, device, self.shape)

    def use_attention(self, wanted: Attention = "auto") -> None:
        """Compute attention in one way, or in the fastest that is known for the device of the weights."""
        attentions.use(self, self.choose_attention(wanted, self.device).value)

    def compile_for_training(self, kind: Compile) -> None:
        """Compile in place: the weights keep their names. Each part sees one shape of batch.

        Blocks have the same code, so they are compiled once, and the head beside them: seconds, where the model as a
        whole takes minutes, for a step that is as fast within some per cent (docs/benchmarks.md).
        """
        if kind == "off":
            return
        self._head = whole_nll  # a compiler fuses what follows the logits, and is faster than pieces
        options = COMPILED if self.device.type == "cpu" else None
        if kind == "model":
            self._nll_of = torch.compile(self._whole_model, dynamic=False, options=options)
            return
        self._head = torch.compile(whole_nll, dynamic=False, options=options)
        for block in self.transformer.h:
            block.compile(dynamic=False, options=options)

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass, by the name that this version of transformers has for it."""
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # the other way, frozen embeddings would leave nothing a gradient
