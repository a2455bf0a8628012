"""Checkpoints in other tools' formats."""
