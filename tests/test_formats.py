"""Structured files: every record's text, in bounded memory; what is broken stops or is counted."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from gpt2kit.errors import DataError
from gpt2kit.text import formats
from gpt2kit.text.reader import Part, Reader
from gpt2kit.text.sources import Report

TEXTS = ["one", 'two\nlines, and a "quote"', "日本 🙂 \\ / \t", "x" * 50]
RECORDS = [{"n": 1, "text": TEXTS[0]}, {"text": TEXTS[1], "more": {"text": ["no"]}}, {"a": [1, {}], "text": TEXTS[2]}]


def write(path: Path) -> Path:
    """A file with TEXTS in the format of its name."""
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n\n".join(json.dumps(r) for r in [*RECORDS, TEXTS[3]]) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps([*RECORDS, TEXTS[3]], indent=1), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerows([["n", "text"], *([n, text] for n, text in enumerate(TEXTS))])
    else:
        import pyarrow as arrow
        from pyarrow import parquet

        parquet.write_table(arrow.table({"n": range(4), "text": TEXTS}), path, row_group_size=3)
    return path


def joined(path: Path, **options: object) -> list[str]:
    """The documents of a file, put together from their pieces."""
    found, document = [], ""
    for piece in Reader(**options).read([path]):  # type: ignore[arg-type]
        document += piece
        if not isinstance(piece, Part):
            found.append(document)
            document = ""
    assert not document
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_each_format_gives_its_texts(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path / name)
    assert joined(path) == TEXTS
    assert joined(path, document="line") == [line for text in TEXTS for line in text.split("\n")]
    assert joined(path, max_documents=2) == TEXTS[:2]
    with pytest.raises(DataError, match=r"title.*reader\.field|reader\.bad_share"):
        joined(path, field="title")


@pytest.mark.parametrize("long", [1, 7, 40])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_longer_than_memory_is_read_in_pieces(
    name: str, long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record takes the long way, in pieces that cut it at each place."""
    path = write(tmp_path / name)
    monkeypatch.setattr(formats, "LONG", long)
    for size in range(1, 30):
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        assert joined(path) == TEXTS, size


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.json"):
        path = write(tmp_path / name)
        raw = path.read_bytes().replace(b"\r\n", b"\n")
        path.write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
        assert joined(path) == TEXTS
    (tmp_path / "b.jsonl").write_text('{"text": "a\\r\\nb\\rc"}\n')
    assert joined(tmp_path / "b.jsonl") == ["a\nb\nc"]


BAD_LINES = [
    ('{"text": "x"', "not JSON"),
    ("null", "null instead of text"),
    ('{"text": null}', "null instead of text"),
    ('{"text": 3}', "int instead of text"),
    ("[1]", "list instead of text"),
    ('{"title": "x"}', "no field 'text' (it has title; see reader.field)"),
    ('{"text": "\\ud800"}', "half a surrogate pair"),
    ("[" * 100_000, "not JSON (nested too deep)"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_bad_line_stops_with_its_place_or_is_counted(line: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "sound"}}\n{line}\n{{"text": "also"}}\n')
    with pytest.raises(DataError) as stopped:
        joined(path)
    assert f"a.jsonl line 2: {why}" in str(stopped.value) and "reader.bad_share" in str(stopped.value)
    report = Report()
    assert list(Reader(bad_share=0.4).read([path], report)) == ["sound", "also"]
    assert report.bad == 1 and f"1 records left out: {why.split(' (')[0]} (first:" in report.lines()[0].replace(
        ", which is no character", ""
    )
    with pytest.raises(DataError, match=r"1 of 3 records are bad .* more than reader.bad_share 0.3"):
        list(Reader(bad_share=0.3).read([path]))


@pytest.mark.parametrize(
    "line", ['{"text": 3}', '{"title": "x"}', '{"text', '{"text": "x" 1}', '{"a": [1, "text": ', "[[1], 2]", "{1}"]
)
def test_a_bad_record_of_any_length_does_not_touch_the_next(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "sound"}}\n{line}\n{{"text": "also"}}\n')
    monkeypatch.setattr(formats, "LONG", 1)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 3)
    if '"x" 1' in line:  # its text was given on before it turned out broken
        with pytest.raises(DataError, match="line 2: not JSON, in a record too long"):
            joined(path, bad_share=0.9)
    else:
        assert joined(path, bad_share=0.9) == ["sound", "also"]
        with pytest.raises(DataError, match=r"line 2"):
            joined(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"text": "x"}', "not a JSON list. Name it .jsonl"),
        ('["a", "b"', "item 2: not JSON (the list does not end)"),
        ('["a" "b"]', "item 1: not JSON"),
        ('["a",]', "item 2: not JSON"),
        ('["a", {"text": "b}]', "item 2: not JSON"),
    ],
)
@pytest.mark.parametrize("long", [1, 1 << 20])
def test_a_broken_list_always_stops(
    content: str, why: str, long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(content)
    monkeypatch.setattr(formats, "LONG", long)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 4)
    with pytest.raises(DataError) as stopped:
        joined(tmp_path / "a.json", bad_share=0.9)
    assert why.split(" (")[0] in str(stopped.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("text,n\na,1\nb\n", "line 3: not as many cells as the header (1 instead of 2)"),
        ('text,n\na,1\n"b,2\n', "line 3: not CSV"),
        ('text,n\na,1\n"b"c,2\n', "line 3: not CSV"),
    ],
)
def test_bad_rows(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError) as stopped:
        joined(tmp_path / "a.csv")
    assert why in str(stopped.value)
    assert joined(tmp_path / "a.csv", bad_share=0.6) == ["a"]


def test_a_parquet_file_with_nulls_other_types_and_damage(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": arrow.array(["a", None, "b"]).dictionary_encode(), "n": [1, 2, 3]}), path)
    with pytest.raises(DataError, match="row 2: null instead of text"):
        joined(path)
    assert joined(path, bad_share=0.5) == ["a", "b"]
    with pytest.raises(DataError, match="column 'n' is int64, not text"):
        joined(path, field="n")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        joined(path)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(*words: object, **options: object) -> list[dict[str, object]]:
        asked.extend([words, options])
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    assert list(Reader().read(["hf://datasets/me/poems?config=tang&split=test"])) == ["a", "b"]
    assert asked == [("me/poems", "tang"), {"split": "test", "streaming": True}]


@pytest.mark.parametrize(
    ("place", "module", "package"),
    [
        ("hf://datasets/me/poems", "datasets", "datasets"),
        ("a.parquet", "pyarrow", "pyarrow"),
        ("a.txt.zst", "zstandard", "zstandard"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    place: str, module: str, package: str, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inside / "a.parquet").touch()
    (inside / "a.txt.zst").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"pip install {package}$"):
        list(Reader().read([place if "://" in place else Path(place)]))
