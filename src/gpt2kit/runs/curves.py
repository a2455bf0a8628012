"""Curves of one or several runs: loss, learning rate, gradient norm and throughput against steps, tokens or hours.

matplotlib is imported only to draw; torch is not needed.
"""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gpt2kit.errors import UserError
from gpt2kit.runs.folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis = Literal["steps", "tokens", "hours"]
# Okabe and Ito's colours, which people with colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
# Colour of axes and text; an HTML page replaces it with its own.
INK = "#22272E"

_DASHES = ("-", "--", ":")
# Maximum points of a line; more would not be visible.
_MAX_POINTS = 800
# Curves are smoothed over this fraction of their length: 1 / 40.
_SMOOTHING = 40
_CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC"),
)


class Panel(NamedTuple):
    """A panel of the figure."""

    title: str
    unit: str  # of the vertical axis
    train: str = ""  # a metric of each log step
    valid: str = ""  # a metric of each validation
    exact: bool = False  # whether `train` has no noise to smooth


PANELS = (
    Panel("Loss", "nats per token", "train_loss", "val_loss"),
    Panel("Learning rate", "of the hidden matrices", "lr", exact=True),
    Panel("Gradient norm", "before clipping", "grad_norm"),
    Panel("Throughput", "tokens per second", "tokens_per_s"),
)
MEMORY = Panel("Memory", "GB at most", "memory_gb", exact=True)
BITS = Panel("Validation", "bits per byte", valid="val_bpb")


def save(figure: Figure, target: Any, format: str) -> None:
    """Save a figure to a path or a stream, without a timestamp."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a run's name in a script that no installed font has
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
        figure.savefig(target, format=format, metadata=metadata)


def draw_figure(runs: Sequence[Run], x: XAxis, new_figure: Callable[..., Figure] | None = None) -> Figure:
    """Draw all panels in one figure."""
    prepare_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    figure = (new_figure or Figure)(figsize=(12, 8), dpi=120, layout=layout)
    axes = figure.subplots(2, 2)
    for panel, ax in zip(choose_panels(runs), axes.flat, strict=True):
        draw_panel(ax, runs, panel, x)
    count = len(runs)
    if count > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles[:count], labels[:count], loc="outside upper center", ncols=min(count, 4), frameon=False)
    return figure


def choose_panels(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """Return the four panels. Losses of different tokenizers are not comparable, so bits per byte replace them."""
    tokenizers = {str(run.facts("text").get("tokenizer")) for run in runs if run.starts}
    return (BITS, *PANELS[1:]) if len(tokenizers) > 1 else PANELS


def draw_panel(ax: Axes, runs: Sequence[Run], panel: Panel, x: XAxis) -> None:
    """Draw the runs' curves of one panel."""
    is_single, has_both = len(runs) == 1, bool(panel.train and panel.valid)
    axis_label, scale = x_axis(runs, x)
    for number, (run, name) in enumerate(zip(runs, run_labels(runs), strict=True)):
        train, valid, position = run.metric(panel.train), run.metric(panel.valid), x_position(run, x)
        colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        train_style: dict[str, Any] = {"color": colour, "linestyle": dashes, "label": name, "linewidth": 2}
        valid_style = train_style | {"linewidth": 2.2, "markersize": 5}
        if is_single:
            train_style["label"] = "train, smoothed" if len(train) >= 2 * _SMOOTHING else "train"
            valid_style |= {"label": "validation", "color": COLOURS[1] if train else colour}
        elif train and valid:
            train_style |= {"linewidth": 1.2, "alpha": 0.55}
            valid_style["label"] = "_"  # one entry of the legend for each run
        if train:
            positions, values = [position(step) / scale for step in train], [*train.values()]
            points, means, lows, highs = thin(positions, values if panel.exact else smooth(values), values)
            if is_single and not panel.exact and len(points) == len(positions):
                ax.plot(positions, values, color=colour, alpha=0.3, linewidth=1)
            elif is_single and not panel.exact:
                ax.fill_between(points, lows, highs, color=colour, alpha=0.2, linewidth=0)
            ax.plot(points, means, marker="o" if len(points) == 1 else None, **train_style)
        if valid:
            values = [*valid.values()]
            points, means, *_ = thin([position(step) / scale for step in valid], values, values)
            ax.plot(points, means, marker="o" if len(points) <= 60 else None, **valid_style)
    _style_axes(ax, runs, panel, x, axis_label)
    if not ax.lines:
        ax.text(0.5, 0.5, "nothing logged", transform=ax.transAxes, ha="center", va="center", fontsize=13, color=INK)
    elif is_single and has_both:
        ax.legend(frameon=False, fontsize=12, labelcolor=INK)
    elif has_both:
        ax.set_title("thin: train, smoothed; bold: validation", loc="right", fontsize=11, color=INK)


