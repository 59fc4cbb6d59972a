"""What the commands share."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["number", "print_skipped"]


def number(value: float | None, spec: str) -> str:
    """A figure as text, a dash where there is none."""
    return "-" if value is None else format(value, spec)


def print_skipped(skipped: Mapping[str, str]) -> None:
    """Says which images were left out, and why."""
    for key, reason in skipped.items():
        print(f"skipped {key}: {reason}")
