from __future__ import annotations

from patchranking.errors import MissingExtraError, UserError


def test_a_missing_extra_names_the_command_that_brings_it():
    error = MissingExtraError("Reports draw with matplotlib", "report")
    assert str(error) == "Reports draw with matplotlib: install it with pip install 'patchranking[report]'."


def test_both_are_value_errors():
    assert issubclass(MissingExtraError, UserError)
    assert issubclass(UserError, ValueError)
