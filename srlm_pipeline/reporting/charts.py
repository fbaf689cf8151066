"""Charts as SVG within a page: matplotlib draws them, the page's style sheet colours them.

The text stays text, and every chart has its figures in words: as its label, and under the pointer. Series are told
apart by shape (and dashes) as well as by colour.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from srlm_pipeline.reporting.pages import Column, Figures
from srlm_pipeline.reporting.words import UNPRINTABLE, in_line, is_known, plain_number, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points; narrow, so that the numbers can be read where a page is as narrow as a phone.
_WIDTH = 360
# Any colours that differ: the page puts its own in their place, which change with its scheme.
_INK, _SOFT, _LINE = "#1b1f24", "#57606a", "#cfd6dd"
_SERIES = (("#0069a8", "o", "-"), ("#b84a00", "D", "--"), ("#007458", "s", ":"), ("#8f3d75", "^", "-."))
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line"} | {c: f"--s{n}" for n, (c, _, _) in enumerate(_SERIES)}
_STYLE = {
    "svg.fonttype": "none",
    # A model's name is no formula.
    "text.parse_math": False,
    "font.size": 11,
    "axes.titlesize": "medium",
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "grid.color": _LINE,
    "xtick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.autolimit_mode": "round_numbers",
    "axes.ymargin": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
}
# So many bins, or a few less where the steps are to be round numbers.
_MOST_BINS = 24
_STEPS = [1, 2, 2.5, 5, 10]
_TIP = "tip: "
_LONGEST_LABEL = 50


def dot_chart(
    title: str, rows: Mapping[str, Figures], columns: Sequence[Column], references: Mapping[str, float | None]
) -> Markup | None:
    """Draw shares with their intervals over an axis from 0 to 1; None if none is known.

    Args:
        title: What the chart shows.
        rows: Figures by label of the row.
        columns: Which of them are drawn, one below the other.
        references: Values to compare with, by name.
    """

    def draw(axes: Sequence[Axes]) -> list[str]:
        (ax,) = axes
        told, lane = [], 0.0
        for name, figures in rows.items():
            label = " ".join(name.translate(UNPRINTABLE).split())
            ax.text(
                0.0,
                lane,
                label if len(label) <= _LONGEST_LABEL else label[:_LONGEST_LABEL] + "\u2026",
                va="center",
                in_layout=False,
            )
            for n, column in enumerate(columns):
                lane += 1
                told += _point(ax, n, column, figures, name.translate(UNPRINTABLE), y=lane)
            lane += 1.4
        for n, column in enumerate(columns):
            ax.plot([], [], _SERIES[n][1], color=_SERIES[n][0], label=column.head)
        for (name, value), dashes in zip(references.items(), ("--", ":"), strict=False):
            if value is not None and math.isfinite(value):
                ax.axvline(value, color=_SOFT, linestyle=dashes, label=name, zorder=1)
        ax.set(xlim=(-0.02, 1.02), ylim=(lane - 0.8, -0.6), yticks=[])
        ax.grid(axis="x")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.figure.legend(loc="outside upper left", ncols=2)
        return told

    return _svg(title, 60 + 17 * len(rows) * (len(columns) + 1.4), draw)


def histograms(
    title: str, values: Mapping[str, NDArray[np.float64]], bounds: tuple[float, float] | None = None
) -> Markup | None:
    """Draw how values are distributed, in bins that all share, a dashed line at the median; None without values.

    Args:
        title: What the chart shows.
        values: Finite ones, by name.
        bounds: Ends of the axis. None: from 0 to the 99th percentile, and the last bin holds everything above.
    """
    from matplotlib.ticker import MaxNLocator

    shown = {name.translate(UNPRINTABLE): array for name, array in values.items() if len(array)}
    if not shown:
        return None
    everything = np.concatenate(list(shown.values()))
    low, high = bounds or (0.0, float(np.quantile(everything, 0.99)) or 1.0)
    edges = MaxNLocator(_MOST_BINS, steps=_STEPS).tick_values(low, high)

    def draw(axes: Sequence[Axes]) -> list[str]:
        for n, (ax, (name, array)) in enumerate(zip(axes, shown.items(), strict=True)):
            shares, _, bars = ax.hist(
                np.clip(array, edges[0], edges[-1]), edges, weights=np.full(len(array), 1 / len(array)),
                color=_SOFT if n else _SERIES[0][0],
            )  # fmt: skip
            for left, right, part, bar in zip(edges[:-1], edges[1:], np.asarray(shares), bars, strict=True):
                above = right == edges[-1] < everything.max()
                span = f"{plain_number(left)} or more" if above else f"{plain_number(left)} to {plain_number(right)}"
                bar.set_gid(f"{_TIP}{span}: {share(float(part))}")
            ax.axvline(float(np.median(array)), color=_INK, linestyle="--")
            ax.set_title(name, loc="left")
            ax.set(yticks=[], xlim=(edges[0], edges[-1]))
            ax.xaxis.set_major_formatter(lambda value, _: plain_number(value))
        return [f"{name}: {len(a)} values, median {plain_number(np.median(a))}" for name, a in shown.items()]

    return _svg(title, 20 + 75 * len(shown), draw, len(shown))


def curves(
    title: str, columns: Sequence[Column], made: Mapping[int, Figures], reference: float | None = None
) -> Markup | None:
    """Draw figures over iterations, with a gap where one is missing; None if there are none.

    Args:
        title: What the chart shows.
        columns: Of each curve.
        made: Figures by iteration.
        reference: Value of a line to compare with; None: the axis begins at 0.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Sequence[Axes]) -> list[str]:
        (ax,) = axes
        told = []
        for n, column in enumerate(columns):
            # Whiskers of different curves do not hide each other.
            shift = 0.09 * (n - (len(columns) - 1) / 2)
            heights = np.array([column.estimate(figures)[0] for figures in made.values()], dtype=float)
            colour, marker, dashes = _SERIES[n]
            label = column.head.removeprefix(f"{title.lower()} ")
            places = [t + shift for t in made]
            ax.plot(places, heights, dashes, color=colour, marker=marker, label=label, clip_on=False)
            for t, figures in made.items():
                told += _point(ax, n, column, figures, f"iteration {t}", x=t + shift)
        if reference is not None:
            ax.axhline(reference, color=_SOFT, linestyle="--", zorder=1)
        ax.set_xlim(min(made) - 0.5, max(made) + 0.5)
        # More numbers would run into each other.
        ax.set_xticks(sorted(made)[:: math.ceil(len(made) / 12)])
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        ax.yaxis.set_major_formatter(lambda value, _: columns[0].write(value).replace(".0%", "%"))
        if reference is None:
            ax.set_ylim(bottom=0.0)
        ax.grid(axis="y")
        if len(columns) > 1:
            ax.figure.legend(loc="outside upper left", ncols=2)
        return told

    return _svg(title, 170 + 60 * (len(columns) > 1), draw)


