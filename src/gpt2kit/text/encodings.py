"""Decode bytes to text: choose a file's encoding, and report or replace invalid bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from gpt2kit.commands import reader_option
from gpt2kit.errors import DataError, nearest
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.sources import PathOrURL

AUTO = "auto"

# The names that the option accepts, with Python's codec for each. The list is closed, because `codecs.lookup` imports a
# module by name, and the name may come from a checkpoint.
_NAMES = (
    "utf-8 utf-16 utf-16-le utf-16-be gb18030 gbk big5 big5hkscs cp950 shift-jis cp932 euc-jp euc-kr cp949 koi8-r "
    "koi8-u ascii cp1250 cp1251 cp1252 cp1253 cp1254 cp1256 latin-1 iso8859-15"
)
ENCODINGS = {name: name for name in _NAMES.split()}
ENCODINGS |= {"gb2312": "gb18030", "utf8": "utf-8", "iso-8859-1": "latin-1", "windows-1251": "cp1251"}
ENCODINGS |= {"sjis": "shift-jis"}

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_BINARY = {
    b"\x1f\x8b": "gzip data, not text. Name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd data, not text. Name it .zst",
    b"\xfd7zXZ\0": "xz data, not text. Name it .xz",
    b"BZh": "bzip2 data, not text. Name it .bz2",
    b"PK\x03\x04": "a zip archive, not text. Unpack it",
    b"PAR1": "a Parquet file, not text. Name it .parquet",
    b"%PDF-": "a PDF file, not text. Convert it",
}

# Encodings that may be detected: charset-normalizer's name, and the codec to use. Western ones are missing: Latin-1,
# cp1250 and cp1257 differ only in a few letters, so a wrong choice would go unnoticed.
_DETECTABLE = {"gb18030": "gb18030", "gbk": "gb18030", "big5": "big5", "cp932": "cp932", "shift_jis": "cp932"}
_DETECTABLE |= {"euc_jp": "euc-jp", "euc_jis_2004": "euc-jp", "cp949": "cp949", "euc_kr": "cp949", "cp1251": "cp1251"}
# Bytes at the start of a file that are used for detection.
_DETECTION_BYTES = 1 << 16


def encoding_problems(name: str) -> list[str]:
    """List what is invalid in an encoding's name, in terms of the option."""
    normalized = _normalize_name(name)
    if name == AUTO or normalized in ENCODINGS:
        return []
    suggestion = nearest(normalized, ENCODINGS)
    return [f"{reader_option('encoding')} {name}: unknown{suggestion}. Use auto or one of {', '.join(ENCODINGS)}"]


def decode(chunks: Iterator[bytes], path: PathOrURL, encoding: str, replace: bool, report: ReadReport) -> Iterator[str]:
    """Yield the text of a file, chunk by chunk, with LF line endings and without its byte order mark.

    Undecodable bytes and NULs raise an error with their position. With `replace` they become U+FFFD and are counted.
    """
    chunk = next(chunks, b"")
    codec, offset = _choose_codec(path, chunk, encoding, report)
    chunk = chunk[offset:]
    decoder = codecs.getincrementaldecoder(codec)("strict")
    line, carry = 1, ""  # carry: a CR at the end of a chunk, since its LF may be in the next one
    while True:
        following = next(chunks, b"")
        state = decoder.getstate()
        try:
            text = decoder.decode(chunk, not following)
        except UnicodeDecodeError as error:
            # error.object begins with state[0], the bytes that the decoder kept from the last chunk.
            before = normalize_newlines(carry + error.object[: error.start].decode(codec))
            error_line, error_byte = line + before.count("\n"), offset - len(state[0]) + error.start
            where = f"{path} line {error_line}, byte {error_byte}"
            if not replace:
                advice = f"Set {reader_option('encoding')} to the file's encoding, or {reader_option('errors')} replace"
                raise DataError(f"{where}: not {codec.upper()}. {advice}") from None
            decoder.setstate(state)
            text, count = _decode_with_replacement(decoder, chunk, not following)
            report.note("undecodable bytes replaced", where, count)
        text = carry + text
        carry = "\r" if following and text.endswith("\r") else ""
        text = normalize_newlines(text.removesuffix(carry))
        if "\0" in text:
            nul_line = line + text[: text.index("\0")].count("\n")
            where = f"{path} line {nul_line}"
            if not replace:
                raise DataError(
                    f"{where}: a NUL character, so this may not be text. Remove the file, or set "
                    f"{reader_option('errors')} replace"
                )
            report.note("NUL characters replaced", where, text.count("\0"))
            text = text.replace("\0", "�")
        if text:
            yield text
        if not following:
            return
        line += text.count("\n")
        offset += len(chunk)
        chunk = following


def normalize_newlines(text: str) -> str:
    """Return the text with LF line endings."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _decode_with_replacement(decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool) -> tuple[str, int]:
    """Return the text with U+FFFD for each undecodable sequence, and how many there are."""
    state = decoder.getstate()
    decoder.errors = "ignore"
    valid = decoder.decode(chunk, final)
    decoder.setstate(state)
    decoder.errors = "replace"
    text = decoder.decode(chunk, final)
    decoder.errors = "strict"
    return text, text.count("�") - valid.count("�")  # the file itself may contain U+FFFD


def _choose_codec(path: PathOrURL, head: bytes, encoding: str, report: ReadReport) -> tuple[str, int]:
    """Return the codec for a file that begins with `head`, and the length of its byte order mark."""
    for mark, codec in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return codec, len(mark)
    for magic, message in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"{path}: {message}")
    codec = ENCODINGS.get(_normalize_name(encoding), "utf-8")
    if codec.startswith("utf-16"):
        return ("utf-16-le" if codec == "utf-16" else codec), 0
    if b"\0" in head:
        raise DataError(
            f"{path}: contains NUL bytes, so it is either not text or UTF-16 without a byte order mark. Remove it, or "
            f"set {reader_option('encoding')} utf-16"
        )
    if encoding == AUTO and not is_utf8(head):
        detected = _detect(path, head)
        if detected:
            report.note(f"files detected as {detected}", str(path))
            return detected, 0
    return codec, 0


def is_utf8(head: bytes) -> bool:
    """Return whether this is UTF-8, possibly damaged: more than half of the non-ASCII bytes are valid."""
    total = len(head) - len(head.decode("ascii", "ignore"))
    text = head.decode("utf-8", "ignore")
    valid = len(text.encode()) - len(text.encode("ascii", "ignore"))
    return total == 0 or valid > 0.5 * total


def _detect(path: PathOrURL, head: bytes) -> str | None:
    """Return the codec that fits clearly better than all others, or None."""
    from charset_normalizer import from_bytes  # here, because most text is UTF-8

    sample = head[:_DETECTION_BYTES]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = list(from_bytes(sample))
    best = matches[0] if matches else None
    if best is None or best.encoding not in _DETECTABLE or best.chaos > 0.15:
        return None
    codec = _DETECTABLE[best.encoding]
    rivals = [match for match in matches[1:] if str(match) != str(best) and _DETECTABLE.get(match.encoding) != codec]
    is_clear = all(m.chaos >= best.chaos + 0.1 or m.coherence < best.coherence - 0.1 for m in rivals)
    return codec if is_clear else None


def _normalize_name(name: str) -> str:
    return name.lower().replace("_", "-")
