"""The Python API: `gpt2kit.load`, `gpt2kit.train`, and `GPT2Module.load_from_checkpoint`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from helpers import ROOT, SENTENCE, Outcome, Run, save_huggingface_model

import gpt2kit
from gpt2kit import GPT2Module
from gpt2kit.checkpoint import paths
from gpt2kit.cli import generate, parser, test
from gpt2kit.errors import CheckpointError, MachineError, UserError

TEXTS = ["the lazy dog", SENTENCE.format(7) * 6, "", "x", "naïve 🫨\tfox  says\n\n"]


@pytest.fixture(scope="module")
def model(run: Run) -> gpt2kit.Model:
    return gpt2kit.load(run.folder, device="cpu")


def test_generate_returns_what_the_command_prints(model: gpt2kit.Model, run: Run, call: Callable[..., Outcome]) -> None:
    arguments = ["--ckpt_path", run.folder, "--prompt", "the quick", "--max_new_tokens", 12, "--seed", 3]
    _, out, _ = call(lambda argv: parser.run(generate.generate, argv), *arguments)
    text = model.generate("the quick", max_new_tokens=12, seed=3)
    assert text == out.removesuffix("\n") and text.startswith("the quick")
    assert "".join(model.generate("the quick", stream=True, max_new_tokens=12, seed=3)) == text
    texts = model.generate("the quick", n=3, max_new_tokens=12, seed=3)
    assert len(texts) == len(set(texts)) == 3 and texts[0] == text
    assert model.generate(max_new_tokens=8, stop="zzz", temperature=0) == model.generate(max_new_tokens=8, top_k=1)


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"max_token": 3}, TypeError, r"generate\(\) got an unexpected .* 'max_token'. Did you mean max_new_tokens\?"),
        ({"num_samples": 2}, TypeError, "'num_samples'"),
        ({"top_p": 2, "top_k": -1}, UserError, "^top_k -1: must not be negative; top_p 2: must be above 0"),
        ({"n": 0}, UserError, "^n 0: must be from 1 to"),
        ({"n": 2, "stream": True}, UserError, "stream"),
        ({"prompt": ["a", "b"]}, UserError, "must be one text"),
        ({"top_k": "many"}, TypeError, "top_k 'many' has the wrong type"),
        ({"top_k": 1.5}, TypeError, "top_k 1.5"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens 2.5"),
        ({"n": "2"}, TypeError, "n '2'"),
        ({"seed": None}, TypeError, "seed None"),
        ({"temperature": True}, TypeError, "temperature True"),
        ({"token_healing": "no"}, TypeError, "token_healing 'no'"),
        ({"stop": ["a", 5]}, TypeError, "stop "),
    ],
)
def test_wrong_options_of_generate_are_refused(
    keywords: dict[str, object], kind: type[Exception], message: str, model: gpt2kit.Model
) -> None:
    with pytest.raises(kind, match=message):
        model.generate(**keywords)  # type: ignore[call-overload]


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_scores_are_those_of_the_command(
    text: str, stride: int | None, model: gpt2kit.Model, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text(text, encoding="utf-8")
    arguments = ["--ckpt_path", run.folder, "--files", "a.txt", "--reader.document", "file", "--json_output", "-"]
    arguments += ["--stride", stride] if stride else []
    _, out, _ = call(lambda argv: parser.run(test.test, argv), *arguments)
    [row] = json.loads(out)["results"]
    score = model.score(text, stride=stride)
    for name in ("loss", "perplexity", "bits_per_byte", "bits_per_character", "perplexity_per_word", "tokens"):
        assert getattr(score, name) == pytest.approx(row[name], rel=1e-6), name
    assert score.nats == pytest.approx(row["nll"], rel=1e-6)
    assert score.bytes == len(text.encode()) + 1


def test_scores_do_not_depend_on_other_texts(model: gpt2kit.Model, run: Run) -> None:
    alone = [model.score(text) for text in TEXTS]
    for batch_size in (1, 3, 100):
        together = model.score(TEXTS * 2, batch_size=batch_size)
        for one, other in zip(alone * 2, together, strict=True):
            assert one.nats == pytest.approx(other.nats, rel=1e-6) and one.tokens == other.tokens
    assert model.score([]) == [] and model.score("").tokens == 1
    rounded = gpt2kit.load(run.folder, precision="bf16").score(TEXTS[1])
    assert rounded.nats != alone[1].nats and rounded.nats == pytest.approx(alone[1].nats, rel=0.05)


@pytest.mark.parametrize("text", TEXTS)
def test_surprisals_add_up_to_the_score_without_the_end(text: str, model: gpt2kit.Model) -> None:
    rows, score = model.surprisal(text), model.score(text)
    assert len(rows) == score.tokens - 1
    total = sum(row.nats for row in rows)
    assert total == pytest.approx(sum(word.nats for word in rows.words())) and total < score.nats
    ids = model.checkpoint.tokenizer.encode(text).ids[-15:]  # in the last window, if the text is short
    if len(ids) == len(rows):
        end = torch.tensor([[0, *ids]])
        log_probabilities = model.gpt2(end).logits[0, :, :320].log_softmax(-1).detach()
        assert total - score.nats == pytest.approx(log_probabilities[-1, 0].item(), rel=1e-5)
        for row, i, prediction in zip(rows, ids, log_probabilities, strict=False):
            assert row.nats == pytest.approx(-prediction[i].item(), rel=1e-5)
            assert row.bits == pytest.approx(row.nats / math.log(2))
            assert row.rank == 1 + int((prediction > prediction[i]).sum())
            entropy = -(prediction.exp() * prediction).sum().item() / math.log(2)
            assert row.entropy == pytest.approx(entropy, rel=1e-5)


def test_surprisal_becomes_a_data_frame(model: gpt2kit.Model) -> None:
    rows = model.surprisal("the quick brown fox")
    frame = rows.to_pandas()
    assert list(frame.columns) == ["token", "start", "end", "nats", "bits", "rank", "entropy"]
    assert frame.nats.sum() == pytest.approx(sum(row.nats for row in rows))
    assert list(rows.words().to_pandas().word) == ["the", "quick", "brown", "fox"]
    empty = model.surprisal("")
    assert list(empty.to_pandas().columns) == list(frame.columns) and "word" in empty.words().to_pandas().columns


def test_the_command_writes_the_same_surprisals(
    model: gpt2kit.Model, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text(TEXTS[1] + 'He said: "NA\tx"\n', encoding="utf-8")
    (inside / "b.txt").write_text("fox", encoding="utf-8")
    arguments = ["--ckpt_path", run.folder, "--reader.document", "file", "--files", "a.txt", "b.txt"]
    outputs = ["--surprisal", "out.tsv", "--json_output", "a.json"]
    code, _, err = call(lambda argv: parser.run(test.test, argv), *arguments, *outputs)
    assert code == 0, err
    frame = pandas.read_csv("out.tsv", sep="\t", keep_default_na=False)
    assert list(frame.columns) == ["document", "token", "start", "end", "nats", "bits", "rank", "entropy"]
    first = frame[frame.document == 1]
    rows = model.surprisal((inside / "a.txt").read_text()).to_pandas()
    assert "\\n" in set(first.token) and "\\t" in "".join(first.token)
    for name in ("start", "end", "nats", "bits", "entropy"):
        assert list(first[name]) == pytest.approx(list(rows[name]), rel=1e-4, abs=1e-5), name
    assert "".join(frame[frame.document == 2].token) == "fox"
    [result] = json.loads((inside / "a.json").read_text())["results"]
    assert len(frame) == result["tokens"] - 2 and frame.nats.sum() < result["nll"]


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (lambda run: gpt2kit.load("no/such/run"), CheckpointError, "no/such/run: no such checkpoint"),
        (lambda run: gpt2kit.load(run, device="gpu"), UserError, "device 'gpu': must be auto, cpu, cuda or cuda:N"),
        (lambda run: gpt2kit.load(run, precision="fp8"), UserError, "precision fp8: must be auto, 32, bf16 or 16"),
        (lambda run: gpt2kit.load(run, precision=16), UserError, "precision 16: about a thousand times slower"),
        (
            lambda run: gpt2kit.train(b"a.txt"),
            UserError,
            "files: must be paths, not bytes. Give text in memory",
        ),
        (lambda run: gpt2kit.train("[b]", n_layer=1), UserError, "[b]: no file matches"),
        (lambda run: gpt2kit.load(run, device="cuda:99"), MachineError, "device cuda:99: this machine has"),
        (lambda run: gpt2kit.load(run).score("\ud800"), UserError, "must be one text"),
        (lambda run: gpt2kit.load(run).score("a", stride=17), UserError, "stride 17: must be from 1 to 16"),
        (lambda run: gpt2kit.train("a.txt", max_stepz=3), TypeError, "'max_stepz'. Did you mean max_steps?"),
        (lambda run: gpt2kit.train("a.txt", n_positions=3), TypeError, "'n_positions'"),
        (lambda run: gpt2kit.train("a.txt", options={"model.n_layers": 3}), UserError, "Did you mean --model.n_layer?"),
        (lambda run: gpt2kit.train("a.txt", options={"plan": True}), UserError, "plan: trains no model"),
        (lambda run: gpt2kit.train("a.txt", options={"print_config": ""}), UserError, "print_config: trains no model"),
        (lambda run: gpt2kit.train("a.txt", options={"help=all": ""}), UserError, "help=all: trains no model"),
        (lambda run: gpt2kit.train("a.txt", options={"model.optimizer.help": ""}), UserError, "trains no model"),
        (
            lambda run: gpt2kit.train("a.txt", callbacks=[object()]),
            UserError,
            "trainer.callbacks: must be plain values",
        ),
        (lambda run: gpt2kit.train("no/such.txt", n_layer=1), UserError, "no/such.txt: no such file or folder"),
        (lambda run: gpt2kit.train(texts="a text"), UserError, "texts: must be a list of texts"),
        (lambda run: gpt2kit.train(texts={"train": ["a"]}), UserError, "one split of a dataset, not dict"),
        (lambda run: gpt2kit.train(texts=pandas.DataFrame({"text": ["a"]})), UserError, "not DataFrame"),
        (lambda run: gpt2kit.train(texts=["a", 3]), UserError, "texts: item 1 is neither a text nor a row of texts"),
        (lambda run: gpt2kit.train(valid_texts=[{"image": b""}]), UserError, "bytes is not JSON serializable"),
        (lambda run: gpt2kit.train("a.txt", texts=["a"]), UserError, "data.train_files: texts are also given"),
        (lambda run: GPT2Module.load_from_checkpoint("no/such/run"), CheckpointError, "no/such/run"),
    ],
)
def test_errors_are_exceptions(
    load: Callable[[Path], object], kind: type[Exception], message: str, run: Run, inside: Path
) -> None:
    with pytest.raises(kind) as raised:
        load(run.folder)
    assert message in str(raised.value)


def test_train_returns_the_best_model(corpus: Path, inside: Path) -> None:
    (inside / "small.yaml").write_text("model:\n  n_layer: 1\n  n_head: 1\n  n_embd: 32\n")
    model = gpt2kit.train(
        [corpus / "train.txt"],
        config="small.yaml",
        options={"data.valid_files": str(corpus / "valid.txt"), "model.n_head": 2},
        tokenizer=str(corpus / "tokenizer"),
        block_size=16,
        batch_size=8,
        document="line",
        dropout=0.1,
        lr=0.01,
        callbacks=[{"class_path": "gpt2kit.callbacks.TextSamples", "init_args": {"prompts": ["the"]}}],
        max_steps=4,
        max_time="00:01:00:00",
        val_check_interval=2,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    settings = model.checkpoint.metadata["settings"]
    assert model.checkpoint.path.name.startswith("epoch=0-step=4-val_loss=")
    assert model.checkpoint.path.samefile(paths.find("last")) and Path("lightning_logs/version_0/samples.md").is_file()
    assert (model.checkpoint.shape["n_layer"], model.checkpoint.shape["n_head"]) == (1, 2)
    assert settings["data"]["reader"]["init_args"]["document"] == "line"
    assert settings["model"]["optimizer"]["init_args"]["lr"] == 0.01
    assert model.generate("the", max_new_tokens=3).startswith("the")


def test_texts_in_memory_are_the_data_of_a_run_and_its_resume(corpus: Path, inside: Path) -> None:
    rows = [{"title": f"{n}", "body": SENTENCE.format(n).strip(), "year": n} for n in range(60)]
    settings: dict[str, Any] = {"template": "{title}: {body}", "loss_on": "body", "block_size": 16, "batch_size": 8}
    settings |= {"n_layer": 1, "n_head": 1, "n_embd": 8, "accelerator": "cpu", "tokenizer": str(corpus / "tokenizer")}
    first = gpt2kit.train(texts=iter(rows), valid_texts=rows[:9], max_steps=2, **settings)
    resumed = gpt2kit.train(texts=rows, valid_texts=rows[:9], max_steps=3, ckpt_path="version_0", **settings)
    assert resumed.checkpoint.metadata["step"] == 3
    assert resumed.checkpoint.metadata["data"] == first.checkpoint.metadata["data"]
    assert len(list((inside / ".cache/gpt2kit/texts").iterdir())) == 2, "each text once, and no temporary file"
    with pytest.raises(CheckpointError, match="text was"):
        gpt2kit.train(texts=rows[1:], valid_texts=rows[:9], max_steps=4, ckpt_path="version_0", **settings)
    prompts = ["1: ", "the qu"]
    for prompt in prompts:  # it has not learned to predict a prompt, so no token of it is chosen again
        plain, healed = (first.generate(prompt, token_healing=heals, max_new_tokens=8) for heals in (False, True))
        assert plain == healed


def test_a_run_that_its_time_limit_stops_returns_a_model(corpus: Path, options: list[str], inside: Path) -> None:
    settings = dict(option.removeprefix("--").split("=", 1) for option in options)
    model = gpt2kit.train(options=settings, max_steps=1000000, max_time="00:00:00:02", log_every_n_steps=1)
    status = json.loads((inside / "lightning_logs/version_0/status.json").read_text())
    assert status["state"] == "stopped" and model.checkpoint.path.samefile(paths.find("last"))


def test_an_interrupted_run_is_saved_and_resumed(options: list[str], inside: Path) -> None:
    status = inside / "lightning_logs/version_0/status.json"

    def interrupt() -> None:
        while not status.is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    settings = dict(option.removeprefix("--").split("=", 1) for option in options)
    with pytest.raises(KeyboardInterrupt):
        gpt2kit.train(options=settings, max_steps=1000000, compile="off")
    thread.join()
    saved = json.loads(status.read_text())
    assert saved["state"] == "stopped"
    model = gpt2kit.train(options=settings, max_steps=saved["step"] + 2, compile="off", ckpt_path="last")
    assert model.checkpoint.metadata["step"] == saved["step"] + 2


def test_a_lightning_module_is_loaded_with_its_weights(run: Run, model: gpt2kit.Model) -> None:
    module = GPT2Module.load_from_checkpoint(run.folder)
    ids = torch.arange(12)[None]
    assert not module.training and not module.model.training
    assert torch.equal(module.model(ids).logits, model.gpt2(ids).logits)
    assert module.tokenizer.encode("fox").ids == model.checkpoint.tokenizer.encode("fox").ids
    new = module.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert new.shape == (1, 15)
    other = GPT2Module.load_from_checkpoint(str(model.checkpoint.path), map_location="cpu", attention="plain")
    assert other.attention == "plain"


def test_hugging_face_folders_are_loaded(corpus: Path, inside: Path) -> None:
    save_huggingface_model(corpus / "tokenizer", inside / "hf")
    model, module = gpt2kit.load("hf"), GPT2Module.load_from_checkpoint("hf")
    ids = torch.arange(12)[None]
    assert torch.equal(module.model(ids).logits, model.gpt2(ids).logits)
    assert model.score("the fox").tokens > 1 and repr(model) == "<gpt2kit.Model hf: 2 layers, width 32, context 16>"


def test_importing_the_package_loads_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); import gpt2kit\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'torch', 'numpy', 'transformers', 'pytorch_lightning'}, new\n"
        "assert gpt2kit.load and 'transformers' not in sys.modules and 'pytorch_lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT / "src")
    assert {"load", "train", "Model"} <= set(gpt2kit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        gpt2kit.lode  # noqa: B018
