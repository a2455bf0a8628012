"""Curves and reports, out of a run's folder alone."""

from __future__ import annotations

import html.parser
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, Outcome, Run

from gpt2kit.cli import parser, plot, test
from gpt2kit.errors import UserError
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.runs import curves, report
from gpt2kit.runs import folder as run_folder

pytest.importorskip("matplotlib", reason="optional: pip install matplotlib")
HEADER = "epoch,grad_norm,hours,lr,step,tokens_per_s,tokens_seen,train_loss,val_bpb,val_loss\n"


def log(folder: Path, rows: int, tokens: int = 128) -> Path:
    """A run's log of so many steps, validated every tenth."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [HEADER]
    for step in range(1, rows + 1):
        loss = 2 + 3 * math.exp(-step / rows * 5)
        lines.append(f"{step / 50},{0.5 + step % 7 / 10},{step / 3600},0.01,{step},1000,{step * tokens},{loss},,\n")
        if step % 10 == 0:
            lines.append(f"{step / 50},,{step / 3600},,{step},,,,{loss / 3},{loss + 0.1}\n")
    (folder / "metrics.csv").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_of_each_kind(run: Run, call: Callable[..., Outcome], tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"a.{ending}"
    code, out, _ = call(
        lambda args: parser.call(plot.plot, parser.parse(plot.plot, args)), run.folder, "--output", target
    )
    assert code == 0 and out.strip() == str(target)
    assert target.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_what_is_drawn(tmp_path: Path) -> None:
    one = run_folder.read_run(log(tmp_path / "one", 400))
    axes = curves.draw_figure([one], "steps").axes
    assert [ax.get_title(loc="left") for ax in axes] == ["Loss", "Learning rate", "Gradient norm", "Throughput"]
    assert all(ax.get_xlabel() == "optimizer steps" and ax.get_ylabel() for ax in axes)
    _, train, valid = axes[0].get_lines()
    assert list(valid.get_xdata()) == list(range(10, 401, 10)) and train.get_xdata()[-1] == 400
    assert valid.get_ydata()[-1] == pytest.approx(2 + 3 * math.exp(-5) + 0.1)


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    runs = [run_folder.read_run(log(tmp_path / name / "version_0", 100)) for name in ("a", "b_$x$")]
    drawn = curves.draw_figure(runs, "tokens")
    words = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert len(set(words)) == 2 and words[0].endswith("a/version_0") and r"b_\$x\$" in words[1]
    lines = drawn.axes[1].get_lines()
    assert len({line.get_color() for line in lines}) == 2
    assert lines[0].get_xdata()[-1] == 100 * 128


def test_losses_of_several_tokenizers_are_not_drawn_in_one_panel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        log(tmp_path / name, 50)
        (tmp_path / name / "start.json").write_text(json.dumps([{"text": {"tokenizer": name}}]))
    runs = [run_folder.read_run(tmp_path / name) for name in ("a", "b")]
    assert curves.draw_figure(runs, "steps").axes[0].get_ylabel() == "bits per byte"
    page = report.render_report(runs, "steps")
    assert page.count('aria-label="Validation, bits per byte"') == 1 and "nats per token" not in page
    assert report.render_report(runs[:1], "steps").count('aria-label="Loss, nats per token"') == 1


def test_a_resumed_run_is_one_line(tmp_path: Path) -> None:
    """Steps that were logged before the kill and again after the resume count once, as they were logged last."""
    folder = log(tmp_path / "run", 20)
    with (folder / "metrics.csv").open("a") as file:
        for step in range(15, 31):
            file.write(f"1,0.5,{step / 3600},0.01,{step},1000,{step * 128},{100 + step},,\n")
        file.write("1,0.5,0.0")  # killed while it wrote
    found = run_folder.read_run(folder).series["train_loss"]
    assert [*found] == list(range(1, 31)) and [*found.values()][14:] == [100.0 + step for step in range(15, 31)]


def test_against_hours_and_tokens(tmp_path: Path) -> None:
    found = run_folder.read_run(log(tmp_path / "run", 100))
    assert curves.x_position(found, "tokens")(50) == 50 * 128
    assert curves.x_position(found, "hours")(36) == pytest.approx(0.01)
    assert curves.x_axis([found], "hours") == ("minutes", 1 / 60)
    del found.series["hours"]
    with pytest.raises(UserError, match="no hours"):
        curves.x_position(found, "hours")


def test_smoothing_neither_lags_nor_bends() -> None:
    line = [float(n) for n in range(1000)]
    assert curves.smooth(line) == pytest.approx(line)
    noisy = [1 + (-1) ** n * 0.5 for n in range(1000)]
    assert max(abs(value - 1) for value in curves.smooth(noisy)[20:-20]) < 0.05


def test_thinning_keeps_the_extremes_and_the_end() -> None:
    values = [0.0] * 100_000
    values[31_415], values[77_777] = 9.0, -9.0
    places, means, lows, highs = curves.thin(range(100_000), values, values)
    assert len(places) == len(means) <= 1000 and places[-1] == 99_999
    assert max(highs) == 9.0 and min(lows) == -9.0


def test_a_hundred_thousand_points_are_drawn_without_torch(tmp_path: Path) -> None:
    folder = log(tmp_path / "run", 100_000)
    program = (
        f"import sys; sys.argv = ['plot.py', {str(folder)!r}]; import runpy; "
        f"runpy.run_path({str(ROOT / 'plot.py')!r}, run_name='__main__'); "
        "print(sorted({'torch', 'transformers', 'pytorch_lightning'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.endswith("[]\n") and (folder / "curves.png").is_file()


def test_mistakes_are_told(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    def main(args: list[str]) -> object:
        return parser.call(plot.plot, parser.parse(plot.plot, args))

    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/metrics.csv").write_text("a,b\n1,2\n")
    for folder, word in (("nowhere", "no such run folder"), ("empty", "nothing to draw"), ("odd", "no column `step`")):
        code, _, err = call(main, tmp_path / folder)
        assert code == 2 and word in err and err.startswith("error: ")
    code, _, err = call(main, log(tmp_path / "run", 5), "--output", "a.gif")
    assert code == 2 and "a.gif" in err
    code, _, err = call(main, tmp_path / "run", "--show")
    assert code == 5 and "no window" in err


def test_values_that_are_no_numbers_leave_a_gap(tmp_path: Path) -> None:
    folder = log(tmp_path / "run", 30)
    with (folder / "metrics.csv").open("a") as file:
        file.write("1,nan,1,0.01,31,1000,9999,inf,,\n")
    found = run_folder.read_run(folder)
    assert max(found.series["train_loss"]) == 31 and max(found.metric("train_loss")) == 30
    assert max(found.metric("grad_norm")) == 30 and found.metric("nothing") == {}
    assert len(curves.draw_figure([found], "steps").axes) == 4


class Page(html.parser.HTMLParser):
    """What a page asks for from elsewhere, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.elsewhere: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith("#"):
                self.elsewhere.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_report_has_all_and_asks_for_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(run.folder, folder)
    test.test([str(folder)])
    prompt = "<script>alert(1)</script>"
    (folder / "samples.md").write_text(
        f"# Samples\n\n## step 40, epoch 1\n\nPrompt: `{prompt}`\n\n    {prompt} goes on\n"
    )
    text = report.render_report([run_folder.read_run(folder)], "steps")
    page = Page(text)
    assert "script" not in page.tags and not page.elsewhere and "default-src 'none'" in text
    for word in (
        *("validation, bits per byte", "parameters", "Loss", "Samples", "goes on", "Test", "95 % interval"),
        *("Token by token", "300", "Settings and machine", "Muon", "as requested", "n_layer: 2", "python trainer.py"),
        *("torch", "--data.block_size=16"),
    ):
        assert word in page.words or word in text, word
    fingerprint = run_folder.read_starts(folder)[0]["text"]["splits"]["train"]["fingerprint"]
    assert fingerprint in page.words and page.tags.count("svg") == 6
    assert f"<b>{prompt}".replace("<script>", "&lt;script&gt;").replace("</script>", "&lt;/script&gt;") in text
    both = Page(report.render_report([run_folder.read_run(folder), run_folder.read_run(run.folder)], "tokens"))
    assert "2 runs" in both.words and not both.elsewhere


