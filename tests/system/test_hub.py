"""Models by their name on the hub, with a local server in place of the hub."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sentencepiece
from helpers import ROOT, SAMPLE_TEXTS, Run, save_huggingface_model
from huggingface_hub import ModelCard

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<S>", "the", "quick", "brown", "fox", "lazy", "dog", ".", "##s"]


@dataclass
class Hub:
    """Repositories as folders, and the requests that were made."""

    root: Path
    address: str = ""
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    created: list[dict[str, object]] = field(default_factory=list)


def handler_of(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            hub.requests.append(path)
            hub.tokens.add(self.headers.get("Authorization", ""))
            parts = path.removeprefix("api/models/").split("/")
            folder = hub.root / parts[0] / parts[1]
            files = [] if not folder.is_dir() else [file for file in folder.iterdir() if file.is_file()]
            if not folder.is_dir():
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if parts[1].startswith("gated"):
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if "absent" in parts:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if not path.startswith("api/"):
                content = (folder / parts[-1]).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                return self.answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
            if parts[2] == "tree":
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files
                ]
                return self.answer(200, json.dumps(tree).encode(), {})
            siblings = [{"rfilename": file.name} for file in files]
            info = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self.answer(200, json.dumps(info).encode(), {})

        def do_POST(self) -> None:
            """Create a repository, check a card, or commit files, as the hub's client asks for it."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.tokens.add(self.headers.get("Authorization", ""))
            parts = self.path.strip("/").split("/")  # api, models or spaces, owner, name, action, revision
            if parts[1] == "repos":
                hub.created.append(json.loads(body))
                return self.answer(200, b'{"url": "https://huggingface.co/me/model"}', {})
            if parts[1] == "validate-yaml":
                ModelCard(json.loads(body)["content"])  # raises if the header is invalid
                return self.answer(200, b'{"warnings": []}', {})
            if parts[4] == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.answer(200, json.dumps({"files": modes}).encode(), {})
            target = hub.root / parts[2] / (parts[3] if parts[1] == "models" else f"{parts[3]}-{parts[1]}")
            target.mkdir(parents=True)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    (target / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
            kind = "" if parts[1] == "models" else f"{parts[1]}/"
            url = f"{hub.address}/{kind}{parts[2]}/{parts[3]}/commit/{COMMIT}"
            return self.answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode(), {})

        def answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def write_sentencepiece(folder: Path) -> int:
    model = io.BytesIO()
    texts = iter(["the quick brown fox jumps over the lazy dog", *SAMPLE_TEXTS] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, vocab_size=200, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    return len(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    for name in ("bert", "rinna", "gated"):
        folder = hub.root / "owner" / name
        save_huggingface_model(corpus / "tokenizer", folder)
        size = 320
        if name != "gated":
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).unlink()
        if name == "bert":
            (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")
            size = len(BERT)
        if name == "rinna":
            size = write_sentencepiece(folder)
        if name != "gated":
            resize(folder, size)
        (folder / "modeling_owner.py").write_text("raise SystemExit('remote code')")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


def resize(folder: Path, size: int) -> None:
    """Give a model another number of tokens."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    model.resize_token_embeddings(size)
    model.config.eos_token_id = 50256  # as in many models with another vocabulary
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def run_script(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}


def test_models_of_every_form_are_used_by_their_name(hub: Hub, tmp_path: Path) -> None:
    settings = {**environment(hub, tmp_path), "HF_TOKEN": "hf_secret"}
    for name, prompt in (("owner/bert", "the quick fox"), ("owner/rinna@main", "the quick fox")):
        arguments = (f"hf://{name}", "--prompt", prompt, "--max_new_tokens", "5", "--top_k", "1")
        first = run_script("generate.py", *arguments, cwd=tmp_path, **settings)
        assert first.returncode == 0 and first.stdout.startswith(prompt), first.stderr
    offline = run_script("generate.py", *arguments, cwd=tmp_path, **{**settings, "HF_HUB_OFFLINE": "1"})
    assert offline.stdout == first.stdout, offline.stderr
    assert "Bearer hf_secret" in hub.tokens and not any(path.endswith(".py") for path in hub.requests)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog .\n" * 400)
    options = "--data.valid_fraction 0.1 --trainer.max_steps 2 --data.block_size 16 --model.init_from hf://owner/bert"
    trained = run_script("trainer.py", "text.txt", *options.split(), cwd=tmp_path, **settings)
    assert trained.returncode == 0, trained.stderr


def test_what_is_missing_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    for name, message in (
        ("owner/gated", "owner/gated: a model with limited access. Ask for access on its page and set HF_TOKEN"),
        ("owner/none", "owner/none: no such folder, and not available from the hub (RepositoryNotFoundError: no"),
        ("owner/bert@absent", "owner/bert@absent: owner/bert has no revision absent. Check the part after @"),
    ):
        arguments = ("--kind", "existing", "--vocab", name, "--output_dir", "tokenizer")
        result = run_script("train_tokenizer.py", *arguments, cwd=tmp_path, **environment(hub, tmp_path))
        assert (result.returncode, result.stderr.count("\n")) == (3, 1), result.stderr
        assert result.stderr.startswith(f"error: --vocab {message}")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog .\n" * 1000)
    arguments = ("text.txt", "--data.tokenizer", "owner/bert@absent")
    result = run_script("trainer.py", *arguments, cwd=tmp_path, **environment(hub, tmp_path))
    expected = "error: data.tokenizer: owner/bert@absent: owner/bert has no revision absent. Check the part after @\n"
    assert (result.returncode, result.stderr) == (3, expected)


def test_an_export_is_uploaded_with_its_space_and_loads_by_its_name(hub: Hub, run: Run, tmp_path: Path) -> None:
    settings = {**environment(hub, tmp_path), "HF_TOKEN": "hf_secret"}
    card = ["--license", "mit", "--language", "en", "--datasets", "owner/texts"]
    target = ["--output_dir", "model", "--push_to_hub", "me/model", "--space", "me/page", *card]
    result = run_script("export.py", str(run.folder), *target, cwd=tmp_path, **settings)
    assert result.returncode == 0, result.stderr
    assert "uploaded to me/model" in result.stdout and "uploaded to the Space me/page" in result.stdout
    assert [(repository["name"], repository["visibility"]) for repository in hub.created] == [
        ("model", "private"),
        ("page", "private"),
    ]
    assert hub.created[1]["sdk"] == "gradio" and "Bearer hf_secret" in hub.tokens
    for local, remote in (("model", "me/model"), ("model-space", "me/page-spaces")):
        files = {file.name: file.read_bytes() for file in (tmp_path / local).iterdir()}
        assert files == {file.name: file.read_bytes() for file in (hub.root / remote).iterdir()}
    uploaded = ModelCard((hub.root / "me/model/README.md").read_text(encoding="utf-8"))
    assert (uploaded.data.license, uploaded.data.language, uploaded.data.datasets) == ("mit", ["en"], ["owner/texts"])
    metrics = {result.metric_type for result in uploaded.data.eval_results}
    assert metrics == {"bits_per_byte", "perplexity"} and uploaded.data.model_name == "model"
    assert (
        "## Samples" in uploaded.text and "models:\n- me/model\n" in (hub.root / "me/page-spaces/README.md").read_text()
    )
    generated = run_script("generate.py", "hf://me/model", "--prompt", "the", cwd=tmp_path, **settings)
    assert generated.returncode == 0 and generated.stdout.startswith("the"), generated.stderr
