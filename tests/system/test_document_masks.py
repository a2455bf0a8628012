from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers import Outcome

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import train


def test_masked_documents_are_part_of_a_run_and_its_checkpoints(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    arguments = [*options, "--data.mask_documents=true", f"--trainer.default_root_dir={inside}"]
    assert call(train.main, *arguments, "--trainer.max_steps=2")[0] == 0
    opened = checkpoint.open(inside / "lightning_logs/version_0")
    assert opened.model.document_start == opened.metadata["document_start"] == 0
    arguments += ["--trainer.max_steps=4", "--data.mask_documents=false"]
    code, _, err = call(train.main, "--ckpt_path=lightning_logs/version_0", *arguments)
    assert code == 4 and "mask_documents was True, now False" in err
    code, _, err = call(train.main, *options, "--data.mask_documents=true", "--data.append_eos=false")
    assert code == 2 and "data.mask_documents: needs data.append_eos" in err