def _style_axes(ax: Axes, runs: Sequence[Run], panel: Panel, x: XAxis, axis_label: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.set_title(panel.title, loc="left", fontsize=15, fontweight="bold", color=INK)
    ax.set_ylabel(panel.unit, fontsize=13, color=INK)
    ax.set_xlabel(axis_label, fontsize=13, color=INK)
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
    if panel.train in ("lr", "tokens_per_s", "memory_gb") and ax.lines:
        ax.set_ylim(bottom=0)
    elif panel.train == "grad_norm" and ax.lines and _has_outliers(runs):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _has_outliers(runs: Sequence[Run]) -> bool:
    """Return whether the largest gradient norm is more than 30 times the median."""
    norms = sorted(value for run in runs for value in run.metric("grad_norm").values())
    return norms[0] > 0 and norms[-1] > 30 * norms[len(norms) // 2]


def x_position(run: Run, x: XAxis) -> Callable[[int], float]:
    """Return a function from an optimizer step to its position on the x axis."""
    if x == "steps":
        return float
    column = "tokens_seen" if x == "tokens" else "hours"
    steps, values = [*run.metric(column)], [*run.metric(column).values()]
    if not steps:
        raise UserError(f"{run.folder}: no {column} in its metrics.csv. Use --x steps")
    if x == "tokens":
        return lambda step: step * (values[-1] / max(steps[-1], 1))
    return lambda step: values[min(bisect.bisect_left(steps, step), len(steps) - 1)]


def x_axis(runs: Sequence[Run], x: XAxis) -> tuple[str, float]:
    """Return the label of the x axis, and the number to divide positions by."""
    if x == "steps":
        return "optimizer steps", 1.0
    if x == "tokens":
        return "tokens seen", 1.0
    longest = max(max(run.metric("hours").values(), default=0.0) for run in runs)
    return ("hours", 1.0) if longest > 2 else ("minutes", 1 / 60)


def smooth(values: Sequence[float]) -> list[float]:
    """Return a moving average over a fortieth of the curve, centred at each value.

    Towards both ends it is over fewer neighbours, so that the line neither lags nor bends there.
    """
    count, reach = len(values), len(values) // (2 * _SMOOTHING)
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(count):
        near = min(reach, i, count - 1 - i)
        means.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return means


def thin(
    positions: Sequence[float], means: Sequence[float], values: Sequence[float]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Split a curve into at most _MAX_POINTS intervals; return their ends, the means there, their lows and highs."""
    size = math.ceil(len(positions) / _MAX_POINTS)
    intervals = [slice(start, start + size) for start in range(0, len(positions), size)]
    lows, highs = [min(values[i]) for i in intervals], [max(values[i]) for i in intervals]
    return [positions[i][-1] for i in intervals], [means[i][-1] for i in intervals], lows, highs


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return the folders' names, or their paths if two have the same name, escaped for matplotlib."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    # matplotlib omits labels that begin with _, and reads text between $ as a formula.
    return [(f" {name}" if name.startswith("_") else name).replace("$", r"\$") for name in names]


def prepare_matplotlib() -> None:
    """Check that matplotlib is installed, and add fonts for Chinese, Japanese and Korean names."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError:
        raise UserError("plots need matplotlib. Run: pip install matplotlib") from None
    installed = {font.name for font in font_manager.fontManager.ttflist}
    matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)]
