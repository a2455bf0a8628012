from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, Run

from gpt2kit import checkpoint, command, generate, tokenizer
from gpt2kit.checkpoint import Opened


@pytest.fixture(scope="module")
def opened(run: Run) -> Opened:
    return checkpoint.open(run.folder)


def written(opened: Opened, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 1) -> list[int]:
    ids = generate.encode_prompt(opened.tokenizer, prompt)
    generator = torch.Generator().manual_seed(seed)
    return list(generate.sample(opened.module, ids, -1, tokens, temperature, 0, 1.0, generator))


def test_the_cache_changes_nothing(opened: Opened) -> None:
    """Greedy text equals that of a model that reads everything again for each token."""
    ids = generate.encode_prompt(opened.tokenizer, "the")
    expected = list(ids)
    while len(expected) < 16:
        with torch.inference_mode():
            expected.append(int(opened.module.model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert written(opened, "the", 16 - len(ids)) == expected[len(ids) :]


def test_beyond_the_context_it_goes_on(opened: Opened) -> None:
    assert len(written(opened, "the quick brown fox jumps over the lazy dog and number", 60)) == 60


def test_seeds_and_temperature(opened: Opened) -> None:
    assert written(opened, "the", 30, 1.0, seed=1) == written(opened, "the", 30, 1.0, seed=1)
    assert written(opened, "the", 30, 1.0, seed=1) != written(opened, "the", 30, 1.0, seed=2)


def test_it_stops_where_the_document_ends(opened: Opened) -> None:
    ids = generate.encode_prompt(opened.tokenizer, "the")
    first = written(opened, "the", 1)[0]
    assert list(generate.sample(opened.module, ids, first, 9, 0.0, 0, 1.0, torch.Generator())) == []


def test_choices_keep_to_their_limits() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(1)

    def drawn(**limits: float) -> set[int]:
        words = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **limits}
        return {int(generate.choose(logits, generator=generator, **words)) for _ in range(300)}  # type: ignore[arg-type]

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.6) == {1, 2}
    assert drawn(top_p=0.4) == {1}
    assert drawn(temperature=0) == {1}
    frequent = [int(generate.choose(logits, 1.0, 0, 1.0, generator)) for _ in range(4000)]
    assert frequent.count(1) / 4000 == pytest.approx(0.5, abs=0.03)


def test_only_whole_characters_are_given_out(opened: Opened) -> None:
    text = "é日本🙂 abc"
    ids = opened.tokenizer.encode(text).ids
    pieces = list(generate.whole_characters(opened.tokenizer, iter(ids)))
    assert "".join(pieces) == text and "🙂" in pieces
    assert "".join(generate.whole_characters(opened.tokenizer, iter(ids[:-5]))).endswith("\N{REPLACEMENT CHARACTER}")


def test_the_command(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    def main(args: list[str]) -> None:
        command.run(generate.write, args)

    words = ("--ckpt_path", run.folder, "--prompt", "the quick", "--prompt", "a", "--max_new_tokens", 5)
    code, out, err = call(main, *words)
    assert code == 0 and out.startswith("the quick") and "\na" in out and not err
    code, _, _ = call(main, *words, "--output", "out.txt")
    assert code == 0 and (inside / "out.txt").read_text() == out
    assert call(main, "--ckpt_path", run.folder, "--max_new_tokens", 3)[0] == 0
    assert tokenizer.EOS not in out
