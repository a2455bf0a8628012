"""Bytes in any encoding are decoded; invalid ones raise an error with their position, or are replaced and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.errors import DataError
from gpt2kit.text.encodings import decode as decode_chunks
from gpt2kit.text.encodings import encoding_problems, is_utf8
from gpt2kit.text.read_report import ReadReport

CHINESE = "我们都是中国人，今天天气很好。他说：“明天要下雨。”你好吗？这本书是我在北京买的，价格很便宜。\n" * 5
TRADITIONAL = "我們都是中國人，今天天氣很好。他說明天要下雨。你好嗎？這本書是我在臺北買的，價格很便宜。\n" * 5
JAPANESE = "これは日本語の文章です。今日は天気がいいですね。東京に行きました。カタカナも使います。\n" * 5
KOREAN = "안녕하세요. 오늘은 날씨가 좋습니다. 한국어로 쓴 문장입니다. 서울에 갔습니다.\n" * 5
RUSSIAN = "Привет, мир! Сегодня хорошая погода. Мы идём в лес за грибами, а потом домой пить чай.\n" * 5
FRENCH = "Le garçon a mangé une pâtisserie à l'hôtel près de la forêt. Où êtes-vous né ? C'était l'été.\n" * 5
ENCODED = [
    (CHINESE, "gb18030"),
    (TRADITIONAL, "big5"),
    (JAPANESE, "shift-jis"),
    (JAPANESE, "euc-jp"),
    (KOREAN, "euc-kr"),
    (RUSSIAN, "cp1251"),
    (FRENCH, "latin-1"),
]


def decode(
    raw: bytes, encoding: str = "auto", replace: bool = False, size: int = 1 << 20, report: ReadReport | None = None
) -> str:
    chunks = (raw[start : start + size] for start in range(0, len(raw), size))
    return "".join(decode_chunks(chunks, Path("a.txt"), encoding, replace, report or ReadReport()))


@pytest.mark.parametrize(("text", "encoding"), ENCODED)
def test_a_named_encoding_is_decoded_in_chunks_of_any_size(text: str, encoding: str) -> None:
    raw = text.encode(encoding).replace(b"\n", b"\r\n")
    assert all(decode(raw, encoding, size=size) == text for size in (1, 2, 3, 7, 1 << 20))


@pytest.mark.parametrize(("text", "encoding"), ENCODED[:-1])
def test_an_unambiguous_encoding_is_detected(text: str, encoding: str) -> None:
    report = ReadReport()
    assert decode(text.encode(encoding), report=report) == text
    line = report.lines()[0]
    assert "files detected as" in line and line.endswith("(first: a.txt)")


def test_western_encodings_are_not_guessed() -> None:
    for text, encoding in ((FRENCH, "latin-1"), ("Zażółć gęślą jaźń. Wszyscy ludzie.\n" * 9, "cp1250")):
        with pytest.raises(DataError, match=r"a\.txt line 1, byte \d+: not UTF-8. Set data.reader.encoding"):
            decode(text.encode(encoding))


def test_utf8_with_some_damage_is_utf8() -> None:
    damaged = b"\xb5\xb5\xb5"
    assert is_utf8(b"") and is_utf8(b"ascii only")
    assert is_utf8(CHINESE.encode() + damaged) and is_utf8(b"mostly ascii " * 50 + "é日本".encode() + damaged)
    assert not any(is_utf8(text.encode(encoding)) for text, encoding in ENCODED)


def test_damaged_utf8_is_not_detected_as_another_encoding() -> None:
    raw = (CHINESE * 3).encode()
    with pytest.raises(DataError, match="line 1, byte 30: not UTF-8"):
        decode(raw[:30] + b"\xb5\xb5" + raw[30:])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("option", ["auto", "gb18030"])
def test_a_byte_order_mark_takes_precedence(encoding: str, option: str) -> None:
    assert decode(CHINESE.encode(encoding), option, size=1001) == CHINESE


@pytest.mark.parametrize("size", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize(
    ("encoding", "text", "bad"),
    [("utf-8", "日本\r\n語", b"\xff"), ("gb18030", "日本\r\n語", b"\xff"), ("euc-kr", "한국\r\n어", b"\xff")],
)
def test_undecodable_bytes_are_located_or_replaced_and_counted(encoding: str, text: str, bad: bytes, size: int) -> None:
    valid = text.encode(encoding)
    raw = valid + bad + b"ab" + bad + b"\n" + valid[:-1]  # the last character is incomplete
    if size > 5:
        with pytest.raises(DataError, match=f"line 2, byte {len(valid)}: not {encoding.upper()}"):
            decode(raw, encoding, size=size)
    report = ReadReport()
    decoded = decode(raw, encoding, replace=True, size=max(size, 2), report=report)
    expected = text.replace("\r\n", "\n")
    assert decoded.startswith(expected + "�ab�\n" + expected[:-1]) and decoded.endswith("�")
    assert report.lines()[0].startswith("3 undecodable bytes replaced (first: a.txt line 2, byte")


def test_replacing_many_bytes_is_fast() -> None:
    report = ReadReport()
    assert decode(b"\xff" * 300_000, "utf-8", replace=True, report=report) == "�" * 300_000
    assert report.notes["undecodable bytes replaced"][0] == 300_000


def test_a_nul_after_the_first_chunk_raises_or_is_replaced() -> None:
    raw = b"one\ntwo\n\0\n"
    with pytest.raises(DataError, match="line 3: a NUL"):
        decode(raw, size=4)
    assert decode(raw, replace=True, size=4) == "one\ntwo\n�\n"


def test_unknown_encodings_are_reported_with_a_suggestion() -> None:
    assert not encoding_problems("auto") and not encoding_problems("Shift_JIS") and not encoding_problems("GB2312")
    assert "Did you mean gb18030?" in encoding_problems("gb18031")[0]
    assert encoding_problems("rot13") and encoding_problems("os.path")
