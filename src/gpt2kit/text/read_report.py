"""What happened while text was read: counts, notes for the user, and records without usable text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt2kit.commands import reader_option
from gpt2kit.errors import DataError


@dataclass
class ReadReport:
    """What happened while text was read: counts for the progress bar, notes for the user."""

    max_bad_fraction: float = 0.0  # fraction of the records that may be bad; with 0 the first bad record raises
    is_part: bool = False  # whether this is a part of a text; bad records are then counted over all parts
    bytes: int = 0  # read so far, before decompression
    records: int = 0  # of structured files (JSON, CSV, Parquet), good or bad
    bad: int = 0  # records without usable text
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)  # event to count and first place
    pieces: list[int] = field(default_factory=list)  # for each file, the pieces that `Reader.read` has yielded

    def note(self, what: str, where: str, count: int = 1) -> None:
        """Count an event that the user should know about; `what` is worded to follow a number."""
        before, first = self.notes.get(what, (0, where))
        self.notes[what] = (before + count, first)

    def reject_record(self, where: str, reason: str, detail: str = "") -> None:
        """Count a record without usable text; raise if no record may be bad."""
        if not self.max_bad_fraction:
            more = f" ({detail})" if detail else ""
            raise DataError(
                f"{where}: {reason}{more}. Fix it, or skip such records: set "
                f"{reader_option('max_bad_fraction')} to the fraction that may be bad, such as 0.01"
            )
        self.bad += 1
        self.note(f"records left out: {reason}", where)

    def check_bad_fraction(self) -> None:
        """Raise if too many records were bad. Call this after all files are read."""
        if not self.is_part and self.bad > self.max_bad_fraction * self.records:
            first = next(where for what, (_, where) in self.notes.items() if what.startswith("records left out"))
            raise DataError(
                f"{first} and others: {self.bad:,} of {self.records:,} records are bad ({'; '.join(self.lines())}), "
                f"more than {reader_option('max_bad_fraction')} {self.max_bad_fraction} allows. Fix them, "
                "or increase it"
            )

    def lines(self) -> list[str]:
        """Return the notes, one line each."""
        return [f"{count:,} {what} (first: {where})" for what, (count, where) in self.notes.items()]

    def no_text(self, paths: Sequence[object]) -> DataError:
        """Return the error for files without any document."""
        where = f"{paths[0]} and {len(paths) - 1} more" if paths[1:] else f"{paths[0]}"
        notes = f" ({'; '.join(self.lines())})" if self.notes else ""
        return DataError(f"{where}: no text found{notes}. Name files that contain text")
