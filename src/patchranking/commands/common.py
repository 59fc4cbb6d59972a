"""What the commands share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from patchranking.data import ImageData

__all__ = ["number", "print_left_out", "print_skipped"]

_EXAMPLES = 3


def number(value: float | None, spec: str) -> str:
    """A figure as text, a dash where there is none."""
    return "-" if value is None else format(value, spec)


def print_skipped(skipped: Mapping[str, str]) -> None:
    """Says which images were left out, and why."""
    for key, reason in skipped.items():
        print(f"skipped {key}: {reason}")


def print_left_out(data: ImageData) -> None:
    """Says what lies among the images and is none of them, on one line, and what was assumed about the classes."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in data.left_out.items():
        reasons[reason].append(name)
    if reasons:
        print(f"{len(data.left_out)} left out: {'; '.join(_some(names, why) for why, names in reasons.items())}")
    for note in data.notes:
        print(f"note: {note}")


def _some(names: list[str], reason: str) -> str:
    more = ", ..." if len(names) > _EXAMPLES else ""
    return f"{len(names)} {reason} ({', '.join(names[:_EXAMPLES])}{more})"
