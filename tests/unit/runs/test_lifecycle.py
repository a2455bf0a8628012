"""What happens to a run's folder when the run is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.errors import CheckpointError
from gpt2kit.runs import lifecycle


def test_later_checkpoints_are_renamed_even_repeatedly(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for content in ("first", "second"):
        path = folder / "epoch=0-step=7.ckpt"
        path.write_text(content)
        lifecycle.set_aside(tmp_path, 5)
        assert not path.exists() and (folder / "epoch=0-step=7.ckpt.aside").read_text() == content


def test_the_log_is_cut_after_the_resumed_step(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("lr,step,train_loss\n1,1,5\n1,2,4\n1,,4\n1,3,3\n1,4")  # the last row was cut by a kill
    lifecycle.truncate_metrics(tmp_path, 2)
    assert log.read_text() == "lr,step,train_loss\n1,1,5\n1,2,4\n"


@pytest.mark.parametrize(
    "text",
    [
        "data: &a {x: *a}\n",
        "data:\n  a0: &a0 {x: 1}\n" + "".join(f"  a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 60)),
        "data: !!bool x\n",
    ],
    ids=["itself", "aliases", "tag"],
)
def test_a_hostile_config_of_another_run_is_no_match(text: str, tmp_path: Path) -> None:
    (tmp_path / "run_1").mkdir()
    (tmp_path / "run_1/config.yaml").write_text(f"{text}save_every: 1\n")
    with pytest.raises(CheckpointError, match="it has no valid config"):
        lifecycle.find_resumable("last", tmp_path, {"data": {}, "model": {}})


def test_a_lock_that_is_a_link_is_renamed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "nowhere")
    lifecycle.rename_damaged_files(tmp_path)
    assert (tmp_path / ".lock.damaged").is_symlink() and not (tmp_path / "nowhere").exists()
    lifecycle.claim(tmp_path).release()
