"""Figures against a straightforward reference, and against themselves by another way; the command as it is used."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, SENTENCE, Outcome, Run, train_tokenizer
from numpy.typing import NDArray

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.cli import parser, test
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation import scoring
from gpt2kit.evaluation.ranks import Ranks
from gpt2kit.evaluation.scoring import Scorer, Windows
from gpt2kit.text.reader import Reader

CONTEXT = 16
LOREM = "Lorem ipsum dolor sit amet. " * 9
TEXTS = {
    "lines": SENTENCE * 5,
    "one short document": "ab",
    "one character": "x",
    "one long document": LOREM,
    "long and short ones": f"a\n{LOREM}\n\n{LOREM}b\nc\n",
    "exactly one window": "x" * (CONTEXT - 1),
    "one token more": "x" * CONTEXT,
}


@pytest.fixture(scope="module")
def opened(run: Run) -> LoadedCheckpoint:
    return checkpoint.open(run.folder)


@pytest.fixture(scope="module")
def store(opened: LoadedCheckpoint, corpus: Path) -> TokenStore:
    return open_or_build(Corpus([corpus / "test.txt"], opened.tokenizer, Reader()), corpus / "cache")


def reference(
    opened: LoadedCheckpoint, store: TokenStore, stride: int, start: int | None = None
) -> NDArray[np.float64]:
    """Nats of each token after the first, one window at a time, in double precision, by the model alone."""
    model = copy.deepcopy(opened.model).double().eval()
    tokens = torch.from_numpy(store[0 : len(store)].astype("int64"))
    nats = np.full(len(tokens) - 1, np.nan)
    for first in range(0, max(len(tokens) - 1 - CONTEXT, 0) + stride, stride):
        window = tokens[first : first + CONTEXT + 1]
        if start is None:
            parts = [window]
        else:  # each document by itself
            cuts = [0, *(i for i in range(1, len(window) - 1) if window[i] == start), len(window) - 1]
            parts = [window[a : b + 1] for a, b in itertools.pairwise(cuts)]
        found = []
        for part in parts:
            with torch.inference_mode():
                chances = model(part[None, :-1]).logits[0, :, :320].log_softmax(-1)
            found += (-chances.gather(-1, part[1:, None])[:, 0]).tolist()
        new = nats[first : first + len(found)]
        new[np.isnan(new)] = np.array(found)[np.isnan(new)]
    return nats


def by_document(store: TokenStore, nats: NDArray[np.float64]) -> list[float]:
    """The same sums as `score`, by a loop over tokens."""
    found, at = [], 0
    for length in store.lengths()[:, 0].tolist():
        end = at + length + (1 if store.ends else 0)
        found.append(float(nats[at:end].sum()))
        at = end
    assert at == len(nats)
    return found


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("stride", [16, 5, 1])
@pytest.mark.parametrize("name", TEXTS)
def test_it_is_the_sum_over_all_windows_in_double_precision(
    name: str, stride: int, append_eos: bool, opened: LoadedCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[name])
    corpus = Corpus([tmp_path / "a.txt"], opened.tokenizer, Reader(), append_eos=append_eos)
    store = open_or_build(corpus, tmp_path)
    windows = Windows(len(store), CONTEXT, stride)
    wanted = by_document(store, reference(opened, store, stride))
    for batch_size in (1, 3, 1000):
        found = Scorer(opened.model, store, windows).score(batch_size)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_loss_is_that_of_the_reference_to_a_millionth(opened: LoadedCheckpoint, store: TokenStore) -> None:
    found = Scorer(opened.model, store, Windows(len(store), CONTEXT, CONTEXT)).score().sum() / (len(store) - 1)
    assert found == pytest.approx(reference(opened, store, CONTEXT).mean(), abs=1e-6)
    exact = scoring.prepare(copy.deepcopy(opened.model), "cpu", "64-true")
    found = Scorer(exact, store, Windows(len(store), CONTEXT, CONTEXT), "64-true").score().sum()
    assert found == pytest.approx(reference(opened, store, CONTEXT).sum(), rel=1e-13)


@pytest.mark.parametrize("stride", [16, 4])
def test_documents_apart_are_each_by_itself(stride: int, opened: LoadedCheckpoint, store: TokenStore) -> None:
    gpt2 = copy.deepcopy(opened.model)
    gpt2.document_start = store.index.eos_id
    wanted = by_document(store, reference(opened, store, stride, store.index.eos_id))
    found = Scorer(gpt2, store, Windows(len(store), CONTEXT, stride)).score()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_it_is_the_loss_of_transformers(opened: LoadedCheckpoint, store: TokenStore) -> None:
    """The library's own loss, for the same windows: it shifts and averages by itself."""
    total = 0.0
    for first in range(0, len(store) - 1, CONTEXT):
        window = torch.from_numpy(store[first : first + CONTEXT + 1].astype("int64"))[None]
        model = copy.deepcopy(opened.model).double()
        with torch.inference_mode():
            shifted = model(window[:, :-1], labels=window[:, :-1], shift_labels=window[:, 1:])
        total += shifted.loss.item() * (window.shape[1] - 1)
    found = Scorer(opened.model, store, Windows(len(store), CONTEXT, CONTEXT)).score()
    assert found.sum() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("stride", [16, 7])