def test_hidden_characters_are_shown_in_a_report(tmp_path: Path) -> None:
    folder, mark = log(tmp_path / "run", 10), "a\u202eb\x07c"
    (folder / "config.yaml").write_text(f"data:\n  tokenizer: {mark} config\n")
    (folder / "samples.md").write_text(f"# Samples\n\n## step 10\n\nPrompt: `{mark} prompt`\n\n    {mark} sample\n")
    result = {"results": [{"bits_per_byte": 1.0}], "notes": [f"{mark} test"]}
    (folder / "test.json").write_text(json.dumps(result))
    (folder / "start.json").write_text(json.dumps([{"text": {"splits": {}, "notes": [f"{mark} text"]}}]))
    text = report.render_report([run_folder.read_run(folder)], "steps")
    assert "\u202e" not in text and "\x07" not in text
    for word in ("config", "sample", "test", "text"):
        assert f"a<U+202E>b<U+0007>c {word}" in Page(text).words
    assert "data:\n  tokenizer:" in Page(text).words, "line ends stay"


def test_a_damaged_test_file_is_reported_in_one_line(run: Run, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    folder = log(tmp_path / "run", 10)
    passage = {"number": 0, "why": "at the beginning", "bits_per_byte": 1.0, "boxes": [["the", []]], "more": 0}
    (folder / "test.json").write_text(json.dumps({"results": [{"bits_per_byte": 1.0}], "passages": [passage]}))
    code, _, err = call(lambda args: parser.run(plot.plot, args), folder, "--report", tmp_path / "report.html")
    assert code == 3 and "test.json" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_report_of_a_bare_log(tmp_path: Path) -> None:
    """Of a run that was made before starts were kept, and whose other files are damaged."""
    folder = log(tmp_path / "old", 30)
    for name in ("start.json", "status.json", "test.json"):
        (folder / name).write_text('{"results": [')
    assert "Curves" in report.render_report([run_folder.read_run(folder)], "steps")


def test_test_py_leaves_its_figures_in_the_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("test.json"))
    test.test([str(folder)], options=EvaluationOptions(max_tokens=50))
    assert not (folder / "test.json").exists(), "a quick look is not the run's figure"
    test.test([str(folder)])
    found = run_folder.read_json(folder / "test.json", dict)
    assert found["results"][0]["bits_per_byte"] > 0 and found["passages"][0]["boxes"]
