"""Optimizers, learning-rate schedules and the policy for non-finite gradients.

The names here are what a config's `class_path` says.
"""

from gpt2kit.optim.optimizers import AdamW, Constant, Cosine, Linear, Muon, Schedule, WarmupStableDecay

__all__ = ["AdamW", "Constant", "Cosine", "Linear", "Muon", "Schedule", "WarmupStableDecay"]
