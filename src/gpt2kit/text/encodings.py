"""Bytes to text: which encoding a file has, and where it breaks it."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterator

from gpt2kit.errors import DataError
from gpt2kit.text.sources import Place, Report

AUTO = "auto"
ENCODINGS = {
    **{name: name for name in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "gbk", "big5", "big5hkscs")},
    **{
        name: name for name in ("cp950", "shift-jis", "cp932", "euc-jp", "euc-kr", "cp949", "koi8-r", "koi8-u", "ascii")
    },
    **{name: name for name in ("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1256", "latin-1", "iso8859-15")},
    **{"gb2312": "gb18030", "utf8": "utf-8", "iso-8859-1": "latin-1", "windows-1251": "cp1251", "sjis": "shift-jis"},
}
"""Names that may be asked for, and Python's codec for each. A list, since a checkpoint may not have others imported."""

_MARKS = {
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
    b"PK\x05\x06": "an empty zip archive, not text. Leave it out",
    b"PAR1": "a Parquet file, not text. Name it .parquet",
    b"%PDF-": "a PDF file, not text. Convert it",
}
_SURE = {"gb18030": "gb18030", "gbk": "gb18030", "big5": "big5", "cp932": "cp932", "shift_jis": "cp932"}
_SURE |= {"euc_jp": "euc-jp", "euc_jis_2004": "euc-jp", "cp949": "cp949", "euc_kr": "cp949", "cp1251": "cp1251"}
"""What detection may decide, by the detector's names. Western encodings are not among them: Latin-1, cp1250 and cp1257
differ in a few letters only, and a wrong choice would go unseen."""

_SAMPLE = 1 << 16
_SLICE = 1 << 12


def check_encoding(name: str) -> list[str]:
    """What is wrong with an encoding's name, in the words of the option."""
    if name == AUTO or _normal(name) in ENCODINGS:
        return []
    near = difflib.get_close_matches(_normal(name), ENCODINGS, n=1)
    meant = f". Did you mean {near[0]}?" if near else ""
    return [f"reader.encoding {name}: unknown{meant}. Use auto or one of {', '.join(ENCODINGS)}"]


def decoded(raw: Iterator[bytes], place: Place, encoding: str, replace: bool, report: Report) -> Iterator[str]:
    """The text of a file in pieces as large as the bytes', line ends as LF, a byte order mark dropped.

    A byte order mark decides before anything else. Of undecodable bytes and NULs the first one stops, or, with
    `replace`, each becomes U+FFFD and is counted.
    """
    head = next(raw, b"")
    codec, mark = _choose(place, head, encoding, report)
    decoder = codecs.getincrementaldecoder(codec)("strict")
    data, offset, lines, held = head[mark:], mark, 1, ""  # held: a CR at a piece's end; its LF may follow
    while True:
        following = next(raw, b"")
        parts, found = [held], []
        for part, bad in _pieces(decoder, data, not following, replace):
            parts.append(part)
            if bad is not None:
                found.append(bad)
                line = lines + unix("".join(parts)).count("\n") if not replace or len(found) == 1 else 0
                where = f"{place} line {line}, byte {offset + bad}"
                if not replace:
                    raise DataError(f"{where}: not {codec.upper()}. {_advice(encoding)}")
                report.note("undecodable bytes replaced", where)
                parts.append("�")
        text = "".join(parts)
        held = "\r" if following and text.endswith("\r") else ""
        text = unix(text[: len(text) - len(held)])
        if "\0" in text:
            where = f"{place} line {lines + text.count(chr(10), 0, text.index(chr(0)))}"
            if not replace:
                raise DataError(
                    f"{where}: a NUL character, so this may be no text. Leave it out, or set reader.on_bad_text replace"
                )
            report.note("NUL characters replaced", where, text.count("\0"))
            text = text.replace("\0", "�")
        if text:
            yield text
        if not following:
            return
        lines += text.count("\n")
        offset += len(data)
        data = following


def unix(text: str) -> str:
    """The text with LF as its only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _pieces(
    decoder: codecs.IncrementalDecoder, data: bytes, final: bool, replace: bool
) -> Iterator[tuple[str, int | None]]:
    """Text, and with it the offset in `data` of the undecodable bytes that follow it, or None."""
    step = _SLICE if replace else max(len(data), 1)  # small, since what follows a bad byte is decoded anew
    for start in range(0, max(len(data), 1), step):
        rest, at = data[start : start + step], start
        last = final and start + step >= len(data)
        while True:
            at -= len(decoder.getstate()[0])
            try:
                yield decoder.decode(rest, last), None
                break
            except UnicodeDecodeError as error:
                sound = error.object[: error.start]
                decoder.reset()
                yield decoder.decode(sound), at + error.start
                decoder.reset()
                rest, at = error.object[error.end :], at + error.end


def _choose(place: Place, head: bytes, encoding: str, report: Report) -> tuple[str, int]:
    """The codec for a file that begins with `head`, and the bytes of its byte order mark."""
    for mark, codec in _MARKS.items():
        if head.startswith(mark):
            return codec, len(mark)
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"{place}: {what}")
    wanted = ENCODINGS.get(_normal(encoding), "utf-8")
    if wanted.startswith("utf-16"):
        return ("utf-16-le" if wanted == "utf-16" else wanted), 0
    if b"\0" in head:
        raise DataError(f"{place}: holds NUL bytes, so it is no text file (or UTF-16 without its mark). Leave it out")
    if encoding == AUTO and not _is_utf8(head):
        found = _detected(place, head)
        if found:
            report.note(f"files read as {found}, as detected", str(place))
            return found, 0
    return wanted, 0


def _is_utf8(head: bytes) -> bool:
    """Whether it is UTF-8, perhaps with some damage: not if most of its bytes beyond ASCII are something else."""
    beyond = len(head) - len(head.decode("ascii", "ignore"))
    text = head.decode("utf-8", "ignore")
    return beyond == 0 or len(text.encode()) - len(text.encode("ascii", "ignore")) > 0.5 * beyond


def _detected(place: Place, head: bytes) -> str | None:
    """The encoding, if the detector finds one that is clear of all others; None if it is not sure."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise DataError(
            f"{place}: not UTF-8. Set reader.encoding (such as gb18030), or have it found out: "
            "pip install charset-normalizer"
        ) from None
    sample = head[:_SAMPLE]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = list(from_bytes(sample))
    best = matches[0] if matches else None
    if best is None or best.encoding not in _SURE or best.chaos > 0.15:
        return None
    rivals = [m for m in matches[1:] if str(m) != str(best) and _SURE.get(m.encoding) != _SURE[best.encoding]]
    clear = all(m.chaos >= best.chaos + 0.1 or m.coherence < best.coherence - 0.1 for m in rivals)
    return _SURE[best.encoding] if clear else None


def _advice(encoding: str) -> str:
    if encoding == AUTO:
        return "Set reader.encoding (such as gb18030 or latin-1), or reader.on_bad_text replace"
    return "Set another reader.encoding, or reader.on_bad_text replace"


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
