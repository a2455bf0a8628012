"""The text that a checkpoint names: anyone may have made the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, Run

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import parser, test


def score(call: Callable[..., Outcome], path: Path | str) -> Outcome:
    return call(lambda args: parser.run(test.test, args), "--ckpt_path", path, "--cache_dir", "cache")


@pytest.mark.parametrize(
    "names",
    [
        ["/etc/hostname"],
        ["../other.txt"],
        ["link.txt"],
        ["links/*"],
        ["/**/nope"],
        ["/proc/kmsg"],
        ["a.txt", "/etc/hostname"],
        ["file:///etc/hostname"],
        ["https://example.invalid/text.txt"],
    ],
)
def test_a_checkpoint_from_elsewhere_names_no_text_outside_of_the_current_folder(
    names: list[str], run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    shutil.copy(corpus / "test.txt", "a.txt")
    (inside / "link.txt").symlink_to("/etc/hostname")
    (inside / "links").mkdir()
    (inside / "links/a.txt").symlink_to("/etc/hostname")
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"]["test_files"] = names
    torch.save(raw, inside / "x.ckpt")
    code, out, err = score(call, "x.ckpt")
    assert code == 2 and "give the text as --files" in err and err.count("\n") == 1 and not out


def test_text_in_the_current_folder_is_followed(
    run: Run, corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    shutil.copy(corpus / "test.txt", "a.txt")
    raw = checkpoint.read(paths.find(run.folder))
    raw["gpt2kit"]["test_files"] = ["a.txt"]
    torch.save(raw, inside / "x.ckpt")
    assert score(call, "x.ckpt")[0] == 0


def test_an_own_run_names_text_anywhere(run: Run, call: Callable[..., Outcome], inside: Path) -> None:
    shutil.copytree(run.folder, "lightning_logs/mine")
    assert score(call, "mine")[0] == 0
    Path("lightning_logs").rename("downloads")
    assert score(call, "downloads/mine")[0] == 2
