from __future__ import annotations

import pytest
import torch
import yaml
from helpers import ROOT

from gpt2kit.training.module import GPT2Module


def test_tables_match_the_output_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import scaling

    for size in scaling.SIZES:
        shape = yaml.safe_load((ROOT / f"configs/model/{size.name}.yaml").read_text())
        assert (shape["n_layer"], shape["n_embd"]) == (size.n_layer, size.n_embd)
    with torch.device("meta"):
        small = GPT2Module(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024)
    assert sum(p.numel() for p in small.parameters()) == scaling.SIZES[0].parameters
    text = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    for table in scaling.tables().split("\n\n"):
        assert table in text, "python bench/scaling.py prints other tables than docs/distributed.md has"
