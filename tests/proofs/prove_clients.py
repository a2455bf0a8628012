"""`make prove`: programs that load an exported folder start and score as generate.py and test.py do.

    python tests/proofs/prove_clients.py [--only NAME]

A small model with each kind of tokenizer, and with an adopted SentencePiece model, is trained on the documentation,
exported and run by the pipeline of transformers, by `transformers serve` and llama.cpp's HTTP server with the client of
OpenAI (whole and streamed completions, a stop string, usage), by lm-evaluation-harness and by llama.cpp. llama.cpp must
also split 5,000 texts into the same ids, and with each type of GGUF file choose tokens that the weights in the file
make the most likely ones. The programs are installed under .cache/clients, once (about 2 GB); llama.cpp itself is left
out without node. Prints a table of the proofs and how many of them failed. Results are kept, as by prove_resume.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from helpers import TOKENIZER_KINDS, varied_texts
from proofs import llama_server
from proofs.journal import ROOT, run_proofs

from gpt2kit.checkpoint import checkpoint
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import huggingface
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer

CLIENTS = ROOT / ".cache" / "clients"
PYTHON = CLIENTS / "venv" / "bin" / "python"
PACKAGES = ["torch==2.13.0", "transformers[serving]==5.23.0", "openai==3.57.0", "lm_eval==0.4.13", "accelerate==1.15.0"]
PACKAGES += ["xllamacpp==2026.10.11549"]  # llama.cpp with the HTTP server of llama-server
NODE_PACKAGE = "node-llama-cpp@3.22.1"

CONTEXT, WINDOWS, TOKENS = 64, 5, 20
# The kinds that llama.cpp runs. Its SentencePiece reads U+2581 as a space, so no text of the comparison contains it.
LLAMA_KINDS = ["bpe", "spm-bpe", "char"]
TEXTS = 5000
# How much less likely than the most likely token one that llama.cpp chooses may be, in logits. It rounds the inputs of
# matrices, too: to 16 bits, or to 8 with the quantized types.
TOLERANCES = {"f32": 1e-3, "f16": 0.02, "bf16": 0.02, "q8_0": 0.05, "q4_0": 0.05}
PROMPTS = ["The model", "A text is", "Each file of the folder", "tokens"]
VOCABULARY = 1024
KINDS = [*TOKENIZER_KINDS, "adopted"]
TRAINING = [
    "--data.tokenizer=tokenizer",
    *("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=64", f"--data.block_size={CONTEXT}"),
    *("--data.global_batch_size=16", "--trainer.max_steps=60", "--trainer.accelerator=cpu", "--seed_everything=1"),
]
PIPELINE = """
import json, sys
from transformers import pipeline
folder, prompts, tokens = json.loads(sys.argv[1])
generator = pipeline("text-generation", model=folder)
settings = {"do_sample": False, "max_new_tokens": tokens, "return_full_text": False}
print(json.dumps([generator(prompt, **settings)[0]["generated_text"] for prompt in prompts]))
"""
OPENAI = """
import json, sys
from openai import OpenAI
url, model, prompts, tokens = json.loads(sys.argv[1])
create = OpenAI(base_url=url, api_key="unused").completions.create
settings = {"model": model, "max_tokens": tokens, "temperature": 0}
answers = []
for prompt in prompts:
    completion = create(prompt=prompt, **settings)
    text = completion.choices[0].text
    stop = text[len(text) // 2 :][:3]
    chunks = create(prompt=prompt, stream=True, **settings)
    answers.append({
        "text": text,
        "stream": "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices),
        "stop": stop,
        "stopped": create(prompt=prompt, stop=[stop], **settings).choices[0].text,
        "usage": [getattr(completion.usage, f"{kind}_tokens") for kind in ("prompt", "completion", "total")],
    })
print(json.dumps(answers))
"""
END = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folder, token, end = json.loads(sys.argv[1])
logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[token]])).logits[0, 0].double()
print(-logits.log_softmax(-1)[end].item())
"""
TASK = """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""


def install() -> None:
    """Install the programs, unless they are there in these versions."""
    done, wanted = CLIENTS / "installed", "\n".join([*PACKAGES, NODE_PACKAGE])
    if done.exists() and done.read_text() == wanted:
        return
    if not PYTHON.exists():
        venv.create(CLIENTS / "venv", with_pip=True)
    run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], CLIENTS)
    if shutil.which("npm"):
        run(["npm", "install", "--silent", "--prefix", CLIENTS, NODE_PACKAGE], CLIENTS)
    done.write_text(wanted)


def run(command: list[object], folder: Path) -> str:
    """Run a program to its end, offline but for installations, and return its output."""
    process = subprocess.run([*map(str, command)], cwd=folder, env=environment(), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{command[:3]}: {(process.stderr or process.stdout)[-1500:]}")
    return process.stdout


def environment() -> dict[str, str]:
    """Return the environment of the programs: without the hub, and with their caches in CLIENTS."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(CLIENTS / "huggingface"), "CUDA_VISIBLE_DEVICES": ""}


class Exported:
    """A small model with a kind of tokenizer; it is trained and exported when it is needed first."""

    def __init__(self, kind: str, text: Path) -> None:
        self.kind, self.text = kind, text
        self.work = text.parent / kind

    @functools.cached_property
    def folder(self) -> Path:
        """The folder that export.py wrote."""
        self.train()
        gguf = ["--gguf"] if self.kind in LLAMA_KINDS else []
        self.python("export.py", "last", "--output_dir", "model", *gguf)
        return self.work / "model"

    def train(self) -> None:
        """Train the tokenizer and the model."""
        self.work.mkdir()
        text = self.text
        if self.kind == "words":  # a model that learns to indent writes nothing but words without letters
            text = self.work / self.text.name
            text.write_text(re.sub(" +", " ", self.text.read_text(encoding="utf-8")), encoding="utf-8")
        source = ["--files", text, "--kind", self.kind, "--vocab_size", VOCABULARY]
        if self.kind == "adopted":
            source = ["--kind", "existing", "--vocab", self.write_sentencepiece()]
        self.python("train_tokenizer.py", *source, "--output_dir", "tokenizer")
        self.python("trainer.py", "--data.train_files", text, *TRAINING)

    def write_sentencepiece(self) -> Path:
        """Train a model with SentencePiece itself, with its defaults but for bytes."""
        import sentencepiece

        settings = {"vocab_size": VOCABULARY, "byte_fallback": True, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(input=self.text, model_prefix=self.work / "spiece", **settings)
        return self.work / "spiece.model"

    def python(self, script: str, *arguments: object) -> str:
        """Run a script of this project in the folder of the model, and return its output."""
        return run([sys.executable, ROOT / script, *arguments], self.work)

    @functools.cached_property
    def expected(self) -> list[str]:
        """The text of generate.py for each prompt."""
        prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
        settings = ["--temperature", 0, "--max_new_tokens", TOKENS, "--no_token_healing", "--json"]
        lines = self.python("generate.py", "last", *prompts, *settings).splitlines()
        return [json.loads(line)["text"].removeprefix(prompt) for line, prompt in zip(lines, PROMPTS, strict=True)]

    def difference(self, texts: list[str]) -> str:
        """Compare continuations of the prompts with those of generate.py."""
        expected = self.expected
        # Clients decode the new tokens alone, as if a text began there, and it begins without a space in these kinds.
        if self.kind in ("words", "wordpiece", "adopted"):
            expected = [text.removeprefix(" ") for text in expected]
            texts = [text.removeprefix("##") for text in texts]
        pairs = zip(PROMPTS, expected, texts, strict=True)
        return "; ".join(f"{prompt!r}: {text!r}, not {own!r}" for prompt, own, text in pairs if text != own)


def pipeline(model: Exported) -> str:
    """Continue the prompts with the pipeline of transformers."""
    arguments = json.dumps([str(model.folder), PROMPTS, TOKENS])
    return model.difference(json.loads(run([PYTHON, "-c", PIPELINE, arguments], model.work)))


@contextlib.contextmanager
def serving(folder: Path, work: Path) -> Iterator[str]:
    """Run `transformers serve`, and yield its URL."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [PYTHON.with_name("transformers"), "serve", str(folder), "--port", str(port)]
    with (work / "server.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=work, env=environment(), stdout=log, stderr=log)
        try:
            wait_for(port, server)
            yield f"http://localhost:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens, which takes minutes beside other programs; raise if it ends."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        if server.poll() is not None:
            raise RuntimeError(f"the server has ended with status {server.returncode}")
        time.sleep(1)
    raise RuntimeError("the server does not listen after ten minutes")


def serve(model: Exported) -> str:
    """Continue the prompts with `transformers serve` and the client of OpenAI."""
    with serving(model.folder, model.work) as url:
        return check_answers(model, url, str(model.folder), keeps_stop=True)


def check_answers(model: Exported, url: str, name: str, keeps_stop: bool = False) -> str:
    """Ask a server for completions, whole, streamed and with a stop string; return what is wrong with them.

    A server that keeps the stop string ends the text with it, or with the token that completes it.
    """
    arguments = json.dumps([url, name, PROMPTS, TOKENS])
    answers = json.loads(run([PYTHON, "-c", OPENAI, arguments], model.work))
    problems = [model.difference([answer["text"] for answer in answers])]
    encoder = tokenizer.load(model.folder)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        text, stop = answer["text"], answer["stop"]
        read = len(tokenizer.encode(encoder, prompt)) + 1  # with the end-of-document token before it
        stopped = answer["stopped"].partition(stop)[0] if keeps_stop else answer["stopped"]
        for what, given, expected in (
            ("streamed", answer["stream"], text),
            (f"stopped at {stop!r}", stopped, text.partition(stop)[0]),
            ("shorter with a stop string", len(answer["stopped"]) < len(text), True),
            ("usage", answer["usage"], [read, TOKENS, read + TOKENS]),
        ):
            if given != expected:
                problems.append(f"{prompt!r}, {what}: {given!r}, not {expected!r}")
    return "; ".join(filter(None, problems))


def serve_gguf(model: Exported) -> str:
    """Continue the prompts with the HTTP server of llama.cpp and the client of OpenAI."""
    with llama_server.serving(PYTHON, model.folder / gguf_file.NAME, CONTEXT) as address:
        return check_answers(model, f"{address}/v1", "model")


def lm_eval(model: Exported) -> str:
    """Compare the perplexity per byte of a document with the bits per byte of test.py.

    The document fills whole windows, because lm-evaluation-harness gives the last one more context.
    """
    source, encoder = model.text.read_text(), tokenizer.load(model.folder)
    candidates = (source[:end] for end in range(WINDOWS * CONTEXT // 2, len(source)) if not source[end - 1].isspace())
    text = next(text for text in candidates if len(tokenizer.encode(encoder, text)) == WINDOWS * CONTEXT)
    (model.work / "text.txt").write_text(text)
    (model.work / "text.json").write_text(json.dumps([{"text": text}]))
    (model.work / "task.yaml").write_text(TASK.replace("FILE", str(model.work / "text.json")))
    model.python("test.py", "last", "--files", "text.txt", "--reader.document", "file", "--json_output", "test.json")
    bits_per_byte = json.loads((model.work / "test.json").read_text())["results"][0]["bits_per_byte"]
    # test.py also predicts the end of the document, and counts it as one byte. lm-evaluation-harness does neither. Here
    # the end is alone in the window after the text, so it is predicted from the last token only; transformers computes
    # that prediction, and its nats are subtracted.
    last = tokenizer.encode(encoder, text)[-1]
    end = float(run([PYTHON, "-c", END, json.dumps([str(model.folder), last, tokenizer.eos_id(encoder)])], model.work))
    size = len(text.encode())
    own = math.exp((bits_per_byte * math.log(2) * (size + 1) - end) / size)
    settings = ["--model_args", f"pretrained={model.folder},add_bos_token=False", "--device", "cpu"]
    command = ["-m", "lm_eval", "--model", "hf", *settings, "--tasks", "task.yaml", "--output_path", "results"]
    run([PYTHON, *command], model.work)
    (results,) = (model.work / "results").rglob("*.json")
    other = json.loads(results.read_text())["results"]["local_text"]["byte_perplexity,none"]
    return "" if math.isclose(own, other, rel_tol=1e-5) else f"byte perplexity {other}, not {own}"


def ask_llama(model: Exported, file: Path, **request: object) -> dict[str, list]:
    """Run llama.cpp with a file, see llama_client.mjs."""
    arguments = json.dumps({"file": str(file), "tokens": TOKENS, **request})
    command = ["node", ROOT / "tests/proofs/llama_client.mjs", CLIENTS / "node_modules", arguments]
    return json.loads(run(command, model.work))


def llama(model: Exported) -> str:
    """Continue the prompts with llama.cpp."""
    return model.difference(ask_llama(model, model.folder / gguf_file.NAME, prompts=PROMPTS)["prompts"])


def llama_ids(model: Exported) -> str:
    """Compare the ids of many texts with those of llama.cpp."""
    texts = varied_texts(TEXTS, model.text.read_text())
    if model.kind != "bpe":
        texts = [text.replace("\u2581", "") for text in texts]
    file = model.work / "texts.json"
    file.write_text(json.dumps(texts))
    rows = ask_llama(model, model.folder / gguf_file.NAME, strings=str(file))["strings"]
    expected = tokenizer.encode_batch(tokenizer.load(model.folder), texts)
    differing = [text for text, ids, row in zip(texts, expected, rows, strict=True) if ids != row]
    return f"{len(differing)} of {len(texts)} texts have other ids, such as {differing[0]!r:.200}" if differing else ""


def llama_type(gguf_type: str, model: Exported) -> str:
    """Continue the prompts with a GGUF file of a type, and compare the tokens with the logits of the same weights."""
    folder = model.work / gguf_type
    model.python("export.py", "last", "--output_dir", folder, "--gguf_type", gguf_type)
    opened = checkpoint.open(folder)
    gpt2 = GPT2.from_state(opened.shape, gguf_file.round_weights(opened.state, gguf_type))
    starts = [[tokenizer.eos_id(opened.tokenizer), *tokenizer.encode(opened.tokenizer, prompt)] for prompt in PROMPTS]
    worst = 0.0
    for start, row in zip(starts, ask_llama(model, folder / gguf_file.NAME, starts=starts)["starts"], strict=True):
        logits = huggingface.compute_logits(gpt2, [*start, *row])[len(start) - 1 : -1]  # (tokens, vocab_size)
        gaps = logits.amax(-1) - logits[range(len(row)), row]
        worst = max(worst, float(gaps.max()))
    print(f"{gguf_type}: at most {worst:.2g} below the most likely token", file=sys.stderr)
    return "" if worst <= TOLERANCES[gguf_type] else f"a token is {worst:.2g} below the most likely one"


def attempt(client: Callable[[Exported], str], model: Exported) -> str:
    """Return what is wrong with a client, also if a program fails."""
    try:
        return client(model)
    except RuntimeError as error:
        return str(error)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="run the proofs whose name contains this")
    only = options.parse_args().only
    CLIENTS.mkdir(parents=True, exist_ok=True)
    install()
    clients = {"pipeline": pipeline, "transformers serve": serve, "lm_eval": lm_eval}
    llama_clients = {"llama.cpp": llama, "llama.cpp ids": llama_ids}
    llama_types = {f"llama.cpp {name}": functools.partial(llama_type, name) for name in TOLERANCES}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
        text.write_text(pages.replace("\u2581", ""))  # llama.cpp cannot run a vocabulary of characters with it
        proofs = {}
        for model in [Exported(kind, text) for kind in KINDS]:
            programs = dict(clients)
            programs |= {"llama-server": serve_gguf} if model.kind == "bpe" else {}
            if shutil.which("node"):
                programs |= llama_clients if model.kind in LLAMA_KINDS else {}
                programs |= llama_types if model.kind == "bpe" else {}
            for name, client in programs.items():
                proofs[f"{name}, {model.kind}"] = functools.partial(attempt, client, model)
        failed = run_proofs(proofs, only)
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
