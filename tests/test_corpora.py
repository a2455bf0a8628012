"""data/get.py: what it fetches becomes the files that the recipes name, and only what it should be."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Outcome
from filelock import FileLock
from serving import Server, serving

from gpt2kit.cli import parser
from gpt2kit.data import corpora, fetching
from gpt2kit.data.corpora import TEXTS, hub_files
from gpt2kit.data.download import Remote
from gpt2kit.errors import DataError
from gpt2kit.text.sources import find_files

PLAYS = ("First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 400).encode()


def main(args: list[str]) -> None:
    parser.run(corpora.get, args)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, inside: Path) -> Iterator[Server]:
    """A place that has made text by the addresses of the public texts."""
    monkeypatch.setattr(fetching, "_PAUSES", [0.0])
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        found.files["/input.txt"] = PLAYS
        remote = Remote(f"{found.url}/input.txt", "input.txt", hashlib.sha256(PLAYS).hexdigest())
        known = replace(TEXTS["shakespeare_char"], remotes=lambda: [remote])
        monkeypatch.setitem(TEXTS, "shakespeare_char", known)
        yield found


def test_shakespeare_is_cut_where_nanogpt_cuts(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    server.breaks = [5000]
    code, out, err = call(main, "shakespeare_char")
    assert code == 0 and not err and "licence: public domain" in out and "train.txt 0.0 MB" in out
    train, valid = ((inside / f"data/shakespeare_char/{name}.txt").read_bytes() for name in ("train", "valid"))
    assert train + valid == PLAYS and len(train) == int(0.9 * len(PLAYS))
    assert not (inside / "data/shakespeare_char/.fetched").exists()
    asked = len(server.asked)
    assert call(main, "shakespeare_char")[0] == 0 and len(server.asked) == asked, "it is there"


def test_another_text_than_expected(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    server.files["/input.txt"] = PLAYS + b"more"
    code, _, err = call(main, "shakespeare_char")
    assert code == 3 and "another text than was expected" in err and err.count("\n") == 1
    assert not [path for path in (inside / "data").rglob("*.txt")]


def poem(number: int) -> dict[str, object]:
    return {
        "author": "李白",
        "title": f"其{number}",
        "paragraphs": [f"秦川雄帝宅{number}，", "函谷壯皇居。"],
        "id": "x",
    }


@pytest.fixture
def poems(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Remote]:
    files = {f"poet.{n}.json": [poem(i) for i in range(n, n + 400)] for n in (0, 400)}
    files["poet.400.json"] += [poem(3), {**poem(5), "paragraphs": []}]
    lines = ""
    remotes = []
    for name, content in files.items():
        raw = json.dumps(content, ensure_ascii=False).encode()
        server.files[f"/{name}"] = raw
        remotes.append(Remote(f"{server.url}/{name}", name))
        lines += f"{hashlib.sha256(raw).hexdigest()}  {name}\n"
    text = replace(TEXTS["poems"], remotes=lambda: remotes, sha256=hashlib.sha256(lines.encode()).hexdigest())
    monkeypatch.setitem(TEXTS, "poems", text)
    return remotes


def test_poems(poems: list[Remote], call: Callable[..., Outcome], inside: Path) -> None:
    assert call(main, "poems")[0] == 0
    folder = inside / "data/poems"
    splits = {
        name: [json.loads(line) for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines()]
        for name in ("train", "valid", "test")
    }
    assert sum(map(len, splits.values())) == 801, "one had no text"
    assert splits["train"][0] == {"author": "李白", "title": "其0", "text": "秦川雄帝宅0，\n函谷壯皇居。"}
    texts = {name: {one["text"] for one in some} for name, some in splits.items()}
    assert all(texts.values()) and sum(map(len, texts.values())) == 800, "equal poems fall together"
    before = (folder / "train.jsonl.gz").read_bytes()
    (folder / "train.jsonl.gz").unlink()
    assert call(main, "poems")[0] == 0 and (folder / "train.jsonl.gz").read_bytes() == before


def test_one_of_many_files_is_another(
    poems: list[Remote], server: Server, call: Callable[..., Outcome], inside: Path
) -> None:
    server.files["/poet.400.json"] += b" "
    code, _, err = call(main, "poems")
    assert code == 3 and "not the text that was expected" in err
    assert not (inside / "data/poems/train.jsonl.gz").exists()


def test_the_addresses_of_the_poems() -> None:
    remotes = corpora.poem_files()
    assert len(remotes) == 58 + 255 == len({remote.url for remote in remotes})
    assert remotes[0].url.endswith("/%E5%85%A8%E5%94%90%E8%AF%97/poet.tang.0.json")
    assert remotes[-1].name == "poet.song.254000.json"


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    listed = []
    for name in ("b.parquet", "a.parquet"):
        raw = name.encode() * 100
        path = f"20231101.ja/{name}"
        server.files[f"/datasets/O/N/resolve/main/{path}"] = raw
        listed.append({"type": "file", "path": path, "lfs": {"oid": hashlib.sha256(raw).hexdigest()}})
    listed += [{"path": "20231101.ja/../../evil.parquet"}, {"path": "20231101.ja/.hidden.parquet"}, {"path": "x.md"}]
    server.files["/api/datasets/O/N/tree/main/20231101.ja"] = json.dumps(listed).encode()
    text = replace(TEXTS["japanese"], remotes=lambda: hub_files("O/N", "20231101.ja", server.url))
    monkeypatch.setitem(TEXTS, "japanese", text)
    return server


def test_a_data_set_of_the_hub(hub: Server, call: Callable[..., Outcome], inside: Path) -> None:
    code, out, _ = call(main, "japanese")
    assert code == 0 and "CC BY-SA" in out
    folder = inside / "data/japanese"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "a.parquet", "b.parquet"]
    locked = json.loads((inside / "data" / corpora.LOCK).read_text())
    assert (
        locked[f"{hub.url}/datasets/O/N/resolve/main/20231101.ja/a.parquet"]
        == hashlib.sha256((folder / "a.parquet").read_bytes()).hexdigest()
    )
    assert len(locked) == 2


def test_nobody_learns_from_a_part_of_a_text(hub: Server, call: Callable[..., Outcome], inside: Path) -> None:
    """The second of two files does not come: the folder that the recipe reads is empty still."""
    held = hub.files.pop("/datasets/O/N/resolve/main/20231101.ja/b.parquet")
    code, _, err = call(main, "japanese")
    assert code == 3 and "404" in err
    with pytest.raises(DataError, match="no files in this folder"):
        find_files(["data/japanese"])
    hub.files["/datasets/O/N/resolve/main/20231101.ja/b.parquet"] = held
    hub.asked.clear()
    assert call(main, "japanese")[0] == 0 and len(find_files(["data/japanese"])) == 2
    assert [path for path, _ in hub.asked if path.endswith(".parquet")] == [
        "/datasets/O/N/resolve/main/20231101.ja/b.parquet"
    ]
    assert call(main, "japanese")[0] == 0


def test_without_a_network(hub: Server, call: Callable[..., Outcome]) -> None:
    hub.files.clear()
    code, _, err = call(main, "japanese")
    assert code == 3 and "hf download O/N --repo-type dataset --include '20231101.ja/*'" in err


def test_it_is_said_when_a_text_has_changed_since(hub: Server, call: Callable[..., Outcome], inside: Path) -> None:
    """The hub's own checksum has changed with it, so only what was written down tells."""
    assert call(main, "japanese")[0] == 0
    listed = "/api/datasets/O/N/tree/main/20231101.ja"
    hub.files["/datasets/O/N/resolve/main/20231101.ja/a.parquet"] = b"new"
    entry = {"path": "20231101.ja/a.parquet", "lfs": {"oid": hashlib.sha256(b"new").hexdigest()}}
    hub.files[listed] = json.dumps([entry]).encode()
    code, _, err = call(main, "japanese")
    assert code == 3 and "another SHA-256 than when it was first fetched" in err
    hub.files[listed] = json.dumps([{"path": "20231101.ja/a.parquet"}]).encode()  # says no checksum
    (inside / "data/japanese/a.parquet").unlink()
    code, _, err = call(main, "japanese")
    assert code == 3 and "another text than was expected" in err
    (inside / "data" / corpora.LOCK).write_text("[]")
    assert "not a list of checksums" in call(main, "japanese")[2]


