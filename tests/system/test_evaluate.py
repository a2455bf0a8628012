"""test.py: its figures compared with a simple reference, and its options, output and errors."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SENTENCE, Outcome, Run, logged_rows, train_run, train_tokenizer
from numpy.typing import NDArray
from proofs.kills import finish, start

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.cli import parser, test
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation import blocks, scoring
from gpt2kit.evaluation.scoring import Scorer, Windows
from gpt2kit.text.reader import Reader

pytestmark = pytest.mark.usefixtures("own_runs")

CONTEXT = 16
LOREM = "Lorem ipsum dolor sit amet. " * 4
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
    return open_or_build(Corpus([corpus / "test.txt"], opened.tokenizer, Reader("line")), corpus / "cache")


def reference(
    opened: LoadedCheckpoint, store: TokenStore, stride: int, start: int | None = None
) -> NDArray[np.float64]:
    """Return the nats of each token after the first, computed one window at a time in double precision.

    If `start` is given, it begins a document, and tokens see only their own document.
    """
    model = copy.deepcopy(opened.model).double().eval()
    tokens = torch.from_numpy(store[0 : len(store)].astype("int64"))
    nats = np.full(len(tokens) - 1, np.nan)
    for first in range(0, max(len(tokens) - 1 - CONTEXT, 0) + stride, stride):
        window = tokens[first : first + CONTEXT + 1]
        if start is None:
            parts = [window]
        else:
            cuts = [0, *(i for i in range(1, len(window) - 1) if window[i] == start), len(window) - 1]
            parts = [window[a : b + 1] for a, b in itertools.pairwise(cuts)]
        values = []
        for part in parts:
            with torch.inference_mode():
                log_probabilities = model(part[None, :-1]).logits[0, :, :320].log_softmax(-1)
            values += (-log_probabilities.gather(-1, part[1:, None])[:, 0]).tolist()
        new = nats[first : first + len(values)]
        new[np.isnan(new)] = np.array(values)[np.isnan(new)]
    return nats


def sum_by_document(store: TokenStore, nats: NDArray[np.float64]) -> list[float]:
    """Return the same sums as `score`, computed in a loop over documents."""
    sums, start = [], 0
    for length in store.lengths()[:, 0].tolist():
        end = start + length + (1 if store.ends else 0)
        sums.append(float(nats[start:end].sum()))
        start = end
    assert start == len(nats)
    return sums


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("stride", [16, 5, 1])
@pytest.mark.parametrize("name", TEXTS)
def test_scores_agree_with_the_reference(
    name: str, stride: int, append_eos: bool, opened: LoadedCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[name])
    corpus = Corpus([tmp_path / "a.txt"], opened.tokenizer, Reader("line"), append_eos=append_eos)
    store = open_or_build(corpus, tmp_path)
    windows = Windows(len(store), CONTEXT, stride)
    expected = sum_by_document(store, reference(opened, store, stride))
    for batch_size in (1, 3, 1000):
        nll = Scorer(opened.model, store, windows).score(batch_size)
        np.testing.assert_allclose(nll, expected, rtol=1e-6)


def test_scores_in_double_precision_agree_with_the_reference(opened: LoadedCheckpoint, store: TokenStore) -> None:
    in_double = scoring.prepare(copy.deepcopy(opened.model), "cpu", "64-true")
    nll = Scorer(in_double, store, Windows(len(store), CONTEXT, CONTEXT), "64-true").score().sum()
    assert nll == pytest.approx(reference(opened, store, CONTEXT).sum(), rel=1e-13)


@pytest.mark.parametrize("stride", [16, 4])
def test_masked_documents_are_scored_separately(stride: int, opened: LoadedCheckpoint, store: TokenStore) -> None:
    gpt2 = copy.deepcopy(opened.model)
    gpt2.document_start = store.index.eos_id
    expected = sum_by_document(store, reference(opened, store, stride, store.index.eos_id))
    nll = Scorer(gpt2, store, Windows(len(store), CONTEXT, stride)).score()
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_nats_per_token_add_up_to_the_score_of_a_document(opened: LoadedCheckpoint, store: TokenStore) -> None:
    windows = Windows(len(store), CONTEXT, 5)
    scorer = Scorer(opened.model, store, windows)
    nll = scorer.score()
    for number in (0, 7, len(nll) - 1):
        span = scorer.boundaries[number : number + 2].tolist()
        nats = scorer.token_nats(*span)
        assert len(nats) == span[1] - span[0] and nats.sum() == pytest.approx(nll[number], rel=1e-6)


def test_scores_do_not_depend_on_the_size_of_chunks_of_logits(
    opened: LoadedCheckpoint, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2kit.model import gpt2

    scorer = Scorer(opened.model, store, Windows(len(store), CONTEXT, CONTEXT))
    nll = scorer.score()
    monkeypatch.setattr(gpt2, "CHUNK", 320 * 7)
    np.testing.assert_allclose(scorer.score(), nll)


def write_uniform_model(run: Run, path: Path) -> Path:
    """Write a checkpoint of a model that predicts all tokens with equal probability."""
    raw = checkpoint.read(paths.find(run.folder))
    raw["state_dict"] = {name: torch.zeros_like(value) for name, value in raw["state_dict"].items()}
    torch.save(raw, path)
    return path


def main(args: list[str]) -> None:
    parser.run(test.test, args)


def test_figures_of_a_uniform_model_are_logarithms_of_the_vocabulary_size(
    run: Run, corpus: Path, store: TokenStore, call: Callable[..., Outcome], inside: Path
) -> None:
    code, out, _ = call(main, "--ckpt_path", write_uniform_model(run, inside / "u.ckpt"), "--json_output", "-")
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


def test_a_url_in_a_checkpoint_is_not_opened(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"]["test_files"] = ["https://example.invalid/text.txt"]
    torch.save(raw, inside / "named.ckpt")
    code, _, err = call(main, "--ckpt_path", "named.ckpt")
    assert code == 2 and "If you trust it, give the text as --files" in err


def test_the_command_needs_only_a_checkpoint(
    run: Run, call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    code, out, err = call(main, "--ckpt_path", run.folder, "--json_output", "figures.json")
    content = json.loads((inside / "figures.json").read_text())
    figures = content["results"][0]
    assert code == 0 and not err and f"{figures['bits_per_byte']:.4f}" in out
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert content["text"]["documents"] == 40 and content["text"]["files"] == [str(corpus / "test.txt")]
    assert content["settings"]["precision"] == "32-true" and content["versions"]["torch"] == torch.__version__
    low, high = figures["interval_95"]["bits_per_byte"]
    assert low < figures["bits_per_byte"] < high and f"95 % interval {low:.4f} to {high:.4f}" in out
    assert "context              1-16" in out
    code, out, err = call(main, "--ckpt_path", run.folder, "--config", "config.yaml", "--stride", "8")
    assert code == 0 and "--config is not needed" in err and "context              9-16" in out
    code, out, _ = call(main, "--ckpt_path", run.folder, "--files", corpus / "valid.txt", corpus / "test.txt")
    assert code == 0 and "bits per byte" in out and "documents            80" in out


def test_the_hash_depends_only_on_the_documents(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    hashes = []
    for name, text in {"a.txt": "one\ntwo\n", "b.txt": "one\r\n\r\ntwo", "c.txt": "onetwo\n"}.items():
        (inside / name).write_bytes(text.encode())
        _, out, _ = call(main, "--ckpt_path", run.folder, "--files", name, "--json_output", "-")
        hashes.append(json.loads(out)["text"]["hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_max_tokens_takes_whole_documents(run: Run, call: Callable[..., Outcome], inside: Path, corpus: Path) -> None:
    def evaluate(*arguments: object) -> tuple[dict[str, Any], str]:
        code, out, err = call(main, "--ckpt_path", run.folder, "--json_output", "-", *arguments)
        assert code == 0, err
        return json.loads(out), err

    full, err = evaluate()
    assert not full["text"]["partial"] and "partial" not in err
    part, err = evaluate("--max_tokens", 200)
    assert "note: partial: the first " in err and 100 < part["results"][0]["tokens"] <= 200
    count = part["text"]["documents"]
    (inside / "few.txt").write_text("\n".join((corpus / "test.txt").read_text().splitlines()[:count]))
    few, _ = evaluate("--files", "few.txt")
    assert few["results"][0]["loss"] == pytest.approx(part["results"][0]["loss"], rel=1e-6)
    assert few["results"][0]["bits_per_byte"] == pytest.approx(part["results"][0]["bits_per_byte"], rel=1e-6)
    assert few["text"]["words"] == part["text"]["words"]
    assert evaluate("--max_tokens", 10**9)[0]["results"] == full["results"]
    (inside / "long.txt").write_text(LOREM)
    full, err = evaluate("--files", "long.txt")
    assert "1 document: no intervals, which need 20 documents" in err and not full["results"][0]["interval_95"]
    assert "over documents" not in call(main, "--ckpt_path", run.folder, "--files", "long.txt")[1]
    tokens = full["results"][0]["tokens"]
    code, _, err = call(main, "--ckpt_path", run.folder, "--files", "long.txt", "--max_tokens", tokens - 1)
    assert code == 2 and f"the first document has {tokens} tokens" in err and f"Use --max_tokens {tokens}," in err
    assert evaluate("--files", "long.txt", "--max_tokens", tokens)[0]["results"] == full["results"]


@pytest.fixture(scope="module")
def others(run: Run, options: list[str], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the same text with other tokenizers; one of them loses text."""
    work = tmp_path_factory.mktemp("others")
    runs = {}
    for kind, size in (("char", 300), ("wordpiece", 200)):
        train_tokenizer([str(corpus / "train.txt")], work / kind, kind=kind, vocab_size=size)
        runs[kind] = train_run(
            work / f"run-{kind}", options, f"--data.tokenizer={work / kind}", "--trainer.max_steps=20"
        )
    return runs


