"""Scores of checkpoints on text."""
