"""The stages of a run. Each one begins with other text and continues the optimizer and the steps of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_MAX_STAGES, _MAX_FILES = 1000, 1 << 16
_MAX_COUNT = 1 << 62


@dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    first_step: int = 0  # optimizer steps before it
    tokens_before: int = 0  # tokens read before it
    texts: Mapping[str, list[str]] | None = None  # the files that it trains on, by the names of texts

    def rename(self, old: str, new: str) -> Stage:
        """Return the stage with another name of a text."""
        texts = self.texts or {}
        return replace(self, texts={new if name == old else name: files for name, files in texts.items()})

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"first_step": self.first_step, "tokens_before": self.tokens_before, "texts": dict(self.texts or {})}


def stage_lines(stages: Sequence[Stage], last_step: int | None) -> list[str]:
    """Return which texts each of several stages trains on, and between which steps; nothing for one stage.

    `last_step` is that of the last stage, None if it is not known.
    """
    if len(stages) < 2:
        return []
    ends = [*(stage.first_step for stage in stages[1:]), last_step]
    lines = []
    for stage, end in zip(stages, ends, strict=True):
        steps = f"from step {stage.first_step:,}" if end is None else f"steps {stage.first_step:,} to {end:,}"
        lines.append(f"{steps}: {', '.join(filter(None, stage.texts or {})) or 'an earlier text'}")
    return lines


def parse_stages(metadata: Mapping[str, Any]) -> list[Stage]:
    """Return the stages that a checkpoint stores; raise ValueError if they are invalid.

    Runs of earlier versions have one, without its text.
    """
    raw = metadata.get("stages", [Stage().describe()])
    if not isinstance(raw, list) or not 0 < len(raw) <= _MAX_STAGES:
        raise ValueError("its stages are not a list")
    stages = [_parse(entry) for entry in raw]
    starts = [stage.first_step for stage in stages]
    if starts[0] or starts != sorted(starts):
        raise ValueError("the stages do not begin at ascending steps")
    return stages


def _parse(raw: object) -> Stage:
    if not isinstance(raw, dict):
        raise ValueError("a stage is not a mapping")
    counts, texts = [raw.get("first_step"), raw.get("tokens_before")], raw.get("texts")
    if any(type(count) is not int or not 0 <= count < _MAX_COUNT for count in counts):
        raise ValueError("a stage has an invalid number")
    if not isinstance(texts, dict) or len(texts) > _MAX_FILES or not all(_is_text(*item) for item in texts.items()):
        raise ValueError("a stage has an invalid text")
    return Stage(raw["first_step"], raw["tokens_before"], texts)


def _is_text(name: object, files: object) -> bool:
    if not isinstance(name, str) or not isinstance(files, list) or len(files) > _MAX_FILES:
        return False
    return all(isinstance(file, str) for file in files)
