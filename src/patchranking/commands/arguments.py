"""Command lines as users type them, made into what jsonargparse reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["spread_lists"]


def spread_lists(arguments: list[str], commands: Sequence[Callable[..., None] | type]) -> list[str]:
    """Lets list options take several values, ``--keep 0.9 0.8``, beside jsonargparse's ``--keep [0.9,0.8]``."""
    named = {command.__name__: command for command in commands}
    command = next((named[argument] for argument in arguments if argument in named), None)
    lists = {f"--{name}" for name, kind in getattr(command, "__annotations__", {}).items() if kind.startswith("list[")}
    spread: list[str] = []
    option = None
    for argument in arguments:
        if argument in lists:
            option = argument
            spread.append(f"{option}=[]")
        elif option and not argument.startswith("--"):
            spread.append(f"{option}+={argument}")
            option = None if argument.startswith("[") else option
        else:
            option = None
            spread.append(argument)
    return spread
