from __future__ import annotations

import numpy as np
import pytest

from patchranking.errors import MissingExtraError, UserError, check_numbers, one_line, reason


def test_a_missing_extra_names_the_command_that_brings_it():
    error = MissingExtraError("Reports draw with matplotlib", "report")
    assert str(error) == "Reports draw with matplotlib: install it with pip install 'patchranking[report]'."


def test_both_are_value_errors():
    assert issubclass(MissingExtraError, UserError)
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("value", [0, 1.5, "3", None, True, float("nan"), float("inf")])
def test_settings_that_are_no_whole_number_or_too_small_are_named(value):
    with pytest.raises(UserError, match=r"^'epochs' is a whole number, 1 or more, not .*\.$"):
        check_numbers({"epochs": value}, epochs=1)
    for good in (1, np.int64(2), 3.0):
        check_numbers({"epochs": good}, epochs=1)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), "0.1"])
def test_settings_that_are_no_number_are_named(value):
    with pytest.raises(UserError, match=r"^'rate' is a number, 0 or more, not .*\.$"):
        check_numbers({"rate": value, "other": "x"}, rate=0.0)
    check_numbers({"rate": 0.5}, rate=0.0)


def test_the_innermost_cause_is_told():
    inner, between, outer = KeyError("column"), ValueError("between"), RuntimeError("it\nfailed")
    outer.__cause__, between.__cause__ = between, inner
    assert reason(outer) == "RuntimeError: it failed (KeyError: 'column')"
    assert reason(ValueError("abcdef"), 3) == "ValueError: abc"


def test_a_number_beyond_64_bits_is_refused():
    check_numbers({"seed": 2**63 - 1}, seed=0)
    with pytest.raises(UserError, match=r"^'seed' is too large: 9223372036854775808\.$"):
        check_numbers({"seed": 2**63}, seed=0)


def test_a_message_is_one_line_and_steers_no_console_whatever_it_quotes():
    assert str(UserError("no 'a\nb\x1b[2J\x85\u2028é 猫'")) == "no 'a\\nb\\x1b[2J\\x85\\u2028é 猫'"
    assert one_line("plain 'text' \\n") == "plain 'text' \\n"
