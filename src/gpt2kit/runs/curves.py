"""A run's curves: loss, learning rate, gradient norm and throughput, of one run or several, against steps, tokens or
hours. matplotlib is imported where it draws; torch is not needed at all."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt2kit import files
from gpt2kit.errors import UserError
from gpt2kit.runs import folder
from gpt2kit.runs.folder import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis = Literal["steps", "tokens", "hours"]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""

INK = "#22272E"
"""Of axes and words; a page takes its own in its place."""

_LINES = ("-", "--", ":")
_MOST = 800
"""Points that a line is drawn with at most."""

_WINDOW = 40
"""Curves are smoothed over this part of them."""

_CJK = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
)


@dataclass(frozen=True)
class Panel:
    """One of the figure's parts.

    Args:
        title: what it shows.
        unit: of the vertical axis.
        train: the figure that is logged at each log step, drawn smoothed over its own spread.
        valid: the figure of each validation, drawn with its points.
        exact: it has no noise to be smoothed away.
    """

    title: str
    unit: str
    train: str | None = None
    valid: str | None = None
    exact: bool = False


PANELS = (
    Panel("Loss", "nats per token", "train_loss", "val_loss"),
    Panel("Learning rate", "of the hidden matrices", "lr", exact=True),
    Panel("Gradient norm", "before clipping", "grad_norm"),
    Panel("Throughput", "tokens per second", "tokens_per_s"),
)
MEMORY = Panel("Memory", "GB at most", "memory_gb", exact=True)
BITS = Panel("Validation", "bits per byte", valid="val_bpb")


def draw(runs: Sequence[Run], x: XAxis, target: Path) -> None:
    """Write the figure, whole or not at all."""
    with files.replacing(target) as temporary:
        save(figure(runs, x), temporary, target.suffix[1:].lower())


def save(drawn: Figure, target: Any, kind: str) -> None:
    """Write a figure into a file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a run's name in a script that no font here has
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        drawn.savefig(target, format=kind, metadata=metadata)


def figure(runs: Sequence[Run], x: XAxis, new: Callable[..., Figure] | None = None) -> Figure:
    """All panels in one figure."""
    prepare()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = (new or Figure)(
        figsize=(12, 8), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    )
    axes = drawn.subplots(2, 2)
    for panel, ax in zip(panels(runs), axes.flat, strict=True):
        draw_panel(ax, runs, panel, x)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(runs) > 1:
        count = len(runs)
        drawn.legend(handles[:count], labels[:count], loc="outside upper center", ncols=min(count, 4), frameon=False)
    return drawn


