"""Models by their name on the hub, with a local server in place of the hub."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sentencepiece
from helpers import SAMPLE_TEXTS, Run, run_scripts, save_huggingface_model
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


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Return the variables that the hub's client reads when it is imported."""
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    return {**places, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def test_models_of_every_form_are_used_by_their_name(hub: Hub, tmp_path: Path) -> None:
    settings = {**environment(hub, tmp_path), "HF_TOKEN": "hf_secret"}
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog .\n" * 400)
    options = "--data.valid_fraction 0.1 --trainer.max_steps 2 --data.block_size 16 --model.init_from hf://owner/bert"
    generate = ["--prompt", "the quick fox", "--max_new_tokens", "5", "--top_k", "1"]
    last = ["generate.py", "hf://owner/rinna@main", *generate]
    training = ["trainer.py", "text.txt", *options.split()]
    finished = run_scripts(tmp_path, ["generate.py", "hf://owner/bert", *generate], last, training, **settings)
    assert [each.code for each in finished] == [0, 0, 0], finished
    assert all(each.out.startswith("the quick fox") for each in finished[:2])
    assert "Bearer hf_secret" in hub.tokens and not any(path.endswith(".py") for path in hub.requests)
    [offline] = run_scripts(tmp_path, last, **{**settings, "HF_HUB_OFFLINE": "1"})
    assert (offline.code, offline.out) == (0, finished[1].out), offline


def test_what_is_missing_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog .\n" * 1000)
    messages = {
        "owner/gated": "owner/gated: a model with limited access. Ask for access on its page and set HF_TOKEN",
        "owner/none": "owner/none: no such folder, and not available from the hub (RepositoryNotFoundError: no",
        "owner/bert@absent": "owner/bert@absent: owner/bert has no revision absent. Check the part after @",
    }
    adopt = ["train_tokenizer.py", "--kind", "existing", "--output_dir", "tokenizer", "--vocab"]
    training = ["trainer.py", "text.txt", "--data.tokenizer", "owner/bert@absent"]
    commands = [*([*adopt, name] for name in messages), training]
    *adopted, trained = run_scripts(tmp_path, *commands, **environment(hub, tmp_path))
    for each, message in zip(adopted, messages.values(), strict=True):
        assert (each.code, each.err.count("\n")) == (3, 1), each.err
        assert each.err.startswith(f"error: --vocab {message}")
    expected = "error: data.tokenizer: owner/bert@absent: owner/bert has no revision absent. Check the part after @\n"
    assert (trained.code, trained.err) == (3, expected)


def test_an_export_is_uploaded_with_its_space_and_loads_by_its_name(hub: Hub, run: Run, tmp_path: Path) -> None:
    settings = {**environment(hub, tmp_path), "HF_TOKEN": "hf_secret"}
    card = ["--license", "mit", "--language", "en", "--datasets", "owner/texts"]
    target = ["--output_dir", "model", "--push_to_hub", "me/model", "--space", "me/page", *card]
    generate = ["generate.py", "hf://me/model", "--prompt", "the"]
    exported, generated = run_scripts(tmp_path, ["export.py", str(run.folder), *target], generate, **settings)
    assert exported.code == 0, exported
    assert "uploaded to me/model" in exported.out and "uploaded to the Space me/page" in exported.out
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
    assert generated.code == 0 and generated.out.startswith("the"), generated