def _point(
    ax: Axes, series: int, column: Column, figures: Figures, of: str, x: float | None = None, y: float | None = None
) -> list[str]:
    """Draw a figure with its interval, along the axis for which no place is given, and tell it; nothing if unknown."""
    value, low, high = estimate = column.estimate(figures)
    if not is_known(estimate):
        return []
    colour, marker, _ = _SERIES[series]
    reach = None
    if value is not None and low is not None and high is not None:
        reach = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    along = {"x": value, "y": y, "xerr": reach} if x is None else {"x": x, "y": value, "yerr": reach}
    told = f"{of}, {column.head}: {in_line(column.cell(figures))}"
    ax.errorbar(**along, fmt=marker, color=colour, elinewidth=2, clip_on=False)[0].set_gid(_TIP + told)
    return [told]


def _svg(title: str, height: float, draw: Callable[[Sequence[Axes]], list[str]], n: int = 1) -> Markup | None:
    """Return a chart of some axes, one below the other, as wide as there is room; None if `draw` tells of nothing."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}), warnings.catch_warnings():
        # Whatever script a name is in: the browser has the letters.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure((_WIDTH / 72, height / 72), layout="constrained")
        drawings = draw(figure.subplots(n, sharex=True, sharey=True, squeeze=False)[:, 0])
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    if not drawings:
        return None
    told, drawn = f"{title}. {'; '.join(drawings)}.", buffer.getvalue()
    drawn = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", drawn, flags=re.DOTALL)
    # A page has several charts: what they name is theirs alone, through the salt, or has no name.
    drawn = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", drawn)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r"font-family: [^;\"]*; ", "", drawn)
    drawn = re.sub(r"(fill|stroke): (#\w{6})", lambda m: f"{m[1]}: var({_VARIABLES.get(m[2], '--ink')})", drawn)
    box = re.search(r'viewBox="[^"]*"', drawn)
    assert box is not None, "matplotlib says how large a chart is"
    content = drawn[drawn.index(">", box.end()) + 1 :]
    return Markup(f'<svg role="img" {box[0]} aria-label="{escape(told)}"><title>{escape(told)}</title>{content}')  # noqa: S704
