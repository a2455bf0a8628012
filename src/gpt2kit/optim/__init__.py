"""Optimizers, learning-rate schedules and the policy for non-finite gradients.

Configs name these classes by their paths here.
"""

from gpt2kit.optim.adamw import AdamW
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay

__all__ = ["AdamW", "Constant", "Cosine", "Linear", "Muon", "Schedule", "WarmupStableDecay"]
