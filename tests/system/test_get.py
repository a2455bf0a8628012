"""data/get.py: a text is complete and verified, or does not exist."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from filelock import FileLock
from helpers import ROOT, Outcome
from system.local_server import Server, serving

from gpt2kit.cli import parser
from gpt2kit.errors import DataError
from gpt2kit.text.sources import find_files
from gpt2kit.text.splits import split_ranges

sys.path.insert(0, str(ROOT / "data"))
import get

PLAYS = ("First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 400).encode()
SHA256 = hashlib.sha256(PLAYS).hexdigest()


def main(args: list[str]) -> None:
    parser.run(get.get, args)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, inside: Path) -> Iterator[Server]:
    """A server with a short text in the place of tiny Shakespeare."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.files["/input.txt"] = PLAYS
        monkeypatch.setattr(get, "SHAKESPEARE", f"{server.url}/input.txt")
        monkeypatch.setattr(get, "SHAKESPEARE_SHA256", SHA256)
        yield server


def test_shakespeare_has_the_split_of_nanogpt(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    code, out, err = call(main, "shakespeare_char")
    assert code == 0 and not err and "licence: public domain" in out and "train.txt 0.0 MB" in out
    train, valid = ((inside / f"data/shakespeare_char/{name}.txt").read_bytes() for name in ("train", "valid"))
    assert train + valid == PLAYS and len(train) == int(0.9 * len(PLAYS))
    assert not (inside / "data/shakespeare_char/.fetched").exists()
    assert call(main, "shakespeare_char")[0] == 0 and server.requests == ["/input.txt"], "downloaded once"


def test_complete_file_is_not_downloaded_again(server: Server, inside: Path) -> None:
    path = inside / "new/text.txt"
    assert get.fetch(f"{server.url}/input.txt", path, SHA256) == get.fetch(f"{server.url}/input.txt", path) == SHA256
    assert path.read_bytes() == PLAYS and server.requests == ["/input.txt"]


def test_broken_connection_leaves_no_file(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    server.breaks = [5000]
    code, _, err = call(main, "shakespeare_char")
    assert code == 3 and err.count("\n") == 1 and "the download failed (IncompleteRead(5000 bytes read" in err
    assert not [path for path in (inside / "data").rglob("*") if path.is_file() and path.name != ".lock"]
    assert call(main, "shakespeare_char")[0] == 0


def test_wrong_checksum_is_refused(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    server.files["/input.txt"] = PLAYS + b"more"
    code, _, err = call(main, "shakespeare_char")
    assert code == 3 and f"instead of {SHA256}, so the file is damaged or has changed. Run the same" in err
    assert err.count("\n") == 1 and not list((inside / "data").rglob("*.txt"))
    (inside / "own.txt").write_bytes(b"another")
    with pytest.raises(DataError, match=r"own\.txt: the SHA-256 is .*Delete .*own\.txt and run the same"):
        get.fetch(f"{server.url}/input.txt", inside / "own.txt", SHA256)
    assert (inside / "own.txt").read_bytes() == b"another"


def test_file_can_be_copied_from_another_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome], inside: Path
) -> None:
    monkeypatch.setattr(get, "SHAKESPEARE", "http://127.0.0.1:1/input.txt")
    path = Path("data/shakespeare_char/.fetched/input.txt")
    code, _, err = call(main, "shakespeare_char")
    assert code == 3 and f"download the file on another machine and copy it to {path}" in err
    path.parent.mkdir()
    path.write_bytes(PLAYS)
    assert call(main, "shakespeare_char")[0] == 0 and (inside / "data/shakespeare_char/train.txt").is_file()


def test_missing_file_on_the_server_is_reported(server: Server, inside: Path) -> None:
    with pytest.raises(DataError, match=r"gone: the download failed \(HTTP Error 404: Not Found\)"):
        get.fetch(f"{server.url}/gone", inside / "gone")


def test_silent_server_times_out(server: Server, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get, "TIMEOUT", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DataError, match="timed out"):
            get.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/text", inside / "text.txt")


def test_proxy_of_the_environment_is_used(server: Server, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.files["http://example.invalid/text"] = PLAYS
    assert get.fetch("http://example.invalid/text", inside / "text.txt") == SHA256


def poem(number: int) -> dict[str, object]:
    return {
        "author": "李白",
        "title": f"其{number}",
        "paragraphs": [f"秦川雄帝宅{number}，", "函谷壯皇居。"],
        "id": "x",
    }


@pytest.fixture
def poems(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    contents = {f"poet.{n}.json": [poem(i) for i in range(n, n + 400)] for n in (0, 400)}
    contents["poet.400.json"] += [poem(3), {**poem(5), "paragraphs": []}]
    lines = ""
    for name, content in contents.items():
        raw = json.dumps(content, ensure_ascii=False).encode()
        server.files[f"/{name}"] = raw
        lines += f"{hashlib.sha256(raw).hexdigest()}  {name}\n"
    monkeypatch.setattr(get, "POEMS", server.url)
    monkeypatch.setattr(get, "POEMS_SHA256", hashlib.sha256(lines.encode()).hexdigest())
    monkeypatch.setattr(get, "poem_files", lambda: list(contents))
    return server


def test_poems_are_split_by_a_hash_of_their_text(poems: Server, call: Callable[..., Outcome], inside: Path) -> None:
    assert call(main, "poems")[0] == 0
    folder = inside / "data/poems"
    splits = {
        name: [json.loads(line) for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines()]
        for name in ("train", "valid", "test")
    }
    assert sum(map(len, splits.values())) == 801, "the poem without text must be skipped"
    assert splits["train"][0] == {"author": "李白", "title": "其0", "text": "秦川雄帝宅0，\n函谷壯皇居。"}
    texts = {name: {poem["text"] for poem in poems} for name, poems in splits.items()}
    assert all(texts.values()) and sum(map(len, texts.values())) == 800, "equal poems must be in the same split"
    expected = split_ranges(0.01, 0.01, seed=1)
    assert all(expected[name].contains(text) for name, split in texts.items() for text in split)
    before = (folder / "train.jsonl.gz").read_bytes()
    (folder / "train.jsonl.gz").unlink()
    assert call(main, "poems")[0] == 0 and (folder / "train.jsonl.gz").read_bytes() == before


def test_changed_file_among_many_is_reported(poems: Server, call: Callable[..., Outcome], inside: Path) -> None:
    poems.files["/poet.400.json"] += b" "
    code, _, err = call(main, "poems")
    assert code == 3 and "one of them is damaged or has changed. Delete the folder" in err
    assert not (inside / "data/poems/train.jsonl.gz").exists()


def test_files_of_an_interrupted_download_are_kept(poems: Server, call: Callable[..., Outcome]) -> None:
    missing = poems.files.pop("/poet.400.json")
    assert call(main, "poems")[0] == 3
    poems.files["/poet.400.json"] = missing
    assert call(main, "poems")[0] == 0
    assert poems.requests == ["/poet.0.json", "/poet.400.json", "/poet.400.json"]


def test_poem_files_have_their_names() -> None:
    names = get.poem_files()
    assert len(names) == 58 + 255 == len(set(names)) and get.POEMS.endswith("/%E5%85%A8%E5%94%90%E8%AF%97")
    assert names[0] == "poet.tang.0.json" and names[-1] == "poet.song.254000.json"


FOLDER = "20231101.ja"
TREE = f"/api/datasets/O/N/tree/{'0' * 40}/{FOLDER}"
FILES = f"/datasets/O/N/resolve/{'0' * 40}/{FOLDER}"


def tree_entry(path: str, content: bytes) -> dict[str, object]:
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
    return {"type": "file", "oid": "1" * 40, "path": path, "size": len(content), "lfs": lfs}


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with a data set of two Parquet files."""
    entries = [tree_entry(f"{FOLDER}/../../evil.parquet", b""), tree_entry(f"{FOLDER}/x.md", b"")]
    for name in ("b.parquet", "a.parquet"):
        content = name.encode() * 100
        server.files[f"{FILES}/{name}"] = content
        entries.append(tree_entry(f"{FOLDER}/{name}", content))
    server.files[TREE] = json.dumps(entries).encode()
    monkeypatch.setattr("huggingface_hub.HfApi", functools.partial(huggingface_hub.HfApi, endpoint=server.url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    download = functools.partial(get.download_dataset, dataset="O/N", revision="0" * 40, subfolder=FOLDER)
    monkeypatch.setitem(get.TEXTS, "japanese", replace(get.TEXTS["japanese"], download=download))
    return server


def downloads(hub: Server) -> list[str]:
    return [path.rsplit("/", 1)[1] for path in hub.requests if path.endswith(".parquet")]


def test_hub_data_set_is_downloaded_once(hub: Server, call: Callable[..., Outcome], inside: Path) -> None:
    code, out, _ = call(main, "japanese")
    assert code == 0 and "CC BY-SA" in out and "a.parquet 0.0 MB, b.parquet 0.0 MB" in out
    folder = inside / "data/japanese"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "a.parquet", "b.parquet"]
    assert (folder / "a.parquet").read_bytes() == b"a.parquet" * 100
    assert call(main, "japanese")[0] == 0 and downloads(hub) == ["b.parquet", "a.parquet"], "downloaded once"
    (folder / "a.parquet").write_bytes(b"short")
    code, _, err = call(main, "japanese")
    assert code == 3 and "a.parquet: has 5 bytes instead of 900. Delete it" in err and err.count("\n") == 1


def test_partial_download_is_never_trained_on(hub: Server, call: Callable[..., Outcome]) -> None:
    """While the second of two files is missing, the folder that the recipe reads stays empty."""
    missing = hub.files.pop(f"{FILES}/a.parquet")
    code, _, err = call(main, "japanese")
    assert code == 3 and "404" in err
    with pytest.raises(DataError, match="no files in this folder"):
        find_files(["data/japanese"])
    hub.files[f"{FILES}/a.parquet"] = missing
    assert call(main, "japanese")[0] == 0 and len(find_files(["data/japanese"])) == 2
    assert downloads(hub) == ["b.parquet", "a.parquet"]


def test_hub_file_with_a_wrong_checksum_is_refused(hub: Server, call: Callable[..., Outcome]) -> None:
    original = hub.files[f"{FILES}/a.parquet"]
    hub.files[f"{FILES}/a.parquet"] = original[::-1]
    code, _, err = call(main, "japanese")
    assert code == 3 and "the SHA-256 of a.parquet is not" in err and err.count("\n") == 1
    with pytest.raises(DataError, match="no files in this folder"):
        find_files(["data/japanese"])
    hub.files[f"{FILES}/a.parquet"] = original
    assert call(main, "japanese")[0] == 0 and len(find_files(["data/japanese"])) == 2


def test_full_disk_is_reported_before_the_download(
    hub: Server, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    code, _, err = call(main, "japanese")
    assert code == 5 and "no space left" in err and not downloads(hub)


def test_unreachable_hub_is_reported(hub: Server, call: Callable[..., Outcome]) -> None:
    hub.files.clear()
    code, _, err = call(main, "japanese")
    assert code == 3 and err.count("\n") == 1
    assert f"hf download O/N --repo-type dataset --revision {'0' * 40} --include '20231101.ja/*'" in err


def test_data_set_without_parquet_files_is_reported(hub: Server, call: Callable[..., Outcome]) -> None:
    hub.files[TREE] = b"[]"
    assert "O/N: no Parquet files in 20231101.ja" in call(main, "japanese")[2]


def test_recipe_without_a_public_text_says_what_to_do(call: Callable[..., Outcome], inside: Path) -> None:
    for path in sorted((ROOT / "configs/recipe").glob("*.yaml")):
        if path.stem not in get.TEXTS:
            code, _, err = call(main, path.stem)
            assert code == 2 and ("data/README.md" in err or "data/demo.py" in err), path.stem
    code, _, err = call(main, "poem")
    assert code == 2 and "Did you mean poems?" in err and "Available: poems, shakespeare_char" in err
    assert not list(inside.iterdir())


def test_texts_are_written_where_their_recipes_read_them() -> None:
    for name, text in get.TEXTS.items():
        data = yaml.safe_load((ROOT / f"configs/recipe/{name}.yaml").read_text())["data"]
        named = {Path(data[f"{split}_files"]) for split in ("train", "valid", "test") if f"{split}_files" in data}
        if text.files == ("*.parquet",):
            assert named <= {Path("data", name), Path(data["train_files"])}
        else:
            assert named == {Path("data", name, file) for file in text.files}
        assert name in (ROOT / "data/README.md").read_text()


def test_second_download_at_the_same_time_is_refused(
    server: Server, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "data/shakespeare_char").mkdir(parents=True)
    with FileLock(inside / "data/shakespeare_char/.lock"):
        code, _, err = call(main, "shakespeare_char")
    assert code == 5 and "another process is downloading this text" in err


def test_script_runs_in_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "data/get.py"), "novels"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and process.stderr.startswith("error: novels: has no public text")


def test_help_lists_every_public_text() -> None:
    help_text = parser.parser_of(get.get).format_help()
    assert all(name in help_text for name in get.TEXTS)
