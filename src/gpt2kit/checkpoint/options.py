"""Options of commands that open checkpoints of other programs. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForeignOptions:
    """What a checkpoint does not contain: the tokenizer of one of nanoGPT, its forks or GPT2 by affjljoo3581, and the
    base of an adapter."""

    tokenizer: str | None = None
    """The vocabulary that the model was trained with: nanoGPT's meta.pkl, a list of characters in JSON or a text file,
    a folder, a tokenizer.json, a SentencePiece .model, a vocab.txt, or a name on the Hugging Face hub, such as gpt2."""
    n_head: int | None = None
    """Attention heads of the model, if its file does not record them."""
    adapter_base: str | None = None
    """The model that a peft adapter belongs to, given as ckpt_path is. Default: the one on the hub that it names."""
