"""Models that the web demo hands out as HTML files. tests/system/test_demo_download.py uses the running demo."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import GRADIO_WARNINGS, Run, train_tokenizer

from gpt2kit.cli import export, parser
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.serving import app
from gpt2kit.serving.download import Downloads, content_disposition, file_name, link
from gpt2kit.serving.models import Model, Service, find_models
from gpt2kit.tokenization import tokenizer

pytestmark = GRADIO_WARNINGS


def load(*folders: Path) -> Service:
    service = Service(find_models([str(folder) for folder in folders]), allow_download=True)
    service.load().join()
    return service


@pytest.fixture(scope="module")
def service(run: Run) -> Service:
    return load(run.folder)


def test_the_file_is_that_of_export_for_the_weights_that_were_loaded(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "poems"
    shutil.copytree(run.folder, folder)
    downloads = Downloads(load(folder))
    parser.run(export.export, ["--ckpt_path", str(folder), "--html", str(tmp_path / "poems.html")])
    shutil.rmtree(folder / "checkpoints")  # training has replaced them
    assert downloads.ready("poems") is None
    assert sum(downloads.prepare("poems")) > 10_000
    file = downloads.ready("poems")
    assert file and file.read_bytes() == (tmp_path / "poems.html").read_bytes()
    assert list(downloads.prepare("poems")) == [], "it is written once"


def test_the_embedding_is_in_memory_once(service: Service) -> None:
    state = service.checkpoint("version_0").state
    assert state["transformer.wte.weight"].data_ptr() == state["lm_head.weight"].data_ptr()


def test_a_tokenizer_that_the_page_does_not_implement_is_one_line(service: Service, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox\n" * 9)
    train_tokenizer([str(tmp_path / "text.txt")], tmp_path / "tokenizer", "wordpiece", 60)
    opened = dataclasses.replace(service.checkpoint("version_0"), tokenizer=tokenizer.load(tmp_path / "tokenizer"))
    other = Service([Model("poems", "poems", opened=opened)], allow_download=True)
    other.models["poems"].done.set()
    downloads = Downloads(other)
    with pytest.raises(UserError, match=r"^poems: a WordPiece tokenizer does not encode every text without loss"):
        list(downloads.prepare("poems"))
    assert downloads.ready("poems") is None


def test_a_file_that_nobody_waits_for_is_removed(service: Service) -> None:
    downloads = Downloads(service)
    steps = downloads.prepare("version_0")
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert downloads.ready("version_0") is None
    list(downloads.prepare("version_0"))
    file = downloads.ready("version_0")
    assert file and list(file.parent.iterdir()) == [file]
    shutil.rmtree(file.parent)  # as some systems do with old files
    assert downloads.ready("version_0") is None
    list(downloads.prepare("version_0"))
    assert downloads.ready("version_0")


def test_models_that_cannot_be_handed_out_are_refused(service: Service, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"):
        list(Downloads(service).prepare("../../etc/passwd"))
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="not a readable file of tensors"):
        list(Downloads(load(tmp_path / "broken.ckpt")).prepare("broken"))
    waiting = Service(find_models([str(run.folder)]), allow_download=True)
    with pytest.raises(UserError, match="still loading"):
        list(Downloads(waiting).prepare("version_0"))
    without = Service(find_models([str(run.folder)]))
    without.load().join()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        without.checkpoint("version_0")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("poems", "poems.html"),
        ("x/a (2)", "x_a (2).html"),
        ("..\\..\\a", "_.._a.html"),
        ('a"; filename=b.exe', "a_; filename=b.exe.html"),
        ("a\r\nSet-Cookie: b=c", "a__Set-Cookie_ b=c.html"),
        ("<img src=x>\u202egpj", "_img src=x__gpj.html"),
        ("詩 🙂", "詩 🙂.html"),
        ("...", "model.html"),
        ("a" * 999, "a" * 60 + ".html"),
    ],
)
def test_hostile_names_of_models_inject_nothing_into_the_header(name: str, expected: str) -> None:
    assert file_name(name) == expected
    header = content_disposition(expected)
    assert header.isascii() and header.isprintable()
    plain, encoded = header.removeprefix('attachment; filename="').split("\"; filename*=UTF-8''")
    assert '"' not in plain and not set(encoded) & set(" \";'()/\\,") and encoded.endswith(".html")
    assert not set(link(name).partition("?name=")[2]) & set("\"'<>&/# ")


def client(service: Service, auth: tuple[str, str] | None = None) -> Any:
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    testclient = pytest.importorskip("starlette.testclient")
    return testclient.TestClient(app.app(service, "127.0.0.1", auth, 2), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[Any]:
    yield client(service)
    gc.collect()


def test_without_the_option_there_is_neither_button_nor_route(run: Run) -> None:
    service = Service(find_models([str(run.folder)]))
    service.load().join()
    http = client(service)
    assert "Download the model as HTML" not in http.get("/").text
    for address in ("/model.html", "/" + link("version_0")):
        assert http.get(address).json() == {"detail": "not found"}


def test_only_files_that_are_ready_are_served(http: Any) -> None:
    assert "Download the model as HTML" in http.get("/").text
    for query in (
        "",
        "?name=version_0",
        "?name=",
        "?name=../x",
        "?name=%00",
        "?name=%ff",
        "?name=a&name=b",
        "?name[]=x",
    ):
        response = http.get(f"/model.html{query}")
        assert response.status_code == 404 and response.json()["detail"].startswith("no such page")
    for method in ("HEAD", "POST", "PUT", "DELETE"):
        assert http.request(method, "/model.html?name=version_0").status_code in (404, 413)
    for site in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
        assert http.get("/model.html?name=version_0", headers=site).status_code == 403


def test_files_need_the_password(service: Service) -> None:
    http = client(service, ("me", "secret"))
    assert http.get("/model.html?name=version_0").status_code == 401
    assert "Download the model as HTML" not in http.get("/").text
    assert http.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert http.get("/model.html?name=version_0").status_code == 404
