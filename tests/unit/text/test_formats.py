"""Structured files give the text of each record; bad records raise or are counted."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from gpt2kit.errors import DataError, UserError
from gpt2kit.text import reader
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import find_files
from gpt2kit.text.splits import UnfinishedPiece

TEXTS = ["one", 'two\nlines, and a "quote"', "日本 🙂 \\ / \t", "x" * 50]
RECORDS = [{"n": 1, "text": TEXTS[0]}, {"text": TEXTS[1], "more": {"text": ["no"]}}, {"a": [1, {}], "text": TEXTS[2]}]


def write(path: Path) -> Path:
    """Write TEXTS in the format of the file's name."""
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
        write_table(path, {"n": range(4), "text": TEXTS})
    return path


def write_table(path: Path, columns: dict[str, object]) -> None:
    """Write a table in batches of three rows, as Parquet, an Arrow stream or an Arrow file (Feather)."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = arrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    else:
        with (
            open(path, "wb") as file,
            (ipc.new_file if "file" in path.name else ipc.new_stream)(file, table.schema) as out,
        ):
            out.write_table(table, 3)


def documents(path: Path, **options: object) -> list[str]:
    return list(Reader(**options).read([path]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "file.arrow"]
)
def test_each_format_gives_its_documents(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    assert documents(path) == TEXTS
    assert documents(path, document="line") == [line for text in TEXTS for line in text.split("\n")]
    assert documents(path, max_documents=2) == TEXTS[:2]
    with pytest.raises(DataError, match=r"title.*reader\.field|reader\.max_bad_fraction"):
        documents(path, field="title")


def test_a_template_joins_fields_and_the_lines_of_a_list(tmp_path: Path) -> None:
    poems = [{"title": "春", "paragraphs": ["春江，", "花月。"]}, {"title": "空", "paragraphs": []}, "plain"]
    (tmp_path / "a.json").write_text(json.dumps(poems))
    (tmp_path / "a.csv").write_text("title,body\nA,b\n")
    assert documents(tmp_path / "a.json", template="{paragraphs}") == ["春江，\n花月。", "plain"]
    assert documents(tmp_path / "a.json", template=r"{title}\n{paragraphs}")[0] == "春\n春江，\n花月。", (
        "as typed in a shell"
    )
    assert documents(tmp_path / "a.csv", template="{title}: {body}") == ["A: b"]
    for name in ("a.parquet", "a.arrow"):
        write_table(tmp_path / name, {"title": ["A", "B"], "n": [1, 2], "body": [["b", "c"], []]})
        assert documents(tmp_path / name, template="{title}: {body}") == ["A: b\nc", "B: "]
        with pytest.raises(DataError, match="column 'n' is int64, not text"):
            documents(tmp_path / name, template="{title} {n}")
    for options, message in (
        ({"field": "paragraphs"}, r"list instead of text \(a list of lines: name its field in data\.reader\.template"),
        ({"template": "{none}"}, r"no field 'none' .*data\.reader\.template"),
    ):
        with pytest.raises(DataError, match=message):
            documents(tmp_path / "a.json", **options)
    with pytest.raises(DataError, match=r"no column 'none'"):
        documents(tmp_path / "a.csv", template="{none}")
    with pytest.raises(UserError, match=r"data\.reader\.template 'title': must contain a field in braces"):
        Reader(template="title")


def test_a_template_is_part_of_the_reader_that_a_checkpoint_names() -> None:
    assert "template" not in Reader().identity(), "as in older runs"
    for template in (None, "{a}"):
        identity = Reader(template=template).identity()
        assert reader.reader_from(identity).template == template


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_chunks_of_any_size_give_the_same_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is cut at each position."""
    path = write(tmp_path / name)
    for size in range(1, 30):
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        assert documents(path) == TEXTS, size


