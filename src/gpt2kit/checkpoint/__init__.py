"""Weights on disk to a model."""
