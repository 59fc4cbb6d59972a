"""Errors with one sentence for the user; the command line prints it and exits with status 2."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real

__all__ = ["MissingExtraError", "UserError", "check_numbers", "one_line", "reason"]

_TOO_LARGE = 2**63
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong and what to do, on one line whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        need: What was asked for, without a full stop.
        extra: The extra of this package that brings the dependency.
    """

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need}: install it with pip install 'patchranking[{extra}]'.")


def one_line(text: str) -> str:
    """Escapes control characters, which a file's name may hold: they would end the line, or steer the console."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def check_numbers(values: Mapping[str, object], **least: float) -> None:
    """Checks settings by name: ``check_numbers(vars(self), epochs=1, weight_decay=0.0)``.

    Args:
        values: Name -> what was given.
        **least: Name -> the least it may be; an integer where it is to be a whole number.

    Raises:
        UserError: If one is no finite number, below that, or beyond the whole numbers of 64 bits.
    """
    for name, lowest in least.items():
        value, whole = values[name], isinstance(lowest, int)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not lowest <= value < math.inf or (whole and value != int(value)):  # type: ignore[operator, call-overload]
            kind = "a whole number" if whole else "a number"
            raise UserError(f"'{name}' is {kind}, {lowest:g} or more, not {value!r}.")
        if value >= _TOO_LARGE:  # type: ignore[operator]
            raise UserError(f"'{name}' is too large: {value!r}.")


def reason(error: BaseException, length: int = 160) -> str:
    """An error on one line: its type and the start of its message, and those of its innermost cause in brackets."""
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:length]}"
    return said if inner is error else f"{said} ({reason(inner, length)})"
