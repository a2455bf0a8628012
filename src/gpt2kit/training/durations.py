"""Durations such as `20m`, `1h30m` or `00:00:20:00`. Does not import torch."""

from __future__ import annotations

import re

from gpt2kit.errors import UserError

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")  # Lightning's format, DD:HH:MM:SS


def parse_duration(text: str) -> int:
    """Return the seconds of a duration; raise UserError if it is not one."""
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if not text or match is None:
        raise UserError(
            f"trainer.max_time {text}: not a duration. Write 20m, 1h30m, 90s or 2d, or DD:HH:MM:SS such as 00:01:30:00"
        )
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
