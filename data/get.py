"""Download the public text of a recipe: `python data/get.py poems`. data/README.md describes each text.

A text is downloaded into the hidden folder data/NAME/.fetched, which training ignores. Its files appear in data/NAME
only when all of them are complete and have the expected checksums.
"""

from __future__ import annotations

import difflib
import errno
import functools
import gzip
import hashlib
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt2kit import files
from gpt2kit.cli import parser
from gpt2kit.errors import DataError, MachineError, UserError, first_line

FETCHED = ".fetched"
# Seconds without an answer after which a download fails.
TIMEOUT = 60
# Errors of the local disk, not of the network.
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class PublicText:
    """A text that anyone may download."""

    about: str
    licence: str
    home: str
    download: Callable[[Path], None]
    """Download the text's files into this folder, unless they are complete."""
    files: tuple[str, ...]
    """Names or patterns of the files."""


def get(names: parser.Positional[list[str]], output_dir: Path = Path("data")) -> None:
    """Download the public text of recipes into data/NAME, where the recipes look for it.

    Args:
        names: poems, shakespeare_char, japanese or gpt2_124m. The other recipes have no public text: data/README.md
            says what form yours must have.
        output_dir: the folder in which each text gets a folder of its own.
    """
    for name in names:
        if name not in TEXTS:
            raise UserError(unknown(name))
    for name in names:
        text, folder = TEXTS[name], output_dir / name
        print(f"{name}: {text.about}\n  licence: {text.licence}\n  see {text.home}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                text.download(folder)
                shutil.rmtree(folder / FETCHED, ignore_errors=True)
        except Timeout:
            raise MachineError(f"{folder}: another process is downloading this text. Wait for it to finish") from None
        paths = sorted(path for pattern in text.files for path in folder.glob(pattern))
        print(f"{folder}: {', '.join(f'{path.name} {path.stat().st_size / 1e6:,.1f} MB' for path in paths)}")


def unknown(name: str) -> str:
    """Return the error message for a name that is not in the catalogue."""
    if name in NOT_PUBLIC:
        return f"{name}: {NOT_PUBLIC[name]}"
    similar = difflib.get_close_matches(name, [*TEXTS, *NOT_PUBLIC], n=1)
    hint = f" Did you mean {similar[0]}?" if similar else ""
    return f"{name}: not a public text.{hint} Available: {', '.join(TEXTS)}"


# Downloads


def fetch(url: str, path: Path, sha256: str | None = None) -> str:
    """Download a file of a few MB to `path`, unless it exists, and return its SHA-256, which must be `sha256`."""
    complete = path.is_file()
    if complete:
        content = path.read_bytes()
    else:
        request = urllib.request.Request(url, headers={"User-Agent": "gpt2kit"})
        try:
            with urllib.request.build_opener().open(request, timeout=TIMEOUT) as response:
                content = response.read()  # raises IncompleteRead if the connection breaks
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise DataError(
                f"{url}: the download failed ({first_line(error)}). Run the same command again. Without a network, "
                f"download the file on another machine and copy it to {path}"
            ) from None
    actual = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, actual):
        advice = f"Delete {path} and run" if complete else "Run"
        raise DataError(
            f"{path if complete else url}: the SHA-256 is {actual} instead of {sha256}, so the file is damaged or has "
            f"changed. {advice} the same command again"
        )
    if not complete:
        with files.replacing(path) as temporary:
            temporary.write_bytes(content)
    return actual


