"""Invalid text or tokenizers: one line with the file and the position, an exit code, and nothing written."""

from __future__ import annotations

import bz2
import contextlib
import ctypes
import gzip
import json
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

VALID = "".join(SENTENCE.format(n) for n in range(60))
FRENCH = "Le garçon a mangé une pâtisserie à l'hôtel près de la forêt. Où êtes-vous né ?\n"


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", VALID)


def write(raw: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())


TEXTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    # the case: the name of the file, the function that writes it, a part of the message
    "no such file": ("a.txt", lambda path: None, "FILE: no such file or folder"),
    "a pattern without matches": ("*.txt", lambda path: None, "FILE: no file matches (current folder"),
    "an empty folder": ("a", lambda path: path.mkdir(), "FILE: no files in this folder"),
    "a folder of empty files": ("a", lambda path: (path.mkdir(), (path / "b.txt").touch()), "b.txt: no text found"),
    "an empty file": ("a.txt", write(""), "FILE: no text found"),
    "latin-1": ("a.txt", write(VALID.encode() + FRENCH.encode("latin-1")), "FILE line 61, byte "),
    "bytes of no encoding": ("a.txt", write(VALID.encode() + b"a\xff\xfeb\n"), "FILE line 61, byte "),
    "latin-1 in a record": (
        "a.jsonl",
        write('{"text": "é"}\n'.encode("latin-1")),
        "FILE line 1, byte 10: not UTF-8",
    ),
    "UTF-16 without its mark": ("a.txt", write(VALID.encode("utf-16-le")), "FILE: contains NUL bytes"),
    "UTF-16 cut off": ("a.txt", write(VALID.encode("utf-16")[:-1]), "FILE line 60, byte "),
    "NULs at the start": ("a.txt", write(b"one\0two\n"), "FILE: contains NUL bytes"),
    "NULs later on": ("a.txt", write(VALID.encode() * 400 + b"\0\n"), "FILE line 24001: a NUL character"),
    "an image": ("a.txt", write(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9), "FILE: contains NUL bytes"),
    "gzip named .txt": ("a.txt", write(gzip.compress(VALID.encode())), "FILE: gzip data, not text. Name it .gz"),
    "bzip2 named .txt": ("a.txt", write(bz2.compress(VALID.encode())), "FILE: bzip2 data, not text"),
    "a zip named .txt": ("a.txt", write_zip, "FILE: a zip archive, not text. Unpack it"),
    "text named .gz": ("a.txt.gz", write(VALID), "FILE: damaged compressed data"),
    "gzip cut off": ("a.txt.gz", write(gzip.compress(VALID.encode())[:-9]), "FILE: the compressed data ends early"),
    "text named .parquet": ("a.parquet", write(VALID), "FILE: not a readable Parquet file"),
    "half a surrogate pair": ("a.jsonl", write('"valid"\n"\\ud83d"\n'), "FILE line 2: half a surrogate pair"),
    "a pipe": ("a.txt", os.mkfifo, "FILE: not a regular file"),
    "a device": ("/dev/null", lambda path: None, "FILE: not a regular file"),
    "blank lines only": ("a.txt", write("\n\r\n\n"), "FILE: no text found"),
    "empty records only": ("a.jsonl", write('""\n{"text": ""}\n'), "FILE: no text found"),
    "a circular link": ("a.txt", lambda path: path.symlink_to(path), "FILE: a broken or circular symbolic link"),
    "a broken link": ("a.txt", lambda path: path.symlink_to("missing"), "FILE: a broken or circular symbolic link"),
    "a broken record": ("a.jsonl", write('"valid"\n{"text": \n'), "FILE line 2: not JSON"),
    "a record without its field": ("a.jsonl", write('{"t": "x"}\n'), "FILE line 1: no field 'text' (it has t"),
    "JSON Lines named .json": ("a.json", write('{"text": "x"}\n{"text": "y"}\n'), "FILE: not a JSON list"),
    "a table without its column": ("a.csv", write("a,b\n1,2\n"), "FILE: no column 'text' (it has a, b)"),
    "an unknown protocol": ("nowhere://a.txt", lambda path: None, "FILE: Protocol not known"),
}


