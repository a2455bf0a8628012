"""The body of data/get.py: public texts that recipes learn from, fetched into the folders that the recipes name.

A table, and for each text the function that makes the recipe's files of what was fetched.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from gpt2kit import files
from gpt2kit.cli.parsing import nearest
from gpt2kit.data import download
from gpt2kit.data.download import Remote
from gpt2kit.errors import DataError, MachineError, UserError
from gpt2kit.text.splits import shares

LOCK = "checksums.json"
"""Beside the folders of the texts: the SHA-256 that each address had when it was first fetched."""
_WAITING = ".fetched"
"""In a text's folder, what has come, until all has. Hidden, so that nobody learns from a part of the text."""
_HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
_POEMS = "https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/99ebbef7e1345c0985c44b9fd96a3f9e776f117b"
_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass(frozen=True)
class PublicText:
    """A text that anybody may fetch.

    Args:
        about: what it is, how large.
        licence: under which it may be used.
        home: a page that says more.
        remotes: its files.
        made: the files that the recipe names; none: those that are fetched.
        make: makes them of those that were fetched.
        sha256: of the lines `SHA-256  name` of all its files, in the order of `remotes`, if it is known beforehand.
    """

    about: str
    licence: str
    home: str
    remotes: Callable[[], list[Remote]]
    made: tuple[str, ...] = ()
    make: Callable[[Sequence[Path], Path], None] | None = None
    sha256: str | None = None


def get(names: list[str], /, output_dir: Path = Path("data")) -> None:
    """Fetch the public text of recipes into data/NAME, where they look for it.

    Args:
        names: poems, shakespeare_char, japanese or gpt2_124m. The other recipes have no public text: data/README.md
            says what form yours must have.
        output_dir: the folder in which each gets one of its own.
    """
    for name in names:
        if name not in TEXTS:
            raise UserError(_unknown(name))
    for name in names:
        text = TEXTS[name]
        print(f"{name}: {text.about}\n  licence: {text.licence}\n  see {text.home}")
        folder = output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                found = _got(text, folder, output_dir / LOCK)
        except Timeout:
            raise MachineError(f"{folder}: another process is fetching it. Wait until it has ended") from None
        print(f"{folder}: {', '.join(f'{path.name} {path.stat().st_size / 1e6:,.1f} MB' for path in found)}")


def _got(text: PublicText, folder: Path, lock: Path) -> list[Path]:
    """The files that the recipe names, fetched and made unless they are there."""
    made = [folder / name for name in text.made]
    if made and all(path.is_file() for path in made):
        return made
    waiting = folder / _WAITING
    remotes = text.remotes()
    known = _known(lock)
    found: list[str] = []
    for remote in remotes:
        before = known.get(remote.url)
        if remote.sha256 and before not in (None, remote.sha256):
            raise DataError(
                f"{remote.url}: has another SHA-256 than when it was first fetched ({lock}). If you mean the new text, "
                f"delete {folder} and that line"
            )
        in_use = text.make is None and (folder / remote.name).is_file()
        wanted = replace(remote, sha256=remote.sha256 or before)
        found.append(download.fetch(wanted, folder if in_use else waiting))
        if before is None and text.sha256 is None:
            known[remote.url] = found[-1]
            files.write_text(lock, json.dumps(known, indent=1, sort_keys=True) + "\n")
    _refuse_other(text, remotes, found, waiting)
    if text.make is not None:
        text.make([waiting / remote.name for remote in remotes], folder)
    for remote in remotes if text.make is None else []:
        if (waiting / remote.name).is_file():
            os.replace(waiting / remote.name, folder / remote.name)
    shutil.rmtree(waiting, ignore_errors=True)
    return made or [folder / remote.name for remote in remotes]


