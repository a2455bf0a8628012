"""gpt2kit: train your own GPT-2, in any language, from a laptop to many GPUs."""

__version__ = "0.1.0"
