"""Optimizers, learning-rate schedules and the policy for non-finite gradients.

The names here are what a config's `class_path` says.
"""

from gpt2kit.optim.adamw import AdamW
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay

__all__ = ["AdamW", "Constant", "Cosine", "Linear", "Muon", "Schedule", "WarmupStableDecay"]
