"""Numbers and names as they stand on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["DASH", "PERCENT", "both", "circumstances", "listed", "model_name", "number", "percent", "signed", "span"]

DASH = "–"
PERCENT = "\u00a0%"


def number(value: float | None, digits: int) -> str:
    """A figure with so many digits after the point; a dash where there is none."""
    return DASH if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share in percent."""
    return DASH if share is None else f"{100 * share:.3g}{PERCENT}"


def signed(value: float, digits: int = 1) -> str:
    """A change, with its sign; nothing is neither plus nor minus."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def span(interval: Sequence[float] | None) -> str:
    """An interval of a change; empty where there is none."""
    return "" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def both(function: Callable[[float, float], str], first: float | None, second: float | None) -> str:
    """What a function says about two figures; a dash where one is missing."""
    return DASH if first is None or second is None else function(first, second)


def circumstances(environment: Mapping[str, Any]) -> dict[str, Any]:
    """How something was measured, as pages take it: its ``command``, and the rest of the ``environment`` by name."""
    rest = {name.replace("_", " "): value for name, value in environment.items() if name != "command"}
    shown = {name: DASH if value is None or value == "" else str(value) for name, value in rest.items()}
    return {"command": environment.get("command"), "environment": shown}


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def model_name(model: str) -> str:
    """A MODEL argument as a name to read: without its library, and of a folder the last part alone."""
    library, _, name = model.partition(":")
    folder = name.removeprefix("local-dir:")
    if folder != name or folder.startswith(("/", ".", "~")) or folder.count("/") > 1:
        return folder.replace("\\", "/").rstrip("/").rpartition("/")[2] or model
    return name or library