def test_models_with_different_tokenizers_are_compared(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    arguments = ["--ckpt_path", others["char"], run.folder]
    code, out, err = call(main, *arguments, "--json_output", "all.json")
    results = json.loads((inside / "all.json").read_text())["results"]
    best, other = results
    assert code == 0, err
    assert best["bits_per_byte"] < other["bits_per_byte"] and best["difference"]["bits_per_byte"] == 0
    assert other["difference"]["to"] == best["checkpoint"] and best["tokens"] != other["tokens"]
    low, high = other["difference"]["interval_95"]
    assert low <= other["difference"]["bits_per_byte"] <= high and low > 0
    lines = out.splitlines()
    assert lines[1].endswith(best["checkpoint"]) and "best" in lines[1] and f"{low:+.4f} to {high:+.4f}" in lines[2]
    for name in (run.folder, others["char"]):  # a comparison does not change the figures of a checkpoint
        _, out, _ = call(main, "--ckpt_path", name, "--json_output", "-")
        (row,) = (row for row in results if row["checkpoint"] == str(name))
        assert json.loads(out)["results"][0]["nll"] == row["nll"]
    _, out, _ = call(main, *arguments, "--max_tokens", 300, "--json_output", "-")
    partial = json.loads(out)
    assert partial["text"]["partial"] and all(row["tokens"] <= 300 for row in partial["results"])
    assert len({row["round_trip"]["documents"] for row in partial["results"]}) == 1
    code, _, err = call(main, *arguments, "--max_tokens", 3)
    tokens = max(row["tokens"] for row in results) // 40  # all documents have the same length in characters
    assert code == 2 and f"the first document has {tokens} tokens" in err and f"Use --max_tokens {tokens}," in err


def test_intervals_of_one_long_document_come_from_blocks(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    (inside / "novel.txt").write_text("".join(SENTENCE.format(n).strip() + ", " for n in range(40)), encoding="utf-8")
    arguments = ["--ckpt_path", run.folder, others["char"], "--files", "novel.txt", "--json_output", "all.json"]
    code, out, err = call(main, *arguments)
    content = json.loads((inside / "all.json").read_text())
    assert code == 0 and "intervals of 20 blocks" in out and "1 document: intervals and deviations are of 20" in err
    assert (content["text"]["interval_unit"], content["text"]["interval_units"]) == ("blocks", 20)
    for row in content["results"]:
        low, high = row["interval_95"]["bits_per_byte"]
        assert low < row["bits_per_byte"] < high and low < row["over_blocks"]["bits_per_byte"]["mean"] < high
        assert row["over_blocks"]["loss"]["mean"] == pytest.approx(row["loss"]), "blocks have all tokens of the text"
    difference = content["results"][1]["difference"]
    low, high = difference["interval_95"]
    assert 0 < low < difference["bits_per_byte"] < high
    assert "over blocks" in call(main, *arguments[:2], *arguments[3:5])[1]


def test_a_tokenizer_that_loses_text_is_not_compared(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text("the  quick brown fox\n" + SENTENCE.format(3))
    arguments = ["--ckpt_path", others["wordpiece"], run.folder, "--files", "a.txt"]
    code, out, err = call(main, *arguments, "--json_output", "all.json")
    best, lossy = json.loads((inside / "all.json").read_text())["results"]
    assert code == 0 and best["checkpoint"] == str(run.folder) and not lossy["comparable"]
    assert "difference" not in lossy and "not comparable: loses text" in out.splitlines()[2]
    assert "its tokenizer loses text: 1 of 2 documents change when encoded and decoded, such as 'the  quick" in err
    code, out, _ = call(main, "--ckpt_path", others["wordpiece"], "--files", "a.txt")
    assert code == 0 and "NOT comparable" in out


def test_models_that_read_different_documents_are_not_compared(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"]["reader"]["document"] = "file"
    torch.save(raw, inside / "files.ckpt")
    arguments = ["--ckpt_path", others["char"], "files.ckpt"]
    code, _, err = call(main, *arguments)
    assert code == 3 and "split this text into different documents (40 and 1)" in err and err.count("\n") == 1
    code, out, err = call(main, *arguments, "--reader.document", "line", "--json_output", "-")
    assert code == 0 and json.loads(out)["text"]["documents"] == 40
    raw["gpt2kit"]["reader"]["document"] = "auto"
    raw["gpt2kit"]["test_files"] = ["elsewhere.txt"]
    torch.save(raw, inside / "other.ckpt")
    code, _, err = call(main, "--ckpt_path", run.folder, "other.ckpt")
    assert code == 0 and "note: other.ckpt: tested on the test text of" in err


@pytest.mark.parametrize("metadata", [{"append_eos": "no"}, {"reader": 3}, {"reader": {"reader": "x.Y"}}])
def test_invalid_metadata_of_a_checkpoint_is_refused(
    metadata: dict[str, Any], run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"].update(metadata)
    torch.save(raw, inside / "odd.ckpt")
    code, _, err = call(main, "--ckpt_path", "odd.ckpt")
    assert code in (3, 4) and err.count("\n") == 1


def test_two_ranks_give_the_same_figures(
    run: Run, others: dict[str, Path], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    arguments = ["--ckpt_path", str(run.folder), str(others["char"]), "--batch_size", "3", "--json_output"]
    codes, output = run_on_two_ranks(run.work, tmp_path / "log.txt", *arguments, str(tmp_path / "two.json"))
    assert codes == [0, 0], output
    two = json.loads((tmp_path / "two.json").read_text())
    _, out, _ = call(main, *arguments, "-")
    one = json.loads(out)
    assert two["text"].pop("ranks") == 2 and one["text"].pop("ranks") == 1
    assert two["text"] == one["text"]
    for row, expected in zip(two["results"], one["results"], strict=True):
        assert row["nll"] == pytest.approx(expected["nll"], rel=1e-12)
        assert row["difference"]["interval_95"] == pytest.approx(expected["difference"]["interval_95"], rel=1e-9)


def test_an_error_on_two_ranks_is_printed_once(tmp_path: Path) -> None:
    codes, output = run_on_two_ranks(tmp_path, tmp_path / "log.txt", "--ckpt_path", "none")
    assert all(codes) and output.count("error: none: no such checkpoint") == 1 and output.count("\n") == 1


def run_on_two_ranks(folder: Path, log: Path, *arguments: str) -> tuple[list[int], str]:
    """Run test.py in two processes with the environment that torchrun gives them; return exit codes and output."""
    environments = {rank: {"RANK": str(rank), "CWD": str(folder)} for rank in range(2)}
    codes = finish(start(list(arguments), {}, 2, log, environments, main))
    return codes, log.read_text()


def test_figures_agree_with_those_of_validation(
    options: list[str], corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    masked = train_run(inside / "masked", options, "--data.mask_documents=true", "--trainer.max_steps=3")
    without_ends = train_run(inside / "without_ends", options, "--data.append_eos=false", "--trainer.max_steps=3")
    for run in (masked, without_ends):
        code, out, _ = call(main, "--ckpt_path", run, "--files", corpus / "valid.txt", "--json_output", "-")
        row = json.loads(out)["results"][0]
        logged = [line for line in logged_rows(run) if "val_bpb" in line][-1]
        assert code == 0 and row["bits_per_byte"] == pytest.approx(logged["val_bpb"], rel=1e-6)
        assert row["loss"] == pytest.approx(logged["val_loss"], rel=1e-6)
        assert row["documents_apart"] == (run == masked)
        assert row["predicts_ends"] == (run == masked)
    code, _, err = call(main, "--ckpt_path", masked, without_ends)
    assert code == 0 and "does not predict the ends of documents, unlike others" in err


def test_precisions_agree_within_their_rounding(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    losses = {}
    for precision in ("64-true", "32-true", "bf16-mixed", "bf16-true"):
        code, out, err = call(main, "--ckpt_path", run.folder, "--precision", precision, "--json_output", "-")
        assert code == 0, err
        losses[precision] = json.loads(out)["results"][0]["loss"]
    assert losses["32-true"] == pytest.approx(losses["64-true"], rel=1e-6)
    assert losses["bf16-mixed"] == pytest.approx(losses["64-true"], rel=0.02)
    assert len(set(losses.values())) == 4, "each is computed in another data type"
    assert losses["bf16-true"] == pytest.approx(losses["64-true"], rel=0.05)


def test_a_loss_that_is_not_finite_is_an_error(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["state_dict"] = {name: torch.full_like(value, 3e38) for name, value in raw["state_dict"].items()}
    torch.save(raw, inside / "huge.ckpt")
    code, out, err = call(main, "--ckpt_path", "huge.ckpt")
    assert code == 6 and "document 0: its loss is NaN or Inf" in err and not out


def test_the_html_page_shows_passages_as_text(
    run: Run, others: dict[str, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text("<script>alert('x')</script> & the fox\n江南好 🫨 the fox\nx\n" + SENTENCE * 30)
    code, _, err = call(main, "--ckpt_path", run.folder, others["char"], "--files", "a.txt", "--html", "page.html")
    page = (inside / "page.html").read_text(encoding="utf-8")
    assert code == 0, err
    assert "<script" not in page and "&lt;" in page and "http" not in page.replace("http-equiv", "")
    assert "江" in page and "🫨" in page and "among the hardest" in page and page.count("<h2>") == 2
    assert page.count("\N{REPLACEMENT CHARACTER}") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stride", "17"], "--stride 17: more than the context of"),
        (["--stride", "0", "--batch_size", "0", "--max_tokens", "0"], "--batch_size 0: must be at least 1; --stride 0"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
        (["--memorization"], "Give it as --train_files"),
        (["--train_files", "a.txt"], "--train_files: has no effect without --memorization"),
        (["--memorization", "--train_files", "nofile.txt"], "nofile.txt: no such file or folder"),
        (["--precision", "16-mixed"], "very slow on a CPU"),
        (["--precision", "8"], "--precision"),
        (["--strid", "3"], "Did you mean --stride?"),
        (["--json_output", "."], "--json_output .: is a folder"),
        (["--html", "a.txt/x.html"], "a.txt is not a folder"),
        (["--json_output", "x", "--html", "x"], "must not be the same file"),
        (["--html", "x", "--surprisal", "x"], "--html x, --surprisal x: must not be the same file"),
        (["--ckpt_path", "b", "--surprisal", "x"], "--surprisal: takes one checkpoint. Test them one by one"),
    ],
)
def test_invalid_options_are_reported_before_the_test(
    arguments: list[str], message: str, run: Run, call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "a.txt").write_text("text\n")
    code, out, err = call(main, "--ckpt_path", run.folder, *arguments)
    assert code == (3 if "no such file" in message else 2)
    assert message in err and err.count("\n") == 1 and not out


def test_memorization_is_reported(run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path) -> None:
    arguments = ["--ckpt_path", run.folder, "--memorization", "--train_files", corpus / "train.txt"]
    code, out, err = call(main, *arguments, "--json_output", "a.json")
    assert code == 0 and "appears in the training text" in out, err
    memorization = json.loads((inside / "a.json").read_text())["results"][0]["copies"]
    assert memorization["same_text"] is True
    assert memorization["held_out"]["tokens"] <= memorization["generated"]["tokens"]
    longest = memorization["held_out"]["longest"][0]
    assert longest[1].strip() in (corpus / "train.txt").read_text()
    assert "the quick brown fox jumps" in longest[1] or "the lazy dog" in longest[1]
    call(main, *arguments, "--seed", 2, "--json_output", "b.json")
    call(main, *arguments, "--json_output", "c.json")
    assert (inside / "a.json").read_text() == (inside / "c.json").read_text().replace("c.json", "a.json")
    assert (inside / "a.json").read_text() != (inside / "b.json").read_text()


def test_a_different_training_text_is_reported(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    (inside / "other.txt").write_text("zzzz\n")
    arguments = ["--ckpt_path", run.folder, "--memorization", "--train_files", "other.txt", "--json_output", "-"]
    _, out, err = call(main, *arguments)
    memorization = json.loads(out)["results"][0]["copies"]
    assert memorization["same_text"] is False and memorization["generated"]["shares"]["8"] == 0
    assert "was not trained on exactly the text of --train_files" in err


def test_each_checkpoint_is_hashed_once(
    run: Run, call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda path: hashed.append(path) or digest(path))  # type: ignore[func-returns-value]
    names = paths.checkpoints(run.folder)[:2]
    code, _, err = call(main, "--ckpt_path", *names, "--max_tokens", 100)
    assert code == 0, err
    assert sorted(path for path in hashed if path.suffix == ".ckpt") == sorted(names)
