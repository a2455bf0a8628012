"""gpt2kit: train GPT-2 from scratch, or fine-tune it, on your own text in any language."""

__version__ = "0.1.0"
