"""Implements `gpt2kit plot`: draw the curves of runs, or write a report, from their folders alone. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2kit import files
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import MachineError, UserError
from gpt2kit.runs import curves, folder
from gpt2kit.runs import report as report_page
from gpt2kit.runs.curves import XAxis
from gpt2kit.runs.folder import Run

_FORMATS = (".png", ".svg", ".pdf")


def plot(
    runs: Positional[list[str]],
    output: Path | None = None,
    x: XAxis = "steps",
    show: bool = False,
    report: Path | None = None,
) -> None:
    """Draw the curves of runs, or write a report of them as one self-contained page.

    Args:
        runs: `last` (the newest run), or names or folders of runs. Several are compared.
        output: The picture to write: .png, .svg or .pdf. Default: curves.png, in the folder of a single run.
        x: The x axis: optimizer steps, tokens seen, or hours of training.
        show: Open a window instead of writing a file.
        report: Write one HTML page instead: settings, machine, text, curves, samples, test figures, commands.
    """
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UserError(f"--output {output}: unknown image format. Use {', '.join(_FORMATS)}")
    loaded = [folder.read_run(run) for run in runs]
    if report is not None:
        files.write_text(report, report_page.render_report(loaded, x))
        print(report)
    if show:
        _show(loaded, x)
    elif output is not None or report is None:
        target = output or (loaded[0].folder if len(loaded) == 1 else Path()) / "curves.png"
        with files.replacing(target) as temporary:
            curves.save(curves.draw_figure(loaded, x), temporary, target.suffix[1:].lower())
        print(target)


def _show(runs: Sequence[Run], x: XAxis) -> None:
    curves.prepare_matplotlib()
    from matplotlib import pyplot

    if pyplot.get_backend().lower() == "agg":
        raise MachineError("--show: no window can be opened here. Omit it and open the written file")
    curves.draw_figure(runs, x, pyplot.figure)
    pyplot.show()
