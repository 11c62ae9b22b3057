"""How all pictures of the reports look: size, grid, legend, logarithmic axes; made by matplotlib.

matplotlib is imported when a picture is drawn, not before.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

_WIDE: Final = (9.0, 4.4)  # inches
_DPI: Final = 130
_WORDS: Final = 0.75  # inches of a panel's title and axis
_LEGEND: Final = 0.4


def figure_of(panels: int, share_y: bool = True) -> tuple[Any, list[Any]]:
    """A figure with so many axes beside each other."""
    figure = _empty(_WIDE[1])
    axes = figure.subplots(1, panels, sharey=share_y, squeeze=False)[0]
    return figure, [_plain(axis) for axis in axes]


def stacked(heights: Sequence[float], share_x: bool = True) -> tuple[Any, list[Any]]:
    """A figure with axes above each other, each so many inches high and what its words need."""
    figure = _empty(sum(heights) + _WORDS * len(heights) + _LEGEND)
    ratios = [height + _WORDS for height in heights]
    axes = figure.subplots(len(heights), 1, sharex=share_x, squeeze=False, height_ratios=ratios)
    return figure, [_plain(axis) for axis in axes[:, 0]]


def _empty(high: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDE[0], high), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axis: Any) -> Any:
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def png_of(figure: Any, legend_from: Any, columns: int = 4) -> bytes:
    """With the legend of one of its axes below."""
    handles, labels = legend_from.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return bytes_of(figure)


def bytes_of(figure: Any) -> bytes:
    """As PNG, without the date or the version of what drew it."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def log_y(axis: Any, text: str) -> None:
    """A logarithmic axis with numbers in full."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:,.10g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(text)


def rate_text(value: float) -> str:
    """A number above a bar."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


__all__ = ["bytes_of", "figure_of", "log_y", "png_of", "rate_text", "stacked"]
