"""`plot.py`: a run's curves as a picture or a page, out of its folder alone. No torch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2kit import files
from gpt2kit.errors import MachineError, UserError
from gpt2kit.runs import curves, folder
from gpt2kit.runs import report as report_page
from gpt2kit.runs.curves import XAxis
from gpt2kit.runs.folder import Run

_FORMATS = (".png", ".svg", ".pdf")


def plot(
    runs: list[str], /, output: Path | None = None, x: XAxis = "steps", show: bool = False, report: Path | None = None
) -> None:
    """Draw the curves of runs, or write a report of them as one page that needs nothing else.

    Args:
        runs: run folders such as lightning_logs/version_0; several are compared.
        output: the picture, by its ending a PNG, SVG or PDF. Default: curves.png, in the folder of a single run.
        x: what the curves are drawn against: optimizer steps, tokens seen, or hours of running.
        show: open a window instead of writing a file.
        report: write a page here instead: settings, machine, text, curves, samples, test figures, how to do it again.
    """
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UserError(f"--output {output}: unknown kind of picture. End it in {', '.join(_FORMATS)}")
    loaded = [folder.read_run(run) for run in runs]
    if report is not None:
        files.write_text(report, report_page.render_report(loaded, x))
        print(report)
    if show:
        _show(loaded, x)
    elif output is not None or report is None:
        target = output or (loaded[0].folder if len(loaded) == 1 else Path()) / "curves.png"
        curves.write_figure(loaded, x, target)
        print(target)


def _show(runs: Sequence[Run], x: XAxis) -> None:
    curves.prepare_matplotlib()
    from matplotlib import pyplot

    if pyplot.get_backend().lower() == "agg":
        raise MachineError("--show: no window can be opened here. Leave it out, and look at the file that is written")
    curves.draw_figure(runs, x, pyplot.figure)
    pyplot.show()
