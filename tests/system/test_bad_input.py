"""Whatever is given as text or tokenizer: one line that names file and place, the exit code, and nothing written."""

from __future__ import annotations

import bz2
import contextlib
import ctypes
import gzip
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import SENTENCE, Outcome, Run, train_tokenizer

from gpt2kit.cli import parser, test, train
from gpt2kit.cli import train_tokenizer as command
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import PathOrURL

SOUND = "".join(SENTENCE.format(n) for n in range(60))
FRENCH = "Le garçon a mangé une pâtisserie à l'hôtel près de la forêt. Où êtes-vous né ?\n"


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", SOUND)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("gone")


def content(raw: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())


TEXTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    # what it is: the file's name, what makes it, what the message says (FILE: the name and folder)
    "1 no such file": ("a.txt", lambda path: None, "FILE: no such file or folder"),
    "2 a pattern without matches": ("*.txt", lambda path: None, "FILE: no file matches (looked from"),
    "3 an empty folder": ("a", lambda path: path.mkdir(), "FILE: no files in this folder"),
    "3 a folder of empty files": ("a", lambda path: (path.mkdir(), (path / "b.txt").touch()), "b.txt: no text in it"),
    "5 an empty file": ("a.txt", content(""), "FILE: no text in it"),
    "6 latin-1": ("a.txt", content(SOUND.encode() + FRENCH.encode("latin-1")), "FILE line 61, byte "),
    "6 bytes of no encoding": ("a.txt", content(SOUND.encode() + b"a\xff\xfeb\n"), "FILE line 61, byte "),
    "6 latin-1 in a record": (
        "a.jsonl",
        content('{"text": "é"}\n'.encode("latin-1")),
        "FILE line 1, byte 10: not UTF-8",
    ),
    "7 UTF-16 without its mark": ("a.txt", content(SOUND.encode("utf-16-le")), "FILE: contains NUL bytes"),
    "7 UTF-16 cut off": ("a.txt", content(SOUND.encode("utf-16")[:-1]), "FILE line 60, byte "),
    "9 NULs at the start": ("a.txt", content(b"one\0two\n"), "FILE: contains NUL bytes"),
    "9 NULs later on": ("a.txt", content(SOUND.encode() * 400 + b"\0\n"), "FILE line 24001: a NUL character"),
    "9 an image": ("a.txt", content(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9), "FILE: contains NUL bytes"),
    "9 gzip named .txt": ("a.txt", content(gzip.compress(SOUND.encode())), "FILE: gzip data, not text. Name it .gz"),
    "9 bzip2 named .txt": ("a.txt", content(bz2.compress(SOUND.encode())), "FILE: bzip2 data, not text"),
    "9 a zip named .txt": ("a.txt", a_zip, "FILE: a zip archive, not text. Unpack it"),
    "9 text named .gz": ("a.txt.gz", content(SOUND), "FILE: damaged compressed data"),
    "9 gzip cut off": ("a.txt.gz", content(gzip.compress(SOUND.encode())[:-9]), "FILE: the compressed data ends early"),
    "9 text named .parquet": ("a.parquet", content(SOUND), "FILE: not a readable Parquet file"),
    "13 half a surrogate pair": ("a.jsonl", content('"sound"\n"\\ud83d"\n'), "FILE line 2: half a surrogate pair"),
    "14 a pipe": ("a.txt", os.mkfifo, "FILE: not a regular file"),
    "14 a device": ("/dev/null", lambda path: None, "FILE: not a regular file"),
    "18 blank lines only": ("a.txt", content("\n\r\n\n"), "FILE: no text in it"),
    "18 empty records only": ("a.jsonl", content('""\n{"text": ""}\n'), "FILE: no text in it"),
    "a link in a circle": ("a.txt", a_loop, "FILE: a broken or circular symbolic link"),
    "a link to nothing": ("a.txt", a_link_to_nothing, "FILE: a broken or circular symbolic link"),
    "a broken record": ("a.jsonl", content('"sound"\n{"text": \n'), "FILE line 2: not JSON"),
    "a record without its field": ("a.jsonl", content('{"t": "x"}\n'), "FILE line 1: no field 'text' (it has t"),
    "JSON Lines named .json": ("a.json", content('{"text": "x"}\n{"text": "y"}\n'), "FILE: not a JSON list"),
    "a table without its column": ("a.csv", content("a,b\n1,2\n"), "FILE: no column 'text' (it has a, b)"),
    "an unknown protocol": ("nowhere://a.txt", lambda path: None, "FILE: Protocol not known"),
}


