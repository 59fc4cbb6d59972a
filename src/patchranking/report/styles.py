"""How a method looks and in which order it stands, the same in every chart, table and picture."""

from __future__ import annotations

import zlib

from patchranking.methods import METHODS, STYLES, Style

__all__ = ["order", "style"]

_SPARE = (Style("#a0643c", "h"), Style("#5f6fd6", "<"), Style("#3b9aa8", ">"), Style("#d98ab0", "8"))


def style(method: str) -> Style:
    """The look of a method; an unknown name gets one of the spare looks, always the same one."""
    return STYLES.get(method) or _SPARE[zlib.crc32(method.encode()) % len(_SPARE)]


def order(method: str) -> tuple[int, str]:
    """Sort key: dense, patchranking, the baselines, unknown names, and oracles last."""
    known = list(STYLES)
    if method in METHODS and METHODS[method].oracle:
        return len(known) + 1, method
    return (known.index(method) if method in known else len(known)), method
