from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, Run

from gpt2kit import checkpoint, command, evaluate, text
from gpt2kit.checkpoint import Opened
from gpt2kit.shards import Corpus
from gpt2kit.store import TokenStore


@pytest.fixture(scope="module")
def opened(run: Run) -> Opened:
    return checkpoint.open(run.folder)


@pytest.fixture(scope="module")
def store(opened: Opened, corpus: Path) -> TokenStore:
    return evaluate.data.build_store(
        Corpus([corpus / "test.txt"], opened.tokenizer, text.Reader()), corpus / "cache", ""
    )


def test_it_is_the_sum_over_all_windows_in_double_precision(opened: Opened, store: TokenStore) -> None:
    import copy

    model = copy.deepcopy(opened.module.model).double().eval()
    tokens = torch.from_numpy(store[0 : len(store)].astype("int64"))
    nll, count = 0.0, 0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        with torch.inference_mode():
            found = model(window[None, :-1]).logits[0].log_softmax(-1)
        nll -= found.gather(-1, window[1:, None]).sum().item()
        count += len(window) - 1
    score = evaluate.evaluate(opened.module, store, batch_size=4)
    assert score.tokens == count == len(store) - 1
    assert score.loss == pytest.approx(nll / count, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_nothing(opened: Opened, store: TokenStore, batch_size: int) -> None:
    score = evaluate.evaluate(opened.module, store, batch_size)
    assert score.loss == pytest.approx(evaluate.evaluate(opened.module, store, 4).loss, rel=1e-6)


def test_a_model_that_knows_nothing_pays_the_logarithm(opened: Opened, store: TokenStore) -> None:
    import copy

    gpt2 = copy.deepcopy(opened.module)
    torch.nn.init.zeros_(gpt2.model.lm_head.weight)
    score = evaluate.evaluate(gpt2, store, 8)
    assert score.loss == pytest.approx(math.log(320), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(math.log2(320) * score.tokens / (store.bytes + 40), rel=1e-6)


def test_no_address_in_a_checkpoint_is_visited(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    raw = checkpoint.read(checkpoint.find(run.folder))
    raw["gpt2kit"]["test_files"] = ["https://example.invalid/text.txt"]
    torch.save(raw, inside / "named.ckpt")
    code, _, err = call(lambda args: command.run(evaluate.test, args), "--ckpt_path", "named.ckpt")
    assert code == 2 and "If you trust that address" in err


def test_the_command_needs_the_checkpoint_and_nothing_else(
    run: Run, call: Callable[..., Outcome], inside: Path, corpus: Path
) -> None:
    def main(args: list[str]) -> None:
        command.run(evaluate.test, args)

    code, out, err = call(main, "--ckpt_path", run.folder, "--json")
    figures = json.loads(out)
    assert code == 0 and not err
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["documents"] == 40 and figures["files"] == [str(corpus / "test.txt")]
    code, out, _ = call(main, "--ckpt_path", run.folder, "--files", corpus / "valid.txt", corpus / "test.txt")
    assert code == 0 and "bits per byte" in out and "documents      80" in out
