"""How a method looks and is named, the same in every chart, table and picture."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MethodStyle", "is_oracle", "order", "plain_name", "style"]

_ORACLE = " (oracle)"


@dataclass(frozen=True)
class MethodStyle:
    """Colour and marker of a method.

    Attributes:
        colour: Hex colour that is legible on white and on near-black, and apart from its neighbours for colour-blind
            readers.
        marker: Matplotlib marker, a second cue beside the colour.
    """

    colour: str
    marker: str


_STYLES = {
    "dense": MethodStyle("#6b7280", "D"),
    "patchranking": MethodStyle("#e2571e", "o"),
    "cls-attention": MethodStyle("#2f7fd0", "s"),
    "evit": MethodStyle("#0f9d82", "^"),
    "a-vit": MethodStyle("#9a63c9", "v"),
    "tome": MethodStyle("#4fb3e8", "P"),
    "low-res": MethodStyle("#c2578f", "X"),
    "centre-crop": MethodStyle("#7a8f2b", "p"),
    "random": MethodStyle("#8d939e", "d"),
    "golden": MethodStyle("#c79a00", "*"),
}

_SPARE = (
    MethodStyle("#a0643c", "h"),
    MethodStyle("#5f6fd6", "<"),
    MethodStyle("#3b9aa8", ">"),
    MethodStyle("#d98ab0", "8"),
)


def plain_name(method: str) -> str:
    """The method without the mark ``(oracle)`` that some rows carry in the name."""
    return method.removesuffix(_ORACLE)


def is_oracle(row: Mapping[str, Any]) -> bool:
    """Whether a row of results was measured with knowledge no deployed method has."""
    return bool(row.get("oracle")) or str(row["method"]).endswith(_ORACLE)


def style(method: str) -> MethodStyle:
    """The look of a method; an unknown name gets one of the spare looks, always the same one."""
    name = plain_name(method)
    return _STYLES.get(name) or _SPARE[zlib.crc32(name.encode()) % len(_SPARE)]


def order(method: str) -> tuple[int, str]:
    """Sort key: dense, patchranking, the baselines, unknown names, and the golden ranking last."""
    name = plain_name(method)
    if name == "golden":
        return len(_STYLES) + 1, name
    known = list(_STYLES)
    return (known.index(name) if name in known else len(known)), name