def commands(
    corpus: Path, options: list[str], run: Run, name: str
) -> dict[str, tuple[Callable[..., object], list[str]]]:
    """Each command that reads text, reading this one."""
    kept = [word for word in options if not word.startswith("--data.cache_dir")]
    return {
        "train_tokenizer": (
            lambda args: parser.run(command.train_tokenizer, args),
            ["--files", name, "--output_dir", "out"],
        ),
        "trainer": (train.main, [*kept, f"--data.train_files={name}", "--data.cache_dir=cache"]),
        "test": (
            lambda args: parser.run(test.test, args),
            ["--ckpt_path", str(run.folder), "--files", name, "--cache_dir", "cache"],
        ),
    }


def refused(found: Outcome, code: int, message: str, folder: Path, before: set[Path]) -> None:
    assert found[0] == code and message in found[2], found
    assert found[2].startswith("error: ") and found[2].count("\n") == 1 and not found[1]
    written = {path for path in set(folder.rglob("*")) - before if path.is_file()}
    assert all(path.parent.name == "cache" for path in written), written
    assert all(path.name == "digests.json" or path.suffix == ".lock" for path in written), written


@pytest.mark.parametrize("which", ["train_tokenizer", "trainer", "test"])
@pytest.mark.parametrize("case", TEXTS)
def test_text(
    case: str, which: str, corpus: Path, options: list[str], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    name, make, message = TEXTS[case]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    make(inside / name)
    before = set(inside.rglob("*"))
    main, words = commands(corpus, options, run, name)[which]
    refused(call(main, *words), 3, message.replace("FILE", name), inside, before)


@contextlib.contextmanager
def without_override_of_permissions() -> Iterator[None]:
    """Take root's capabilities to ignore file permissions away from this thread for a while (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs capset(2)")
@pytest.mark.parametrize("which", ["train_tokenizer", "trainer", "test"])
def test_text_that_may_not_be_read(
    which: str, corpus: Path, options: list[str], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text(SOUND)
    (inside / "a.txt").chmod(0)
    before = set(inside.rglob("*"))
    main, args = commands(corpus, options, run, "a.txt")[which]
    with without_override_of_permissions():
        outcome = call(main, *args)
    refused(outcome, 3, "a.txt: no permission to read it (mode 0, owner", inside, before)


@pytest.mark.parametrize("which", ["train_tokenizer", "trainer", "test"])
def test_text_that_vanishes(
    which: str,
    corpus: Path,
    options: list[str],
    run: Run,
    call: Callable[..., Outcome],
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a.txt", "b.txt"):
        (inside / name).write_text(SOUND)
    before = set(inside.rglob("*"))
    real = Reader.documents

    def vanishing(self: Reader, path: PathOrURL) -> Iterator[str]:
        for number, document in enumerate(real(self, path)):
            if number == 9:
                (inside / "b.txt").unlink(missing_ok=True)
            yield document

    monkeypatch.setattr(Reader, "documents", vanishing)
    main, words = commands(corpus, options, run, "*.txt")[which]
    refused(call(main, *words), 3, "b.txt: not found, or deleted while in use", inside, before)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("8 a byte order mark", content(b"\xef\xbb\xbf" + SOUND.encode())),
        ("7 UTF-16", content(SOUND.encode("utf-16"))),
        ("10 CRLF", content(SOUND.replace("\n", "\r\n"))),
        ("10 lone CR", content(SOUND.replace("\n", "\r"))),
        ("3 a folder", lambda path: (path.mkdir(), (path / "a.txt").write_text(SOUND), (path / "b.txt").touch())),
    ],
)
def test_what_is_no_mistake_gives_the_same_tokens(
    name: str, make: Callable[[Path], object], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    import json

    (inside / "plain.txt").write_text(SOUND)
    make(inside / name)
    figures = []
    for text in ("plain.txt", name):
        words = ["--ckpt_path", run.folder, "--files", text, "--cache_dir", "cache", "--json_output", "-"]
        code, out, err = call(lambda args: parser.run(test.test, args), *words)
        assert code == 0, err
        found = json.loads(out)
        figures.append((found["results"], {key: value for key, value in found["text"].items() if key != "files"}))
    assert figures[0] == figures[1]


def test_an_empty_file_among_others_is_told(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "a.txt").write_text(SOUND)
    (inside / "b.txt").touch()
    words = ["--ckpt_path", run.folder, "--files", "a.txt", "b.txt", "--cache_dir", "cache"]
    code, _, err = call(lambda args: parser.run(test.test, args), *words)
    assert code == 0 and err == "note: test text: 1 files without text (first: b.txt)\n"


def spoilt(corpus: Path, folder: Path, change: Callable[[str], str]) -> None:
    shutil.copytree(corpus / "tokenizer", folder)
    path = folder / "tokenizer.json"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data.block_size=5000"], 3, "fewer than the 8 of one optimizer step"),  # 17
        (["--data.tokenizer=broken"], 3, "broken/tokenizer.json: not a tokenizer ("),  # 20
        (["--data.tokenizer=none"], 3, "none: no such tokenizer"),  # 20
        (["--data.tokenizer=endless"], 3, "endless/tokenizer.json: has no <|endoftext|> token"),  # 25
        (["--model.vocab_size=100"], 2, "model.vocab_size"),  # 22, 23: it cannot be set
        (["--data.reader.encoding=gb18031"], 2, "Did you mean gb18030"),
        (["--data.reader.errors=ignore"], 2, "errors"),
        (["--data.reader.max_bad_fraction=2"], 2, "reader.max_bad_fraction 2"),
        (["--data.reader.min_chars=1000"], 3, "300 documents left out, shorter than reader.min_chars 1000"),
        (["--data.valid_files=null", "--data.valid_fraction=1e-9"], 3, "no text in it for the 1e-09 of it"),
    ],
)
def test_training(
    words: list[str],
    code: int,
    message: str,
    corpus: Path,
    options: list[str],
    call: Callable[..., Outcome],
    inside: Path,
) -> None:
    spoilt(corpus, inside / "broken", lambda text: text[:1000])
    spoilt(corpus, inside / "endless", lambda text: text.replace("<|endoftext|>", "<|other|>"))
    before = set(inside.rglob("*"))
    refused(call(train.main, *options, *words), code, message, inside, before)


def test_a_tokenizer_of_fewer_tokens_than_there_are_bytes(call: Callable[..., Outcome], inside: Path) -> None:
    """Row 21."""
    (inside / "a.txt").write_text(SOUND)
    words = ["--files", "a.txt", "--output_dir", "out", "--vocab_size", "256"]
    found = call(lambda args: parser.run(command.train_tokenizer, args), *words)
    refused(found, 2, "--vocab_size 256", inside, {inside / "a.txt"})


@pytest.mark.parametrize("other", ["text", "tokenizer"])
def test_resuming_with_another_text_or_tokenizer(
    other: str, corpus: Path, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    """Rows 15 and 24."""
    (inside / "a.txt").write_text(SOUND + SENTENCE.format("of another kind"))
    train_tokenizer(["a.txt"], inside / "tokenizer", vocab_size=320)
    words = {"text": "--data.train_files=a.txt", "tokenizer": "--data.tokenizer=tokenizer"}[other]
    code, _, err = call(train.main, "--ckpt_path", run.folder, words, "--trainer.max_steps=50")
    assert code == 4 and "this checkpoint belongs to another run: text was" in err


def test_a_store_that_was_cut_off(run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path) -> None:
    """Row 19."""
    words = ["--ckpt_path", run.folder, "--files", corpus / "valid.txt", "--cache_dir", "cache"]
    assert call(lambda args: parser.run(test.test, args), *words)[0] == 0
    for name in ("000000.bin", "000000.doc"):
        (found,) = inside.rglob(name)
        raw = found.read_bytes()
        found.write_bytes(raw[:-3])
        code, _, err = call(lambda args: parser.run(test.test, args), *words)
        assert code == 0 and "000000.bin: its content does not fit its checksum" in err and "is built again" in err
        assert found.read_bytes() == raw