def commands(
    corpus: Path, options: list[str], run: Run, name: str
) -> dict[str, tuple[Callable[..., object], list[str]]]:
    """Return each command that reads text, with the arguments to read this one."""
    kept = [option for option in options if not option.startswith("--data.cache_dir")]
    return {
        "train_tokenizer": (
            lambda args: parser.run(command.train_tokenizer, args),
            ["--files", name, "--output_dir", "out", "--reader.document", "line"],
        ),
        "trainer": (train.main, [*kept, f"--data.train_files={name}", "--data.cache_dir=cache"]),
        "test": (
            lambda args: parser.run(test.test, args),
            ["--ckpt_path", str(run.folder), "--files", name, "--cache_dir", "cache"],
        ),
    }


def assert_refused(outcome: Outcome, code: int, message: str, folder: Path, before: set[Path]) -> None:
    exit_code, out, err = outcome
    assert exit_code == code and message in err, outcome
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    written = {path for path in set(folder.rglob("*")) - before if path.is_file()}
    written = {path for path in written if path.parent.name != "tried"}  # tokenizers that can be loaded
    assert all(path.parent.name == "cache" for path in written), written
    assert all(path.name == "digests.json" or path.suffix == ".lock" for path in written), written


@pytest.mark.parametrize("command_name", ["train_tokenizer", "trainer", "test"])
@pytest.mark.parametrize("case", TEXTS)
def test_invalid_text_is_refused(
    case: str, command_name: str, corpus: Path, options: list[str], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    name, write_file, message = TEXTS[case]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    write_file(inside / name)
    before = set(inside.rglob("*"))
    main, arguments = commands(corpus, options, run, name)[command_name]
    assert_refused(call(main, *arguments), 3, message.replace("FILE", name), inside, before)


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
@pytest.mark.parametrize("command_name", ["train_tokenizer", "trainer", "test"])
def test_text_that_may_not_be_read(
    command_name: str, corpus: Path, options: list[str], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text(VALID)
    (inside / "a.txt").chmod(0)
    before = set(inside.rglob("*"))
    main, arguments = commands(corpus, options, run, "a.txt")[command_name]
    with without_override_of_permissions():
        outcome = call(main, *arguments)
    assert_refused(outcome, 3, "a.txt: no permission to read it (mode 0, owner", inside, before)


@pytest.mark.parametrize("command_name", ["train_tokenizer", "trainer", "test"])
def test_text_that_is_deleted_while_it_is_read_is_refused(
    command_name: str,
    corpus: Path,
    options: list[str],
    run: Run,
    call: Callable[..., Outcome],
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a.txt", "b.txt"):
        (inside / name).write_text(VALID)
    before = set(inside.rglob("*"))
    documents = Reader.documents

    def delete_while_reading(self: Reader, path: PathOrURL) -> Iterator[str]:
        for number, document in enumerate(documents(self, path)):
            if number == 9:
                (inside / "b.txt").unlink(missing_ok=True)
            yield document

    monkeypatch.setattr(Reader, "documents", delete_while_reading)
    main, arguments = commands(corpus, options, run, "*.txt")[command_name]
    assert_refused(call(main, *arguments), 3, "b.txt: not found, or deleted while in use", inside, before)


@pytest.mark.parametrize(
    ("name", "write_file"),
    [
        ("a byte order mark", write(b"\xef\xbb\xbf" + VALID.encode())),
        ("UTF-16", write(VALID.encode("utf-16"))),
        ("CRLF", write(VALID.replace("\n", "\r\n"))),
        ("lone CR", write(VALID.replace("\n", "\r"))),
        ("a folder", lambda path: (path.mkdir(), (path / "a.txt").write_text(VALID), (path / "b.txt").touch())),
    ],
)
def test_other_encodings_and_line_ends_give_the_same_tokens(
    name: str, write_file: Callable[[Path], object], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "plain.txt").write_text(VALID)
    write_file(inside / name)
    reports = []
    for text in ("plain.txt", name):
        arguments = ["--ckpt_path", run.folder, "--files", text, "--cache_dir", "cache", "--json_output", "-"]
        code, out, err = call(lambda args: parser.run(test.test, args), *arguments)
        assert code == 0, err
        report = json.loads(out)
        del report["text"]["files"]
        reports.append((report["results"], report["text"]))
    assert reports[0] == reports[1]


def test_an_empty_file_among_others_is_reported(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "a.txt").write_text(VALID)
    (inside / "b.txt").touch()
    arguments = ["--ckpt_path", run.folder, "--files", "a.txt", "b.txt", "--cache_dir", "cache"]
    code, _, err = call(lambda args: parser.run(test.test, args), *arguments)
    assert code == 0 and err == "note: test text: 1 files without text (first: b.txt)\n"


def copy_tokenizer(corpus: Path, folder: Path, change: Callable[[str], str]) -> None:
    shutil.copytree(corpus / "tokenizer", folder)
    path = folder / "tokenizer.json"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data.block_size=5000"], 3, "fewer than the 8 of one optimizer step"),
        (["--data.tokenizer=broken"], 3, "broken/tokenizer.json: not a tokenizer ("),
        (["--data.tokenizer=none"], 3, "none: no such tokenizer"),
        (["--data.tokenizer=endless"], 3, "endless/tokenizer.json: has no <|endoftext|> token"),
        (["--model.vocab_size=100"], 2, "model.vocab_size"),  # it cannot be set
        (["--data.reader.encoding=gb18031"], 2, "Did you mean gb18030"),
        (["--data.reader.errors=ignore"], 2, "errors"),
        (["--data.reader.max_bad_fraction=2"], 2, "reader.max_bad_fraction 2"),
        (["--data.reader.min_chars=1000"], 3, "300 documents left out, shorter than data.reader.min_chars 1000"),
        (
            ["--data.valid_files=null", "--data.valid_fraction=1e-9"],
            3,
            "no text in a split of 1e-09 of the text: the documents are too few, too short or equal",
        ),
    ],
)
def test_training_with_invalid_data_options_is_refused(
    arguments: list[str],
    code: int,
    message: str,
    corpus: Path,
    options: list[str],
    call: Callable[..., Outcome],
    inside: Path,
) -> None:
    copy_tokenizer(corpus, inside / "broken", lambda text: text[:1000])
    copy_tokenizer(corpus, inside / "endless", lambda text: text.replace("<|endoftext|>", "<|other|>"))
    before = set(inside.rglob("*"))
    assert_refused(call(train.main, *options, *arguments), code, message, inside, before)


@pytest.mark.parametrize("other", ["text", "tokenizer"])
def test_resuming_with_another_text_or_tokenizer_is_refused(
    other: str, corpus: Path, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text(VALID + SENTENCE.format("of another kind"))
    train_tokenizer(["a.txt"], inside / "tokenizer", vocab_size=320)
    option = {"text": "--data.train_files=a.txt", "tokenizer": "--data.tokenizer=tokenizer"}[other]
    code, _, err = call(train.main, "--ckpt_path", run.folder, option, "--trainer.max_steps=50")
    assert code == 4 and "this checkpoint belongs to a different run: text was" in err


def test_a_truncated_store_is_rebuilt(run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path) -> None:
    arguments = ["--ckpt_path", run.folder, "--files", corpus / "valid.txt", "--cache_dir", "cache"]
    assert call(lambda args: parser.run(test.test, args), *arguments)[0] == 0
    for name in ("000000.bin", "000000.doc"):
        (path,) = inside.rglob(name)
        raw = path.read_bytes()
        path.write_bytes(raw[:-3])
        code, _, err = call(lambda args: parser.run(test.test, args), *arguments)
        assert code == 0 and "000000.bin: its content does not match its checksum; it is rebuilt from the text" in err
        assert path.read_bytes() == raw
