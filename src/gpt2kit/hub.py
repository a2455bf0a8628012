"""Download files from the Hugging Face hub into its local cache.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT (a mirror), HF_HOME and HF_HUB_OFFLINE from the environment.
"""

from __future__ import annotations

import re
from pathlib import Path

from gpt2kit.errors import DataError, first_line

_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


class NotFoundError(DataError):
    """The name is neither a path nor available from the hub."""


def is_repository(name: str) -> bool:
    """Return whether a text can be the name of a repository on the hub, OWNER/NAME or NAME, and is not a path."""
    return _NAME.fullmatch(name) is not None


def download(name: str, patterns: list[str]) -> Path:
    """Return the folder with the files of a repository whose names match; unchanged ones come from the cache.

    Args:
        name: `NAME`, `OWNER/NAME`, or either with `@REVISION`.
        patterns: names of files, which may contain `*`.
    """
    # Not hf_hub_download: on an offline machine it retries for 24 seconds.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError:
        raise DataError(f"{name}: a model with limited access. Ask for access on its page and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise DataError(f"{name}: {repository} has no revision {revision}. Check the part after @") from None
    except Exception as error:  # the network and the hub raise many kinds
        reason = "no such repository" if isinstance(error, RepositoryNotFoundError) else first_line(error)
        raise NotFoundError(
            f"{name}: no such folder, and not available from the hub ({type(error).__name__}: {reason}). Check the "
            "name, set HF_TOKEN if it is private, or download it and give its folder"
        ) from None
