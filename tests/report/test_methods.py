from __future__ import annotations

import pytest

from patchranking.report.methods import is_oracle, order, plain_name, style

BASELINES = ["cls-attention", "evit", "a-vit", "tome", "low-res", "centre-crop", "random"]
KNOWN = ["dense", "patchranking", *BASELINES, "golden"]


def test_the_golden_ranking_is_last_and_unknown_names_stand_before_it_by_alphabet() -> None:
    expected = [*KNOWN[:-1], "aardvark", "zebra", "golden (oracle)"]
    assert sorted({*expected}, key=order) == expected


def test_every_method_has_a_look_of_its_own_and_an_unknown_one_none_of_theirs() -> None:
    looks = {style(name) for name in KNOWN}
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(KNOWN)
    spare = {style(f"method {number}") for number in range(50)}
    assert len(spare) == 4
    assert not {look.colour for look in looks} & {look.colour for look in spare}
    assert style("brand-new") == style("brand-new (oracle)") == style("brand-new")


@pytest.mark.parametrize(
    ("row", "oracle"),
    [
        ({"method": "golden"}, False),
        ({"method": "golden", "oracle": True}, True),
        ({"method": "golden", "oracle": False}, False),
        ({"method": "golden (oracle)", "oracle": False}, True),
        ({"method": "(oracle) of delphi"}, False),
    ],
)
def test_an_oracle_is_told_by_its_row_or_its_name(row: dict[str, object], oracle: bool) -> None:
    assert is_oracle(row) is oracle


def test_the_plain_name_has_no_mark() -> None:
    assert plain_name("golden (oracle)") == plain_name("golden") == "golden"
    assert all(style(f"{name} (oracle)") == style(name) for name in KNOWN)