def panels(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """The four panels. Losses of several tokenizers are not comparable, so their runs are shown by bits per byte."""
    vocabularies = {run.starts[-1].get("text", {}).get("tokenizer") for run in runs if run.starts}
    return (BITS, *PANELS[1:]) if len(vocabularies) > 1 else PANELS


def draw_panel(ax: Axes, runs: Sequence[Run], panel: Panel, x: XAxis) -> None:
    """Draw the runs' curves of one panel."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    single = len(runs) == 1
    unit, scale = unit_of(runs, x)
    names = labels(runs)
    empty = True
    for number, run in enumerate(runs):
        colour, dashes = COLOURS[number % len(COLOURS)], _LINES[number // len(COLOURS) % len(_LINES)]
        where = position(run, x)
        train = folder.finite(run.series.get(panel.train or "", Series()))
        valid = folder.finite(run.series.get(panel.valid or "", Series()))
        if train.steps:
            at = [where(step) / scale for step in train.steps]
            places, means, lows, highs = thinned(
                at, train.values if panel.exact else smoothed(train.values), train.values
            )
            if single and not panel.exact:
                if len(places) == len(at):
                    ax.plot(at, train.values, color=colour, alpha=0.3, linewidth=1)
                else:
                    ax.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0)
            label = (
                ("train, smoothed" if len(train.steps) >= 2 * _WINDOW else "train")
                if single and panel.valid
                else names[number]
            )
            light = not single and bool(panel.valid) and bool(valid.steps)
            ax.plot(
                places,
                means,
                dashes,
                color=colour,
                label=label,
                linewidth=1.2 if light else 2,
                alpha=0.55 if light else 1,
                marker="o" if len(places) == 1 else None,
            )
        if valid.steps:
            own = COLOURS[1] if single and train.steps else colour
            at = [where(step) / scale for step in valid.steps]
            places, means, *_ = thinned(at, valid.values, valid.values)
            marks = "o" if len(places) <= 60 else None
            label = "validation" if single else "_" if train.steps else names[number]
            ax.plot(places, means, dashes, color=own, label=label, linewidth=2.2, marker=marks, markersize=5)
        empty = empty and not train.steps and not valid.steps
    ax.set_title(panel.title, loc="left", fontsize=15, fontweight="bold", color=INK)
    ax.set_ylabel(panel.unit, fontsize=13, color=INK)
    ax.set_xlabel(unit, fontsize=13, color=INK)
    ax.tick_params(labelsize=12, colors=INK)
    ax.grid(alpha=0.3, color=INK, linewidth=0.6)
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if x in ("tokens", "steps"):
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.train == "tokens_per_s":
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.train in ("lr", "tokens_per_s", "memory_gb") and not empty:
        ax.set_ylim(bottom=0)
    elif panel.train == "grad_norm" and not empty and _spread(runs) > 30:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if empty:
        ax.text(0.5, 0.5, "nothing logged", transform=ax.transAxes, ha="center", va="center", fontsize=13, color=INK)
    elif single and panel.valid and panel.train:
        ax.legend(frameon=False, fontsize=12, labelcolor=INK)
    elif not single and panel.valid and panel.train:
        ax.set_title("thin: train, smoothed; bold: validation", loc="right", fontsize=11, color=INK)


def position(run: Run, x: XAxis) -> Callable[[int], float]:
    """From an optimizer step to the place on the horizontal axis."""
    if x == "steps":
        return float
    if x == "tokens":
        seen = folder.finite(run.series.get("tokens_seen", Series()))
        if not seen.steps or not seen.steps[-1]:
            raise UserError(f"{run.folder}: no tokens_seen in its metrics.csv. Draw against --x steps")
        each = seen.values[-1] / seen.steps[-1]
        return lambda step: step * each
    taken = folder.finite(run.series.get("hours", Series()))
    if not taken.steps:
        raise UserError(
            f"{run.folder}: no hours in its metrics.csv, as in runs of older versions. Draw against --x steps"
        )

    def hours(step: int) -> float:
        at = bisect.bisect_left(taken.steps, step)
        return taken.values[min(at, len(taken.values) - 1)]

    return hours


def unit_of(runs: Sequence[Run], x: XAxis) -> tuple[str, float]:
    """The horizontal axis's name, and what its places are divided by."""
    if x == "steps":
        return "optimizer steps", 1.0
    if x == "tokens":
        return "tokens seen", 1.0
    most = max((max(run.series["hours"].values, default=0.0) for run in runs if "hours" in run.series), default=0.0)
    return ("hours", 1.0) if most > 2 else ("minutes", 1 / 60)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, a fortieth of the curve in all; fewer towards both ends, so that the
    line neither lags nor bends there."""
    count, reach = len(values), len(values) // (2 * _WINDOW)
    sums = [0.0, *itertools.accumulate(values)]
    found = []
    for place in range(count):
        near = min(reach, place, count - 1 - place)
        found.append((sums[place + near + 1] - sums[place - near]) / (2 * near + 1))
    return found


def thinned(
    places: Sequence[float], means: Sequence[float], values: Sequence[float]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """At most so many points as can be seen: of each stretch its end, the mean there, and the range of values."""
    each = -(-len(places) // _MOST)
    starts = range(0, len(places), max(each, 1))
    ends = [min(start + each, len(places)) - 1 for start in starts]
    lows = [min(values[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    highs = [max(values[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    return [places[end] for end in ends], [means[end] for end in ends], lows, highs


def labels(runs: Sequence[Run]) -> list[str]:
    """The folders' names; their paths where two have one name. What matplotlib would take for a formula is plain."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return [" " * name.startswith("_") + name.replace("$", r"\$") for name in names]


def _spread(runs: Sequence[Run]) -> float:
    """The largest gradient norm over the middle one."""
    values = sorted(value for run in runs for value in folder.finite(run.series.get("grad_norm", Series())).values)
    return values[-1] / max(values[len(values) // 2], 1e-12) if values and values[0] > 0 else 1.0


def prepare() -> None:
    """Check that matplotlib is there, and let names in Chinese, Japanese and Korean be drawn if a font for them is."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError:
        raise UserError("plot.py: needs matplotlib. Run: pip install matplotlib") from None
    known = {font.name for font in font_manager.fontManager.ttflist}
    matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", *(name for name in _CJK if name in known)]