def download_dataset(folder: Path, dataset: str, revision: str, subfolder: str) -> None:
    """Download the Parquet files in a folder of a Hugging Face data set at one commit.

    The next call continues an interrupted download.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub, fetched = HfApi(), folder / FETCHED
    arrived = []
    try:
        tree = hub.list_repo_tree(dataset, subfolder, revision=revision, repo_type="dataset")
        entries = [entry for entry in tree if isinstance(entry, RepoFile) and entry.path.endswith(".parquet")]
        entries = [entry for entry in entries if PurePosixPath(entry.path).parent == PurePosixPath(subfolder)]
        missing = [entry for entry in entries if not is_complete(folder / PurePosixPath(entry.path).name, entry.size)]
        needed = sum(entry.size for entry in missing if not (fetched / entry.path).is_file())
        if needed > shutil.disk_usage(folder).free:  # fail now and not after hours
            raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB needed", str(folder))
        for entry in missing:
            hub.hf_hub_download(dataset, entry.path, repo_type="dataset", revision=revision, local_dir=fetched)
            arrived.append((fetched / entry.path, entry.lfs.sha256 if entry.lfs else None))
    except Exception as error:  # the hub's client raises many kinds, which depend on its version
        if isinstance(error, DataError) or getattr(error, "errno", None) in LOCAL:
            raise
        raise DataError(
            f"{dataset}: the download failed ({first_line(error.__cause__ or error)}). Run the same command again to "
            f"continue it. Without a network, run on another machine: hf download {dataset} --repo-type dataset "
            f"--revision {revision} --include '{subfolder}/*'; and name the folder with trainer.py --data.train_files "
            "FOLDER"
        ) from None
    if not entries:
        raise DataError(f"{dataset}: no Parquet files in {subfolder}. Check whether the data set has moved")
    for path, sha256 in arrived:
        if sha256 not in (None, files.digest(path)):
            path.unlink()
            raise DataError(
                f"{dataset}: the SHA-256 of {path.name} is not {sha256}, so it was deleted. Run the same command again"
            )
    for path, _ in arrived:
        os.replace(path, folder / path.name)


def is_complete(path: Path, size: int) -> bool:
    """Return whether the file exists; raise DataError if it has another size."""
    if path.is_file() and path.stat().st_size != size:
        raise DataError(
            f"{path}: has {path.stat().st_size:,} bytes instead of {size:,}. Delete it and run the same command again"
        )
    return path.is_file()


# Texts


SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

POEMS = "https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/99ebbef7e1345c0985c44b9fd96a3f9e776f117b/"
POEMS += quote("全唐诗")
# The checksum of the lines `SHA-256  NAME` of all files, in the order of `poem_files`.
POEMS_SHA256 = "f2ef19522d3fb0f8f2a790f446b59f970311b6da6d1de2b7cd5e0b00145242a3"


def download_shakespeare(folder: Path) -> None:
    """Split as nanoGPT does, so that losses are comparable: nine tenths for training, the rest for validation."""
    train, valid = folder / "train.txt", folder / "valid.txt"
    if train.is_file() and valid.is_file():
        return
    source = folder / FETCHED / "input.txt"
    fetch(SHAKESPEARE, source, SHAKESPEARE_SHA256)
    text = source.read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    files.write_text(valid, text[cut:])
    files.write_text(train, text[:cut])


def poem_files() -> list[str]:
    """Return the names of the files with the poems of Tang and Song, a thousand poems each."""
    dynasties = {"tang": 58_000, "song": 255_000}
    return [f"poet.{name}.{n}.json" for name, end in dynasties.items() for n in range(0, end, 1000)]


def download_poems(folder: Path) -> None:
    """Write one poem per line, `{"author": ..., "title": ..., "text": ...}`; 1 % each for validation and test."""
    splits = {split: folder / f"{split}.jsonl.gz" for split in ("train", "valid", "test")}
    if all(path.is_file() for path in splits.values()):
        return
    sources = [folder / FETCHED / name for name in poem_files()]
    lines = ""
    for path in tqdm(sources, desc="poems", unit="file", leave=False, disable=None):
        lines += f"{fetch(f'{POEMS}/{path.name}', path)}  {path.name}\n"
    if hashlib.sha256(lines.encode()).hexdigest() != POEMS_SHA256:
        raise DataError(
            f"{folder / FETCHED}: the checksum of the files is not {POEMS_SHA256}, so one of them is damaged or has "
            "changed. Delete the folder and run the same command again"
        )
    with ExitStack() as stack:
        packed = {split: stack.enter_context(gzip_file(path)) for split, path in splits.items()}
        for poem in poems(sources):
            packed[split_of(poem["text"])].write(json.dumps(poem, ensure_ascii=False).encode() + b"\n")


def poems(sources: list[Path]) -> Iterator[dict[str, str]]:
    """Yield the poems that have text."""
    for path in sources:
        for poem in json.loads(path.read_text(encoding="utf-8")):
            text = "\n".join(poem["paragraphs"])
            if text.strip():
                yield {"author": poem["author"], "title": poem["title"], "text": text}


def split_of(text: str) -> str:
    """Return the split of a poem, by a hash of its text, so that equal poems are in the same split.

    `data.valid_fraction` splits a text by the same hash with seed 1.
    """
    digest = hashlib.blake2b(f"1\n{text}".encode(), digest_size=6).digest()
    position = int.from_bytes(digest) / (1 << 48)
    if position < 0.01:
        return "test"
    return "valid" if position >= 0.99 else "train"


@contextmanager
def gzip_file(path: Path) -> Iterator[gzip.GzipFile]:
    """Yield a gzip file that appears when it is complete. It has no time stamp, so equal text gives equal bytes."""
    with (
        files.replacing(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
    ):
        yield packed


TEXTS = {
    "poems": PublicText(
        about="311,000 Chinese poems of the Tang and Song dynasties in traditional characters, a download of 139 MB",
        licence="the poems are in the public domain, the collection is under the MIT licence",
        home="https://github.com/chinese-poetry/chinese-poetry",
        download=download_poems,
        files=("train.jsonl.gz", "valid.jsonl.gz", "test.jsonl.gz"),
    ),
    "shakespeare_char": PublicText(
        about="tiny Shakespeare: 1.1 MB of his plays",
        licence="public domain",
        home="https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare",
        download=download_shakespeare,
        files=("train.txt", "valid.txt"),
    ),
    "japanese": PublicText(
        about="the Japanese Wikipedia of November 2023, about 4 GB of Parquet files (pip install pyarrow)",
        licence="CC BY-SA 3.0 and GFDL: name the source, and share what you derive from it alike",
        home="https://huggingface.co/datasets/wikimedia/wikipedia",
        download=functools.partial(
            download_dataset,
            dataset="wikimedia/wikipedia",
            revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
            subfolder="20231101.ja",
        ),
        files=("*.parquet",),
    ),
    "gpt2_124m": PublicText(
        about="FineWeb-Edu's sample of 10 billion tokens of the English web, about 30 GB (the recipe also reads it "
        "from the hub without this download)",
        licence="ODC-By 1.0, and Common Crawl's terms of use",
        home="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
        download=functools.partial(
            download_dataset,
            dataset="HuggingFaceFW/fineweb-edu",
            revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
            subfolder="sample/10BT",
        ),
        files=("*.parquet",),
    ),
}
LYRICS = "has no public text, since songs are under copyright. Put your own into data/lyrics (data/README.md)"
# Recipes without a public text, and what to do.
NOT_PUBLIC = {
    "python": "its text is not downloaded. Collect it with: python data/demo.py",
    **dict.fromkeys(("lyrics_char", "lyrics_word", "lyrics_finetune", "lyrics_finetune_word"), LYRICS),
    "words": "has no public text. Put a text with words separated by spaces, and its vocabulary, into data/words "
    "(data/README.md)",
    "novels": "has no public text, since novels are under copyright. Put your own into data/novels (data/README.md)",
}

if __name__ == "__main__":
    parser.run(get)
