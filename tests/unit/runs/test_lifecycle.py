"""What happens to a run's folder when the run is resumed."""

from __future__ import annotations

from pathlib import Path

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
