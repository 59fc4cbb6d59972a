"""Errors with one sentence for the user; the command line prints it and exits with status 2."""

from __future__ import annotations

__all__ = ["MissingExtraError", "UserError"]


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong and what to do."""


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        need: What was asked for, without a full stop.
        extra: The extra of this package that brings the dependency.
    """

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need}: install it with pip install 'patchranking[{extra}]'.")