def _known(lock: Path) -> dict[str, str]:
    try:
        return {str(url): str(value) for url, value in json.loads(lock.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        raise DataError(f"{lock}: not a list of checksums. Delete it; they are then taken as they are now") from None


def _refuse_other(text: PublicText, remotes: list[Remote], found: list[str], folder: Path) -> None:
    """Raise if the files together are not those that are known."""
    if text.sha256 is None:
        return
    lines = "".join(f"{value}  {remote.name}\n" for remote, value in zip(remotes, found, strict=True))
    if hashlib.sha256(lines.encode()).hexdigest() != text.sha256:
        raise DataError(
            f"{folder}: not the text that was expected (its files' SHA-256 together are others): damaged, or changed "
            "at its place. Delete the folder and run the same command again"
        )


def _unknown(name: str) -> str:
    if name in _NOT_PUBLIC:
        return f"{name}: {_NOT_PUBLIC[name]}"
    return f"{name}: no such text{nearest(name, [*TEXTS, *_NOT_PUBLIC]) or '.'} There are {', '.join(TEXTS)}"


def hub_files(dataset: str, folder: str, endpoint: str = _HUB) -> list[Remote]:
    """The Parquet files in a folder of a data set of the Hugging Face hub, with the checksums that the hub gives."""
    try:
        entries = download.read_json(f"{endpoint}/api/datasets/{dataset}/tree/main/{folder}")
    except DataError as error:
        raise DataError(
            f"{error}. Without a network here, fetch it elsewhere (hf download {dataset} --repo-type dataset --include "
            f"'{folder}/*') and name its folder: trainer.py --data.train_files FOLDER"
        ) from None
    found = []
    for entry in entries if isinstance(entries, list) else []:
        path = str(entry.get("path"))
        if re.fullmatch(re.escape(folder) + r"/[\w-][\w.-]*\.parquet", path):
            sha256 = (entry.get("lfs") or {}).get("oid")
            url = f"{endpoint}/datasets/{dataset}/resolve/main/{quote(path)}"
            found.append(Remote(url, path.rsplit("/", 1)[1], str(sha256) if sha256 else None))
    if not found:
        raise DataError(f"{endpoint}/datasets/{dataset}: no Parquet files in {folder}. It may have moved")
    return sorted(found, key=lambda remote: remote.name)


def poem_files() -> list[Remote]:
    """The files of the poems of Tang and Song, a thousand poems each."""
    names = [
        f"poet.{time}.{n}.json" for time, end in (("tang", 58_000), ("song", 255_000)) for n in range(0, end, 1000)
    ]
    return [Remote(f"{_POEMS}/{quote('全唐诗')}/{name}", name) for name in names]


def make_poems(originals: Sequence[Path], folder: Path) -> None:
    """A poem a line, `{"author": ..., "title": ..., "text": ...}`; 1 % each for validation and test, by a hash of the
    text, so that equal poems fall together."""
    parts = shares(0.01, 0.01, seed=1)
    with ExitStack() as stack:
        written = {split: stack.enter_context(_gzipped(folder / f"{split}.jsonl.gz")) for split in parts}
        for poem in _poems(originals):
            split = next(split for split, share in parts.items() if share.has(poem["text"]))
            written[split].write(json.dumps(poem, ensure_ascii=False).encode() + b"\n")


def _poems(originals: Sequence[Path]) -> Iterator[dict[str, str]]:
    for path in originals:
        for poem in json.loads(path.read_text(encoding="utf-8")):
            text = "\n".join(poem["paragraphs"])
            if text.strip():
                yield {"author": poem["author"], "title": poem["title"], "text": text}


def make_shakespeare(originals: Sequence[Path], folder: Path) -> None:
    """The first nine tenths to learn from, the last one to validate by: where nanoGPT cuts, so figures compare."""
    text = originals[0].read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    files.write_text(folder / "train.txt", text[:cut])
    files.write_text(folder / "valid.txt", text[cut:])


@contextmanager
def _gzipped(path: Path) -> Iterator[gzip.GzipFile]:
    """A file that gets its name when it is whole; no time in it, so that the same text gives the same bytes."""
    with (
        files.replacing(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
    ):
        yield packed


TEXTS = {
    "poems": PublicText(
        about="311,000 Chinese poems of the Tang and Song dynasties in traditional characters, 139 MB to fetch",
        licence="the poems are in the public domain, the collection is under the MIT licence",
        home="https://github.com/chinese-poetry/chinese-poetry",
        remotes=poem_files,
        made=("train.jsonl.gz", "valid.jsonl.gz", "test.jsonl.gz"),
        make=make_poems,
        sha256="f2ef19522d3fb0f8f2a790f446b59f970311b6da6d1de2b7cd5e0b00145242a3",
    ),
    "shakespeare_char": PublicText(
        about="tiny Shakespeare: 1.1 MB of his plays",
        licence="public domain",
        home="https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare",
        remotes=lambda: [
            Remote(_SHAKESPEARE, "input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
        ],
        made=("train.txt", "valid.txt"),
        make=make_shakespeare,
    ),
    "japanese": PublicText(
        about="the Japanese Wikipedia of November 2023, some 4 GB of Parquet files (pip install pyarrow)",
        licence="CC BY-SA 3.0 and GFDL: name the source, and share what you derive from it alike",
        home="https://huggingface.co/datasets/wikimedia/wikipedia",
        remotes=lambda: hub_files("wikimedia/wikipedia", "20231101.ja"),
    ),
    "gpt2_124m": PublicText(
        about="FineWeb-Edu's sample of 10 billion tokens of the English web, some 30 GB (the recipe reads it by its "
        "name on the hub, too, without this)",
        licence="ODC-By 1.0, and Common Crawl's terms of use",
        home="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
        remotes=lambda: hub_files("HuggingFaceFW/fineweb-edu", "sample/10BT"),
    ),
}
_LYRICS = "has no public text, since songs belong to who wrote them. Put yours into data/lyrics (data/README.md)"
_NOT_PUBLIC = {
    "python": "its text is made here, without a network: python data/demo.py",
    **dict.fromkeys(("lyrics_char", "lyrics_word", "lyrics_finetune", "lyrics_finetune_word"), _LYRICS),
    "words": "has no public text. Put a text whose words are cut by spaces, and its vocabulary, into data/words "
    "(data/README.md)",
    "novels": "has no public text, since novels belong to who wrote them. Put yours into data/novels (data/README.md)",
}
"""Recipes that learn from a text of your own, and what to do."""
