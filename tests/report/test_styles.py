from __future__ import annotations

import random

from patchranking.methods import METHODS, STYLES
from patchranking.report import styles
from patchranking.report.styles import order, style


def test_every_method_looks_as_it_says_and_none_like_an_unknown_one() -> None:
    for name, method in METHODS.items():
        assert style(name) == method.style
    assert style("dense").marker == "D"
    assert style("patchranking").colour == "#e2571e"
    spare = {style(f"unknown {number}") for number in range(99)}
    assert spare == {*styles._SPARE}
    assert not {look.colour for look in spare} & {look.colour for look in STYLES.values()}
    assert not {look.marker for look in spare} & {look.marker for look in STYLES.values()}


def test_an_unknown_method_always_looks_the_same() -> None:
    assert [style(name).marker for name in ("brand-new", "a", "b", "c")] == ["8", "8", "<", "8"]


def test_the_order_is_dense_ours_baselines_unknown_ones_and_oracles_last() -> None:
    baselines = [name for name, method in METHODS.items() if not method.oracle]
    expected = ["dense", "patchranking", *baselines, "another", "brand-new", "golden"]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=order) == expected
