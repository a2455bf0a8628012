"""Folders that `datasets.save_to_disk` writes: which of their files hold the rows of the dataset."""

from __future__ import annotations

from pathlib import Path

from gpt2kit import files as durable
from gpt2kit.errors import DataError

# The files that describe a dataset, and one with several splits.
METADATA = _INFO, _SPLITS = "dataset_info.json", "dataset_dict.json"
# The file that lists those with rows.
_STATE = "state.json"


def skip_metadata(pattern: str, files: list[Path]) -> list[Path]:
    """Return the files without those in folders of `datasets.save_to_disk` that hold no rows of the dataset."""
    present = set(files)
    rows: dict[Path, set[Path]] = {}  # folder to the files with its rows; others may be results that are cached there
    for path in files:
        if path.name == _SPLITS:
            raise DataError(
                f"{pattern}: a dataset with several splits. Name the folder of one, such as {path.parent}/train"
            )
        if path.name == _STATE and path.with_name(_INFO) in present:
            try:
                data_files = durable.parse_json(durable.read_limited(path))["_data_files"]
                rows[path.parent] = {path.parent / data_file["filename"] for data_file in data_files}
            except (ValueError, LookupError, TypeError) as error:
                raise DataError(f"{path}: not written by datasets.save_to_disk ({error}). Save it again") from None
            for missing in rows[path.parent] - present:
                raise DataError(f"{path}: names {missing.name!r:.60}, which is missing. Save the dataset again")
    return [path for path in files if path in rows.get(path.parent, present)]
