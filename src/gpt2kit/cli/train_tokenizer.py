"""Implements `train_tokenizer.py`: its options are the parameters of `gpt2kit.tokenization.train.train`."""

from gpt2kit.tokenization.train import train

__all__ = ["train"]
