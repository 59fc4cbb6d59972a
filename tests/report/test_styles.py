from __future__ import annotations

from patchranking.report.styles import order, style


def test_styles_are_stable_and_order_puts_the_golden_ranking_last() -> None:
    assert style("brand-new") == style("brand-new")
    methods = ["golden", "brand-new", "random", "patchranking", "dense"]
    assert sorted(methods, key=order) == ["dense", "patchranking", "random", "brand-new", "golden"]
