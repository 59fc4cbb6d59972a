"""What all charts look like, and matplotlib's SVG as a page takes it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import quoteattr

from patchranking.extras import import_extra

__all__ = ["CARD", "INK", "LINE", "MUTED", "RC", "chart", "themed"]

INK, MUTED, LINE, CARD = "#010101", "#020202", "#030303", "#040404"
_THEME = {
    INK: "var(--ink, #1b1f2a)",
    MUTED: "var(--muted, #646b7a)",
    LINE: "var(--line, #e3e6ec)",
    CARD: "var(--card, #ffffff)",
}
"""Stand-in colours and the CSS they become, so that a chart inside a page follows its light or dark theme."""

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "patchranking",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 0,
    "xtick.major.pad": 6.5,
    "ytick.major.size": 0,
    "legend.fontsize": 10,
    "legend.handlelength": 1.9,
    "legend.columnspacing": 1.4,
}


def chart(
    draw: Callable[[Any, Any], None], title: str, description: str, height: float = 3.6, title_size: float = 11.5
) -> str:
    """Draws a chart of one pair of axes.

    Args:
        draw: Draws on a figure and its axes.
        title: Stands above it.
        description: For those who cannot see it.
        height: In inches, at a width of 4.6.
        title_size: In points.

    Returns:
        An SVG element as text.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib, drawing = (import_extra(name, "The report", "report") for name in ("matplotlib", "matplotlib.figure"))
    with matplotlib.rc_context(RC):
        figure = drawing.Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[:].set_visible(False)
        axes.spines["bottom"].set_visible(True)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        figure.suptitle(title, x=0.015, horizontalalignment="left", fontsize=title_size, fontweight="bold")
        draw(figure, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return themed(buffer.getvalue(), description)


def themed(svg: str, description: str) -> str:
    """Cuts what a page has no use for out of matplotlib's SVG and hands colours and fonts over to CSS."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    svg = re.sub(r'(<g) id="[A-Za-z0-9]+(?:_\d+|[._]\w+)*"', r"\1", svg)
    svg = re.sub(r"font-family: [^;\"]+", f"font-family: {_FONTS}", svg)
    for stand_in, css in _THEME.items():
        svg = svg.replace(stand_in, css)
    return svg.replace(
        "<svg", f'<svg role="img" aria-label={quoteattr(description)} stroke-linejoin="round"', 1
    ).strip()
