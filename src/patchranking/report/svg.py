"""What all charts look like, and matplotlib's SVG as a page takes it."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import quoteattr

__all__ = ["CARD", "INK", "LINE", "MUTED", "RC", "themed"]

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
