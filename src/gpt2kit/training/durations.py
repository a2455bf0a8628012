"""Durations such as `20m`, `1h30m` or `00:00:20:00`. Does not import torch."""

from __future__ import annotations

import re

from gpt2kit.errors import UserError

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
# In seconds: 100 years.
_LONGEST = 100 * 365 * 24 * 3600
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")  # Lightning's format, DD:HH:MM:SS


def parse_duration(text: str) -> int:
    """Return the seconds of a duration; raise UserError if it is not one."""
    match = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    if not text or match is None:
        raise UserError(
            f"trainer.max_time {text}: not a duration. Write 20m, 1h30m, 90s or 2d, or DD:HH:MM:SS such as 00:01:30:00"
        )
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < total <= _LONGEST:
        raise UserError(f"trainer.max_time {text}: must be at least a second, and at most 100 years")
    return total