def test_batches_and_ranks_change_nothing(opened: LoadedCheckpoint, store: TokenStore, stride: int) -> None:
    windows = Windows(len(store), CONTEXT, stride)
    scorer = Scorer(opened.model, store, windows)
    whole = scorer.score(4)
    for batch_size in (1, 7, 1000):
        np.testing.assert_allclose(scorer.score(batch_size), whole, rtol=1e-6)
    shares = [list(Ranks(rank, 3).select(windows.batches(4))) for rank in range(3)]
    assert sorted(itertools.chain(*shares), key=lambda batch: batch.start) == list(windows.batches(4))


def test_a_token_costs_on_the_page_what_it_costs_in_the_sum(opened: LoadedCheckpoint, store: TokenStore) -> None:
    windows = Windows(len(store), CONTEXT, 5)
    scorer = Scorer(opened.model, store, windows)
    nll = scorer.score()
    for number in (0, 7, len(nll) - 1):
        span = scorer.boundaries[number : number + 2].tolist()
        nats = scorer.token_nats(*span)
        assert len(nats) == span[1] - span[0] and nats.sum() == pytest.approx(nll[number], rel=1e-6)


def test_logits_are_made_of_a_few_positions_at_a_time(
    opened: LoadedCheckpoint, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2kit.model import gpt2

    scorer = Scorer(opened.model, store, Windows(len(store), CONTEXT, CONTEXT))
    whole = scorer.score()
    monkeypatch.setattr(gpt2, "CHUNK", 320 * 7)
    np.testing.assert_allclose(scorer.score(), whole)


def uniform(run: Run, path: Path) -> Path:
    """A checkpoint of a model that finds every token equally likely."""
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["state_dict"] = {name: torch.zeros_like(value) for name, value in raw["state_dict"].items()}
    torch.save(raw, path)
    return path


def main(args: list[str]) -> None:
    parser.run(test.test, args)


def test_a_model_that_knows_nothing_pays_the_logarithm(
    run: Run, corpus: Path, store: TokenStore, call: Callable[..., Outcome], inside: Path
) -> None:
    code, out, _ = call(main, "--ckpt_path", uniform(run, inside / "u.ckpt"), "--json_output", "-")
    row, text = json.loads(out)["results"][0], json.loads(out)["text"]
    lines = (corpus / "test.txt").read_text().splitlines()
    words = sum(len(line.split()) + 1 for line in lines)
    bits = math.log2(320) * row["tokens"]
    assert code == 0 and row["tokens"] == len(store) - 1
    assert row["loss"] == pytest.approx(math.log(320), rel=1e-7) and row["perplexity"] == pytest.approx(320, rel=1e-6)
    assert row["bits_per_byte"] == pytest.approx(bits / (store.bytes + 40), rel=1e-7)
    assert row["bits_per_character"] == pytest.approx(bits / sum(len(line) + 1 for line in lines), rel=1e-7)
    assert row["perplexity_per_word"] == pytest.approx(320 ** (row["tokens"] / words), rel=1e-5)
    assert row["over_documents"]["loss"]["sd"] == pytest.approx(0, abs=1e-6)
    assert row["interval_95"]["loss"] == pytest.approx([math.log(320)] * 2, rel=1e-7)
    assert text["words"] == words - 40 and text["documents"] == 40


def test_no_address_in_a_checkpoint_is_visited(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["gpt2kit"]["test_files"] = ["https://example.invalid/text.txt"]
    torch.save(raw, inside / "named.ckpt")
    code, _, err = call(main, "--ckpt_path", "named.ckpt")
    assert code == 2 and "If you trust that address" in err


def test_the_command_needs_the_checkpoint_and_nothing_else(
    run: Run, call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    code, out, err = call(main, "--ckpt_path", run.folder, "--json_output", "found.json")
    written = json.loads((inside / "found.json").read_text())
    figures = written["results"][0]
    assert code == 0 and not err and f"{figures['bits_per_byte']:.4f}" in out
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert written["text"]["documents"] == 40 and written["text"]["files"] == [str(corpus / "test.txt")]
    assert written["settings"]["precision"] == "32-true" and written["versions"]["torch"] == torch.__version__
    low, high = figures["interval_95"]["bits_per_byte"]
    assert low < figures["bits_per_byte"] < high and f"95 % interval {low:.4f} to {high:.4f}" in out
    assert "context              1-16" in out
    code, out, err = call(main, "--ckpt_path", run.folder, "--config", "config.yaml", "--stride", "8")
    assert code == 0 and "--config is not needed" in err and "context              9-16" in out
    code, out, _ = call(main, "--ckpt_path", run.folder, "--files", corpus / "valid.txt", corpus / "test.txt")
    assert code == 0 and "bits per byte" in out and "documents            80" in out


def test_the_hash_is_of_the_documents(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    hashes = []
    for name, text in {"a.txt": "one\ntwo\n", "b.txt": "one\r\n\r\ntwo", "c.txt": "onetwo\n"}.items():
        (inside / name).write_bytes(text.encode())
        _, out, _ = call(main, "--ckpt_path", run.folder, "--files", name, "--json_output", "-")
        hashes.append(json.loads(out)["text"]["hash"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stride", "17"], "--stride 17: more than the context of"),
        (["--stride", "0", "--batch_size", "0", "--max_tokens", "0"], "--batch_size 0: must be at least 1; --stride 0"),
        (["--memorization"], "Give it as --train_files"),
        (["--train_files", "a.txt"], "--train_files: is for --memorization"),
        (["--precision", "16-mixed"], "a CPU computes it very slowly"),
        (["--precision", "8"], "--precision"),
        (["--strid", "3"], "Did you mean --stride?"),
    ],
)
def test_mistakes(words: list[str], message: str, run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(main, "--ckpt_path", run.folder, *words)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_quick_look_says_that_it_is_one(run: Run, call: Callable[..., Outcome], inside: Path, corpus: Path) -> None:
    def look(*words: object) -> tuple[dict[str, Any], str]:
        code, out, err = call(main, "--ckpt_path", run.folder, "--json_output", "-", *words)
        assert code == 0, err
        return json.loads(out), err

    whole, err = look()
    assert not whole["text"]["partial"] and "partial" not in err
    part, err = look("--max_tokens", 200)
    assert "note: partial: the first " in err and 100 < part["results"][0]["tokens"] <= 200
    count = part["text"]["documents"]
    (inside / "few.txt").write_text("\n".join((corpus / "test.txt").read_text().splitlines()[:count]))
    alone, _ = look("--files", "few.txt")
    assert alone["results"][0]["loss"] == pytest.approx(part["results"][0]["loss"], rel=1e-6)
    assert alone["results"][0]["bits_per_byte"] == pytest.approx(part["results"][0]["bits_per_byte"], rel=1e-6)
    assert alone["text"]["words"] == part["text"]["words"]
    assert look("--max_tokens", 10**9)[0]["results"] == whole["results"]
    (inside / "long.txt").write_text(LOREM)
    full, err = look("--files", "long.txt")
    assert "one document: no interval" in err and not full["results"][0]["interval_95"]
    tokens = full["results"][0]["tokens"]
    code, _, err = call(main, "--ckpt_path", run.folder, "--files", "long.txt", "--max_tokens", tokens - 1)
    assert code == 2 and f"the first document has {tokens} tokens" in err and f"Use --max_tokens {tokens}," in err
    assert look("--files", "long.txt", "--max_tokens", tokens)[0]["results"] == full["results"]


@pytest.fixture(scope="module")
def others(run: Run, options: list[str], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same text learnt with other tokenizers; one of them loses text."""
    from gpt2kit.cli import train

    work = tmp_path_factory.mktemp("others")
    found = {}
    for kind, size in (("char", 300), ("wordpiece", 200)):
        train_tokenizer([str(corpus / "train.txt")], work / kind, kind=kind, vocab_size=size)  # type: ignore[arg-type]
        words = [f"--data.tokenizer={work / kind}", f"--trainer.default_root_dir={work / f'run-{kind}'}"]
        train.main([*options, *words, "--trainer.max_steps=20"])
        found[kind] = work / f"run-{kind}" / "lightning_logs" / "version_0"
    return found


def test_comparing_across_tokenizers(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    words = ["--ckpt_path", others["char"], run.folder]
    code, out, err = call(main, *words, "--json_output", "all.json")
    found = json.loads((inside / "all.json").read_text())
    best, other = found["results"]
    assert code == 0, err
    assert best["bits_per_byte"] < other["bits_per_byte"] and best["difference"]["bits_per_byte"] == 0
    assert other["difference"]["to"] == best["checkpoint"] and best["tokens"] != other["tokens"]
    low, high = other["difference"]["interval_95"]
    assert low <= other["difference"]["bits_per_byte"] <= high and low > 0
    lines = out.splitlines()
    assert lines[1].endswith(best["checkpoint"]) and "best" in lines[1] and f"{low:+.4f} to {high:+.4f}" in lines[2]
    for name in (run.folder, others["char"]):  # each has the figures that it has alone
        _, alone, _ = call(main, "--ckpt_path", name, "--json_output", "-")
        (row,) = (row for row in found["results"] if row["checkpoint"] == str(name))
        assert json.loads(alone)["results"][0]["nll"] == row["nll"]
    _, out, _ = call(main, *words, "--max_tokens", 300, "--json_output", "-")
    text = json.loads(out)
    assert text["text"]["partial"] and all(row["tokens"] <= 300 for row in text["results"])
    assert len({row["round_trip"]["documents"] for row in text["results"]}) == 1
    code, _, err = call(main, *words, "--max_tokens", 3)
    tokens = max(row["tokens"] for row in found["results"]) // 40  # all documents have the same length in characters
    assert code == 2 and f"the first document has {tokens} tokens" in err and f"Use --max_tokens {tokens}," in err


def test_a_tokenizer_that_loses_text_is_not_compared(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text("the  quick brown fox\n" + SENTENCE.format(3))
    words = ["--ckpt_path", others["wordpiece"], run.folder, "--files", "a.txt"]
    code, out, err = call(main, *words, "--json_output", "all.json")
    best, lossy = json.loads((inside / "all.json").read_text())["results"]
    assert code == 0 and best["checkpoint"] == str(run.folder) and not lossy["comparable"]
    assert "difference" not in lossy and "not comparable: loses text" in out.splitlines()[2]
    assert "its tokenizer loses text: 1 of 2 texts come back changed, such as 'the  quick" in err.replace("\n", " ")
    code, out, _ = call(main, "--ckpt_path", others["wordpiece"], "--files", "a.txt")
    assert code == 0 and "NOT comparable" in out


def test_other_documents_are_not_compared(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["gpt2kit"]["reader"]["document"] = "file"
    torch.save(raw, inside / "files.ckpt")
    words = ["--ckpt_path", others["char"], "files.ckpt"]
    code, _, err = call(main, *words)
    assert code == 3 and "they do not see the same documents in this text, 40 and 1" in err and err.count("\n") == 1
    code, out, err = call(main, *words, "--reader.document", "line", "--json_output", "-")
    assert code == 0 and json.loads(out)["text"]["documents"] == 40
    raw["gpt2kit"]["reader"]["document"] = "auto"
    raw["gpt2kit"]["test_files"] = ["elsewhere.txt"]
    torch.save(raw, inside / "other.ckpt")
    code, _, err = call(main, "--ckpt_path", run.folder, "other.ckpt")
    assert code == 0 and "note: other.ckpt: tested on the text of" in err


@pytest.mark.parametrize("facts", [{"append_eos": "no"}, {"reader": 3}, {"reader": {"reader": "x.Y"}}])
def test_facts_out_of_a_file_are_not_believed(
    facts: dict[str, Any], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["gpt2kit"].update(facts)
    torch.save(raw, inside / "odd.ckpt")
    code, _, err = call(main, "--ckpt_path", "odd.ckpt")
    assert code in (3, 4) and err.count("\n") == 1


def test_two_ranks_give_the_same_figures(run: Run, others: dict[str, Path], call: Callable[..., Outcome]) -> None:
    words = ["--ckpt_path", str(run.folder), str(others["char"]), "--batch_size", "3", "--json_output", "-"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, *launch, "--local-addr=127.0.0.1", str(ROOT / "test.py"), *words],
        cwd=run.work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert told.returncode == 0, told.stderr
    two = json.loads(told.stdout)
    _, out, _ = call(main, *words)
    one = json.loads(out)
    assert two["text"].pop("ranks") == 2 and one["text"].pop("ranks") == 1
    assert two["text"] == one["text"]
    for mine, theirs in zip(two["results"], one["results"], strict=True):
        assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-12)
        assert mine["difference"]["interval_95"] == pytest.approx(theirs["difference"]["interval_95"], rel=1e-9)


def test_a_mistake_on_two_ranks_is_told_once(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    told = subprocess.run(
        [sys.executable, *launch, "--local-addr=127.0.0.1", str(ROOT / "test.py"), "--ckpt_path", "none"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert told.returncode and told.stderr.count("error: none: no such checkpoint") == 1 and not told.stdout


def test_a_run_whose_documents_are_apart(
    options: list[str], corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    """From training's own figure to test.py's, with documents that do not see one another, and without their ends."""
    from gpt2kit.cli import train

    for words in (["--data.mask_documents=true"], ["--data.append_eos=false"]):
        root = inside / words[0][7:12]
        train.main([*options, *words, "--trainer.max_steps=3", f"--trainer.default_root_dir={root}"])
        run = root / "lightning_logs" / "version_0"
        code, out, _ = call(main, "--ckpt_path", run, "--files", corpus / "valid.txt", "--json_output", "-")
        row = json.loads(out)["results"][0]
        with open(run / "metrics.csv", encoding="utf-8") as file:
            logged = [line for line in csv.DictReader(file) if line["val_bpb"]][-1]
        assert code == 0 and row["bits_per_byte"] == pytest.approx(float(logged["val_bpb"]), rel=1e-6)
        assert row["loss"] == pytest.approx(float(logged["val_loss"]), rel=1e-6)
        assert row["documents_apart"] == (words[0] == "--data.mask_documents=true")
        assert row["predicts_ends"] == (words[0] != "--data.append_eos=false")
    both = ["--ckpt_path", *(inside / name / "lightning_logs" / "version_0" for name in ("mask_", "appen"))]
    code, _, err = call(main, *both)
    assert code == 0 and "does not predict where documents end, as the others do" in err


def test_precisions_agree_as_far_as_they_can(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    losses = {}
    for precision in ("64-true", "32-true", "bf16-mixed", "bf16-true"):
        code, out, err = call(main, "--ckpt_path", run.folder, "--precision", precision, "--json_output", "-")
        assert code == 0, err
        losses[precision] = json.loads(out)["results"][0]["loss"]
    assert losses["32-true"] == pytest.approx(losses["64-true"], rel=1e-6)
    assert losses["bf16-mixed"] == pytest.approx(losses["64-true"], rel=0.02)
    assert len(set(losses.values())) == 4, "each is computed in its own type"
    assert losses["bf16-true"] == pytest.approx(losses["64-true"], rel=0.05)


def test_a_model_that_gives_nan_is_told(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["state_dict"] = {name: torch.full_like(value, 3e38) for name, value in raw["state_dict"].items()}
    torch.save(raw, inside / "huge.ckpt")
    code, out, err = call(main, "--ckpt_path", "huge.ckpt")
    assert code == 6 and "document 0: its loss is NaN or Inf" in err and not out


def test_the_page(run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "a.txt").write_text("<script>alert('x')</script> & the fox\n江南好 🫨 the fox\nx\n" + SENTENCE * 30)
    code, _, err = call(main, "--ckpt_path", run.folder, others["char"], "--files", "a.txt", "--html", "page.html")
    page = (inside / "page.html").read_text(encoding="utf-8")
    assert code == 0, err
    assert "<script" not in page and "&lt;" in page and "http" not in page.replace("http-equiv", "")
    assert "江" in page and "🫨" in page and "among the hardest" in page and page.count("<h2>") == 2
    assert page.count("\N{REPLACEMENT CHARACTER}") == 0


def test_one_owner_of_figures() -> None:
    """Training's val_bpb and test.py's bits per byte are one line of one module."""
    owners = [path.stem for path in (ROOT / "src" / "gpt2kit").rglob("*.py") if "def bits_per_byte" in path.read_text()]
    assert owners == ["metrics"]
    assert "Score" in (ROOT / "src" / "gpt2kit" / "training" / "module.py").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seed", "-1"], 2, "--seed -1: must be from 0"),
        (["--json_output", "."], 2, "--json_output .: is a folder"),
        (["--html", "a.txt/x.html"], 2, "a.txt is not a folder"),
        (["--json_output", "x", "--html", "x"], 2, "one file for both"),
        (["--memorization", "--train_files", "nofile.txt"], 3, "nofile.txt: no such file or folder"),
    ],
)
def test_what_cannot_end_well_is_said_before_the_test(
    words: list[str], code: int, said: str, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text("text\n")
    found = call(lambda args: parser.run(test.test, args), "--ckpt_path", run.folder, *words)
    assert found[0] == code and said in found[2] and found[1] == "" and len(found[2].splitlines()) == 1


def test_one_whole_document_is_counted_as_such(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "a.txt").write_text("the quick brown fox\nthe lazy dog\n")
    words = ["--ckpt_path", run.folder, "--files", "a.txt", "--max_tokens", "7", "--json_output", "-"]
    code, out, _ = call(lambda args: parser.run(test.test, args), *words)
    text = json.loads(out)["text"]
    assert code == 0 and (text["documents"], text["bytes"], text["words"]) == (1, 19, 4)


def test_each_checkpoint_is_hashed_once(
    run: Run, call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda path: hashed.append(path) or digest(path))  # type: ignore[func-returns-value]
    names = checkpoint.checkpoints(run.folder)[:2]
    code, _, err = call(main, "--ckpt_path", *names, "--max_tokens", 100)
    assert code == 0, err
    assert sorted(path for path in hashed if path.suffix == ".ckpt") == sorted(names)
