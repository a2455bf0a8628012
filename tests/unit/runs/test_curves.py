"""Reading metrics.csv and drawing its curves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, Outcome, write_metrics

from gpt2kit.cli import parser, plot
from gpt2kit.errors import UserError
from gpt2kit.runs import curves
from gpt2kit.runs.folder import read_run

pytest.importorskip("matplotlib", reason="optional: pip install matplotlib")


def main(args: list[str]) -> None:
    parser.run(plot.plot, args)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_drawn_in_each_format(tmp_path: Path, call: Callable[..., Outcome], ending: str) -> None:
    target = tmp_path / f"a.{ending}"
    code, out, _ = call(main, write_metrics(tmp_path / "run", 40), "--output", target)
    assert code == 0 and out.strip() == str(target)
    assert target.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_four_panels_show_the_logged_values(tmp_path: Path) -> None:
    run = read_run(write_metrics(tmp_path / "one", 400))
    axes = curves.draw_figure([run], "steps").axes
    assert [ax.get_title(loc="left") for ax in axes] == ["Loss", "Learning rate", "Gradient norm", "Throughput"]
    assert all(ax.get_xlabel() == "optimizer steps" and ax.get_ylabel() for ax in axes)
    _, train, valid = axes[0].get_lines()
    assert list(valid.get_xdata()) == list(range(10, 401, 10)) and train.get_xdata()[-1] == 400
    assert valid.get_ydata()[-1] == pytest.approx(2 + 3 * math.exp(-5) + 0.1)


def test_several_runs_have_labels_and_colours_of_their_own(tmp_path: Path) -> None:
    runs = [read_run(write_metrics(tmp_path / name / "version_0", 100)) for name in ("a", "b_$x$")]
    figure = curves.draw_figure(runs, "tokens")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(labels)) == 2 and labels[0].endswith("a/version_0") and r"b_\$x\$" in labels[1]
    lines = figure.axes[1].get_lines()
    assert len({line.get_color() for line in lines}) == 2
    assert lines[0].get_xdata()[-1] == 100 * 128


def test_bits_per_byte_replace_losses_of_different_tokenizers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_metrics(tmp_path / name, 50)
        (tmp_path / name / "start.json").write_text(json.dumps([{"text": {"tokenizer": name}}]))
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    assert curves.draw_figure(runs, "steps").axes[0].get_ylabel() == "bits per byte"
    assert curves.draw_figure(runs[:1], "steps").axes[0].get_ylabel() == "nats per token"


def test_steps_logged_again_after_a_resume_count_once(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", 20)
    with (folder / "metrics.csv").open("a") as file:
        for step in range(15, 31):
            file.write(f"1,0.5,{step / 3600},0.01,{step},1000,{step * 128},{100 + step},,\n")
        file.write("1,0.5,0.0")  # killed in the middle of a row
    losses = read_run(folder).series["train_loss"]
    assert [*losses] == list(range(1, 31)) and [*losses.values()][14:] == [100.0 + step for step in range(15, 31)]


def test_x_positions_are_steps_tokens_or_hours(tmp_path: Path) -> None:
    run = read_run(write_metrics(tmp_path / "run", 100))
    assert curves.x_position(run, "tokens")(50) == 50 * 128
    assert curves.x_position(run, "hours")(36) == pytest.approx(0.01)
    assert curves.x_axis([run], "hours") == ("minutes", 1 / 60)
    del run.series["hours"]
    with pytest.raises(UserError, match="no hours"):
        curves.x_position(run, "hours")


def test_smoothing_neither_lags_nor_bends_at_the_ends() -> None:
    line = [float(n) for n in range(1000)]
    assert curves.smooth(line) == pytest.approx(line)
    noisy = [1 + (-1) ** n * 0.5 for n in range(1000)]
    assert max(abs(value - 1) for value in curves.smooth(noisy)[20:-20]) < 0.05


def test_thinning_keeps_the_extremes_and_the_end() -> None:
    values = [0.0] * 100_000
    values[31_415], values[77_777] = 9.0, -9.0
    points, means, lows, highs = curves.thin(range(100_000), values, values)
    assert len(points) == len(means) <= 1000 and points[-1] == 99_999
    assert max(highs) == 9.0 and min(lows) == -9.0


def test_a_hundred_thousand_steps_are_drawn_without_torch(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", 100_000)
    program = (
        f"import sys; sys.argv = ['plot.py', {str(folder)!r}]; import runpy; "
        f"runpy.run_path({str(ROOT / 'plot.py')!r}, run_name='__main__'); "
        "print(sorted({'torch', 'transformers', 'pytorch_lightning'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("[]\n") and (folder / "curves.png").is_file()


def test_wrong_arguments_are_reported(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    (tmp_path / "empty").mkdir()
    run = write_metrics(tmp_path / "run", 5)
    for arguments, expected, message in (
        ([tmp_path / "nowhere"], 2, "no such run folder"),
        ([tmp_path / "empty"], 2, "nothing to draw"),
        ([run, "--output", "a.gif"], 2, "a.gif"),
        ([run, "--show"], 5, "no window"),
    ):
        code, _, err = call(main, *arguments)
        assert code == expected and err.startswith("error: ") and message in err


def test_nan_inf_and_absurd_numbers_leave_a_gap(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", 30)
    with (folder / "metrics.csv").open("a") as file:
        file.write("1,nan,1,0.01,31,1000,9999,inf,,\n1,1e308,1,0.01,1e200,1000,9999,2,,\n")
    run = read_run(folder)
    assert math.isinf(run.series["train_loss"][31])
    assert max(run.metric("train_loss")) == max(run.metric("grad_norm")) == 30 and run.metric("nothing") == {}
    assert len(curves.draw_figure([run], "steps").axes) == 4