@pytest.mark.parametrize("value", ["-1.25e+10", "12", "true", "null", "NaN", "-Infinity"])
def test_a_number_or_literal_may_be_cut_by_a_chunk(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{value}, "a", {{"n": {value}, "text": "b"}}, {value}, "c", {value}]')
    for size in range(1, 60):
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        assert documents(path, max_bad_fraction=0.6) == ["a", "b", "c"], size


@pytest.mark.parametrize("rest", ['["b"]', "]", "x", '\n{"text": "b"}'])
def test_text_after_a_json_list_is_not_lost(rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    for size in (1, 1 << 18):
        monkeypatch.setattr("gpt2kit.text.sources.CHUNK", size)
        for content in ('["a"] \n', "[]\n"):
            path.write_text(content + rest)
            line = 3 if rest[0] == "\n" else 2
            with pytest.raises(DataError, match=rf"a\.json line {line}: text after the end of the list"):
                documents(path)


def test_a_record_is_one_piece(tmp_path: Path) -> None:
    text = "word\n" * (reader.PIECE_LENGTH // 2)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "a.json").write_text(json.dumps([text]))
    (tmp_path / "a.csv").write_text(f'text\n"{text}"\n')
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert list(Reader().read([tmp_path / name])) == [text]
    (tmp_path / "a.txt").write_text(text)
    assert [type(piece) for piece in Reader("file").read([tmp_path / "a.txt"])] == [UnfinishedPiece] * 2 + [str]


def test_byte_order_marks_and_line_endings_change_nothing(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.json"):
        path = write(tmp_path / name)
        raw = path.read_bytes().replace(b"\r\n", b"\n")
        path.write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
        assert documents(path) == TEXTS
    (tmp_path / "b.jsonl").write_text('{"text": "a\\r\\nb\\rc"}\n')
    assert documents(tmp_path / "b.jsonl") == ["a\nb\nc"]


BAD_LINES = [
    ('{"text": "x"', "not JSON"),
    ("null", "null instead of text"),
    ('{"text": null}', "null instead of text"),
    ('{"text": 3}', "int instead of text"),
    ("[1]", "list instead of text"),
    ('{"title": "x"}', "no field 'text' (it has title; see data.reader.field)"),
    ('{"text": "\\ud800"}', "half a surrogate pair"),
    ("[" * 100_000, "not JSON (nested too deeply)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_raises_with_its_number_or_is_counted(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n')
    with pytest.raises(DataError) as error:
        documents(path)
    assert f"a.jsonl line 2: {reason}" in str(error.value) and "reader.max_bad_fraction" in str(error.value)
    report = ReadReport()
    assert list(Reader(max_bad_fraction=0.4).read([path], report)) == ["one", "two"]
    assert report.bad == 1 and f"1 records left out: {reason.split(' (')[0]} (first:" in report.lines()[0]
    with pytest.raises(DataError, match=r"1 of 3 records are bad .* more than data.reader.max_bad_fraction 0.3"):
        list(Reader(max_bad_fraction=0.3).read([path]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": "x"}', "not a JSON list. Name it .jsonl"),
        ("", "not a JSON list. Name it .jsonl"),
        ('["a", "b"', "line 1, item 2: not JSON (the list does not end)"),
        ('["a" "b"]', "line 1, item 1: not JSON ('\"' after the item)"),
        ('["a",]', "line 1, item 2: not JSON (Expecting value)"),
        ('["a",\n{"text": "b}]', "line 2, item 2: not JSON (Unterminated string starting at)"),
        ('["a", tru]', "line 1, item 2: not JSON (Expecting value)"),
        ("[" * 100_000, "line 1, item 1: not JSON (nested too deeply)"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 4, 1 << 18])
def test_an_invalid_list_always_raises(
    content: str, reason: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(content)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", chunk)
    with pytest.raises(DataError) as error:
        documents(tmp_path / "a.json", max_bad_fraction=0.9)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_an_invalid_list_is_read_up_to_the_invalid_item(tmp_path: Path) -> None:
    """The rest of the file is not read in search of the end of an item."""
    good = json.dumps({"text": "word " * 20}) + ",\n"
    (tmp_path / "a.json").write_text("[" + good * 10 + '{"text" "x"},\n' + good * 100_000 + "]")
    report = ReadReport()
    with pytest.raises(DataError, match=r"a\.json line 11, item 11: not JSON \(Expecting ':' delimiter\)\. Fix"):
        list(Reader().read([tmp_path / "a.json"], report))
    assert report.bytes <= 1 << 20


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text,n\na,1\nb\n", "line 3: not as many cells as the header (1 instead of 2)"),
        ('text,n\na,1\n"b,2\n', "line 3: not CSV"),
        ('text,n\na,1\n"b"c,2\n', "line 3: not CSV"),
    ],
)
def test_a_bad_row_raises_with_its_line_or_is_skipped(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError) as error:
        documents(tmp_path / "a.csv")
    assert reason in str(error.value)
    assert documents(tmp_path / "a.csv", max_bad_fraction=0.6) == ["a"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "file.arrow"])
def test_nulls_other_types_and_damage_in_a_table_are_reported(name: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    write_table(path, {"text": arrow.array(["a", None, "b"]).dictionary_encode(), "n": [1, 2, 3]})
    with pytest.raises(DataError, match="row 2: null instead of text"):
        documents(path)
    assert documents(path, max_bad_fraction=0.5) == ["a", "b"]
    with pytest.raises(DataError, match="column 'n' is int64, not text"):
        documents(path, field="n")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}: (not a readable (Parquet|Arrow) file|cannot be read)"):
        documents(path, max_bad_fraction=0.5)


def test_a_folder_of_save_to_disk_is_a_text(tmp_path: Path) -> None:
    folder = tmp_path / "poems" / "train"
    folder.mkdir(parents=True)
    for name in ("data-00000-of-00002", "data-00001-of-00002", "cache-0123"):
        write_table(folder / f"{name}.arrow", {"text": [name]})
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    paths = find_files([str(folder)])
    assert list(Reader().read(paths)) == ["data-00000-of-00002", "data-00001-of-00002"], "not the cached result"
    assert find_files([str(tmp_path)]) == find_files([f"{folder}/*"]) == paths
    (folder.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(
        DataError, match=r"a dataset with several splits\. Name the folder of one, such as .*poems/train"
    ):
        find_files([str(folder.parent)])
    for content, message in (
        ("{", r"state\.json: not written by datasets\.save_to_disk"),
        ('{"_data_files": [3]}', "not written by"),
        ('{"_data_files": [{"filename": "../../x.arrow"}]}', "'x.arrow', which is missing"),
    ):
        (folder / "state.json").write_text(content)
        with pytest.raises(DataError, match=message):
            find_files([str(folder)])


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def load(*arguments: object, **options: object) -> list[dict[str, object]]:
        calls.extend([arguments, options])
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    assert list(Reader().read(["hf://datasets/me/poems?config=tang&split=test"])) == ["a", "b"]
    assert calls == [("me/poems", "tang"), {"split": "test", "streaming": True}]


def test_a_dataset_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise ValueError('Bad split: poems. Available splits: ["train"]')

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    with pytest.raises(DataError, match=r"hf://datasets/me/poems\?split=poems: cannot be read \(ValueError: Bad split"):
        list(Reader().read(["hf://datasets/me/poems?split=poems"]))


@pytest.mark.parametrize(
    ("path", "module", "package"),
    [
        ("hf://datasets/me/poems", "datasets", "datasets"),
        ("a.parquet", "pyarrow", "pyarrow"),
        ("a.arrow", "pyarrow", "pyarrow"),
        ("a.txt.zst", "zstandard", "zstandard"),
    ],
)
def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    path: str, module: str, package: str, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.parquet", "a.arrow", "a.txt.zst"):
        (inside / name).touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"pip install {package}$"):
        list(Reader().read([path if "://" in path else Path(path)]))