def test_a_hub_that_says_something_else(hub: Server) -> None:
    hub.files["/api/datasets/O/N/tree/main/20231101.ja"] = b'{"error": "moved"}'
    with pytest.raises(DataError, match=r"no Parquet files in 20231101\.ja"):
        hub_files("O/N", "20231101.ja", hub.url)


def test_recipes_without_a_public_text_say_what_to_do(call: Callable[..., Outcome], inside: Path) -> None:
    for path in sorted((ROOT / "configs/recipe").glob("*.yaml")):
        if path.stem not in TEXTS:
            code, _, err = call(main, path.stem)
            assert code == 2 and ("data/README.md" in err or "data/demo.py" in err), path.stem
    code, _, err = call(main, "poem")
    assert code == 2 and "Did you mean poems?" in err and "There are poems, shakespeare_char" in err
    assert not list(inside.iterdir())


def test_each_text_goes_where_its_recipe_looks() -> None:
    for name, text in TEXTS.items():
        data = yaml.safe_load((ROOT / f"configs/recipe/{name}.yaml").read_text())["data"]
        named = {Path(data[f"{split}_files"]) for split in ("train", "valid", "test") if f"{split}_files" in data}
        if text.made:
            assert named == {Path("data", name, made) for made in text.made}
        else:
            assert named <= {Path("data", name), Path(data["train_files"])}
        assert name in (ROOT / "data/README.md").read_text()


def test_two_at_once(server: Server, call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "data/shakespeare_char").mkdir(parents=True)
    with FileLock(inside / "data/shakespeare_char/.lock"):
        code, _, err = call(main, "shakespeare_char")
    assert code == 5 and "another process is fetching it" in err


def test_the_script(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "data/get.py"), "novels"]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert told.returncode == 2 and told.stderr.startswith("error: novels: has no public text")
    helped = subprocess.run([*words[:2], "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(name in helped for name in TEXTS)
